"""Adaptation to another domain, where images are at hand and labels are not: AdaBN and CORAL."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.machine.devices import choose_device
from stages.learning.models import Classifier
from stages.learning.names import Device

_BATCH = 256
_NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def adapt_batch_norm(
    model: Classifier, images: NDArray[np.uint8], *, seed: int, device: Device = "auto"
) -> Classifier:
    """Estimate the statistics of batch normalisation anew, on `images` alone (AdaBN).

    The mean over batches of equal size (Li et al., arXiv 1603.04779); no weight changes.

    Parameters
    ----------
    model : changed in place; moved to the device, and left there in evaluation mode
    images : uint8, N×H×W×C; of the target domain, labelled or not; two at least
    seed : of the order of the images: batches of one class each would have too small a variance

    Raises
    ------
    WinnowError
        Where the network has no batch normalisation, or there are fewer than two images.
    """
    layers = [
        layer
        for layer in model.backbone.modules()
        if isinstance(layer, _NORMALISATION) and layer.track_running_stats
    ]
    if not layers:
        raise WinnowError(
            f"{model.spec.architecture} has no batch normalisation whose statistics could be adapted: set "
            "adapt_batch_norm to false"
        )
    if len(images) < 2:
        raise WinnowError("statistics of batch normalisation need two images at least")
    target = choose_device(device)
    model.to(target).eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches, not a moving one
        layer.train()
    order = np.random.default_rng(seed).permutation(len(images))
    for rows in np.array_split(order, -(-len(images) // _BATCH)):
        model.embed(torch.from_numpy(np.array(images[rows])).to(target))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model.eval()


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Distance of two sets of features by their covariances (Sun & Saenko, arXiv 1607.01719).

    Parameters
    ----------
    source, target : float, N×D and M×D; two rows of each at least

    Returns
    -------
    ‖C_s − C_t‖²_F / 4D² of their covariance matrices, in float32
    """
    difference = _covariance(source) - _covariance(target)
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):  # sums of squares: bf16 is too coarse
        centred = features.float() - features.float().mean(0)
        return centred.T @ centred / (len(features) - 1)
