"""Predict classes and embeddings of images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.learning.devices import Autocast, choose_autocast, choose_device, to_device
from stages.learning.models import Classifier
from stages.learning.names import Device, Precision, TestTime

_CPU_BATCH = 512  # images

# A GPU takes as long for a small batch as for one of so many pixels.
_GPU_PIXELS, _GPU_LEAST, _GPU_MOST = 2**21, 64, 4096

_HELD_BYTES = 2**28  # of outputs that stay on the device until they are fetched


@torch.inference_mode()
def predict(
    model: Classifier,
    images: NDArray[np.uint8],
    device: Device = "auto",
    precision: Precision = "fp32",
    views: TestTime = "none",
    temperature: float | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predict class probabilities (N×K, rows sum to 1) and embeddings (N×D) of uint8 images N×H×W×C.

    Parameters
    ----------
    model : a classifier, or an ensemble, whose members' probabilities are averaged
    images : uint8, N×H×W×C
    device : see `choose_device`
    precision : the backbone's; the head computes in float32, so that probabilities do not tie
    views : of which the mean probability is taken, see `views_of`; embeddings are of the image itself
    temperature : what logits are divided by; None: the model's own
    """
    divisor = model.spec.temperature if temperature is None else temperature
    probabilities = _Outputs(len(images), len(model.spec.classes))
    embeddings = _Outputs(len(images), model.width)
    for batch, autocast in _batches(model, images, device, precision):
        every = []
        for number, view in enumerate(views_of(batch, views)):
            logits, features = _logits(model, view, autocast)
            every.append((logits / divisor).softmax(1))
            if number == 0:
                embeddings.add(features)
        probabilities.add(every[0] if len(every) == 1 else torch.stack(every).mean(0))
    return probabilities.all(), embeddings.all()


@torch.inference_mode()
def predict_logits(
    model: Classifier, images: NDArray[np.uint8], device: Device = "auto", precision: Precision = "fp32"
) -> NDArray[np.float32]:
    """Predict logits N×K of uint8 images N×H×W×C, not divided by any temperature."""
    logits = _Outputs(len(images), len(model.spec.classes))
    for batch, autocast in _batches(model, images, device, precision):
        logits.add(_logits(model, batch, autocast)[0])
    return logits.all()


def views_of(images: Tensor, views: TestTime) -> Iterator[Tensor]:
    """Yield the views of a batch that predictions are averaged over, the batch itself first.

    `flip` adds mirror images. `shift` adds what lies one pixel up and left, and one pixel down and right,
    with the edge repeated. `flip_shift` has the six of both (as in Jordan, arXiv 2404.00498, section 3.6).

    Parameters
    ----------
    images : uint8, N×H×W×C
    """
    copies = [images]
    if views in ("shift", "flip_shift"):
        height, width = images.shape[1:3]
        # Padding by repetition is there for floating point alone; indices do it as well.
        for by in (-1, 1):
            rows = (torch.arange(height, device=images.device) + by).clamp(0, height - 1)
            columns = (torch.arange(width, device=images.device) + by).clamp(0, width - 1)
            copies.append(images[:, rows][:, :, columns])
    yield from copies
    if views in ("flip", "flip_shift"):
        for copy in copies:
            yield copy.flip(2)


def _batches(
    model: Classifier, images: NDArray[np.uint8], device: Device, precision: Precision
) -> Iterator[tuple[Tensor, Autocast]]:
    """Yield batches on the device, where the model is put too."""
    target = choose_device(device)
    autocast = choose_autocast(target, precision)
    model.to(target).eval()
    size = _CPU_BATCH
    if target.type != "cpu":
        size = min(max(_GPU_LEAST, _GPU_PIXELS // (images.shape[1] * images.shape[2])), _GPU_MOST)
    for start in range(0, len(images), size):
        yield to_device(torch.from_numpy(np.array(images[start : start + size])), target), autocast


class _Outputs:
    """Collect rows, N×`width` float32, fetched in few pieces: with each the host waits for the device.

    Into one array: many small ones that stay leave holes in memory, four times what they hold.
    """

    def __init__(self, count: int, width: int) -> None:
        self._rows = np.empty((count, width), np.float32)
        self._held: list[Tensor] = []
        self._bytes, self._filled = 0, 0

    def add(self, rows: Tensor) -> None:
        self._held.append(rows)
        self._bytes += rows.nbytes
        if rows.device.type == "cpu" or self._bytes > _HELD_BYTES:
            self._fetch()

    def all(self) -> NDArray[np.float32]:
        self._fetch()
        return self._rows

    def _fetch(self) -> None:
        if self._held:
            rows = torch.cat(self._held).cpu().numpy()
            self._rows[self._filled : self._filled + len(rows)] = rows
            self._filled += len(rows)
        self._held, self._bytes = [], 0


def _logits(model: Classifier, batch: Tensor, autocast: Autocast) -> tuple[Tensor, Tensor]:
    """Return logits N×K and features N×D, float32."""
    with autocast.context():
        features = model.embed(batch)
    features = features.float()
    return model.classify(features), features
