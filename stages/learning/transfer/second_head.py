"""What a second head says, and how well, of images whose second label is known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stages.dataset import View
from stages.learning.models import Classifier, members_of
from stages.learning.names import Device
from stages.learning.prediction import predict


@torch.inference_mode()
def second_probabilities(
    model: Classifier, images: NDArray[np.uint8], device: Device = "auto"
) -> NDArray[np.float32]:
    """Probabilities of the second head, float32, N×(number of second classes); the mean over members."""
    found = []
    for member in members_of(model):
        embeddings = torch.from_numpy(predict(member, images, device)[1])
        assert member.second_head is not None  # noqa: S101 - who asks knows of it
        head = member.second_head
        found.append(head(embeddings.to(head.weight.device)).softmax(1).cpu().numpy())
    mean: NDArray[np.float32] = np.mean(found, axis=0, dtype=np.float32)
    return mean


def second_scores(model: Classifier, view: View, device: Device = "auto") -> dict[str, float]:
    """Images with a known second label in `view`, and on them accuracy and balanced accuracy (0 to 1).

    No scores where there are no such images.
    """
    labels = view.second_labels
    rows = np.flatnonzero(labels >= 0) if labels is not None else np.zeros(0, np.int64)
    if labels is None or not len(rows):
        return {"images": 0}
    known = labels[rows]
    hits = second_probabilities(model, view.images[rows], device).argmax(1) == known
    counts = np.bincount(known)
    recalls = np.bincount(known, weights=hits)[counts > 0] / counts[counts > 0]
    return {
        "images": len(rows),
        "accuracy": round(float(hits.mean()), 6),
        "balanced_accuracy": round(float(recalls.mean()), 6),
    }
