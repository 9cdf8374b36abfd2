"""What a trained model says of images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stages.learning.devices import choose_autocast, choose_device
from stages.learning.models import Classifier
from stages.learning.names import Device, Precision

_PREDICT_BATCH = 512


@torch.inference_mode()
def predict(
    model: Classifier,
    images: NDArray[np.uint8],
    device: Device = "auto",
    precision: Precision = "fp32",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Class probabilities (N×K, rows sum to 1) and embeddings (N×D) of uint8 images N×H×W×C.

    `precision` is the backbone's; the head computes in float32, so that probabilities do not tie.
    """
    target = choose_device(device)
    autocast = choose_autocast(target, precision)
    model.to(target).eval()
    probabilities, embeddings = [], []
    for start in range(0, len(images), _PREDICT_BATCH):
        batch = torch.from_numpy(np.array(images[start : start + _PREDICT_BATCH])).to(target)
        with autocast.context():
            features = model.embed(batch)
        features = features.float()
        probabilities.append(model.head(features).softmax(1).float().cpu().numpy())
        embeddings.append(features.cpu().numpy())
    if not probabilities:
        return np.zeros((0, len(model.spec.classes)), np.float32), np.zeros(
            (0, model.head.in_features), np.float32
        )
    return np.concatenate(probabilities), np.concatenate(embeddings)
