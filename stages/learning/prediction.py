"""Predict classes and embeddings, and calibrate how confident a model is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.dataset.base import View
from stages.learning.devices import Autocast, choose_autocast, choose_device, to_device
from stages.learning.models import Classifier
from stages.learning.names import Device, Precision, TestTime

_CPU_BATCH = 512  # images

# A GPU takes as long for a small batch as for one of so many pixels.
_GPU_PIXELS, _GPU_LEAST, _GPU_MOST = 2**21, 64, 4096

_HELD_BYTES = 2**28  # of outputs that stay on the device until they are fetched

# Tried are temperatures from 0.2 to 5 in steps of five percent, and shares of wrong labels.
_LOG_TEMPERATURES = np.arange(-32, 33) * 0.05

_SHARES = np.arange(61) * 0.01
_PRIOR = 1 / 3  # standard deviation of log T about 0: it decides where there are few images
_MOST = 5_000  # images: more tell nothing more


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


@dataclass(frozen=True)
class Calibration:
    """The calibration of a model by validation images.

    Attributes
    ----------
    temperature : what logits are divided by for probabilities; 1 leaves them as they are
    wrong_labels : share of the validation labels that are wrong, as estimated with it, 0 to 1
    images : validation images that it was fitted to
    """

    temperature: float = 1.0
    wrong_labels: float = 0.0
    images: int = 0


def calibrate(model: Classifier, val: View, device: Device = "auto") -> Calibration:
    """Fit the temperature of a trained `model` on `val`, and set it in `model.spec`.

    Fitted without test-time augmentation. Without validation images the temperature is 1.
    """
    calibration = Calibration()
    if len(val):
        calibration = fit_temperature(predict_logits(model, val.images, device), val.labels)
    model.spec = replace(model.spec, temperature=calibration.temperature)
    return calibration


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration:
    """Fit the temperature under which `labels`, some of them wrong, are likeliest.

    With wrong labels a temperature by itself would make the model unsure of what it is right in. So the
    share ε of labels that say nothing is fitted too: P(given label) = (1 - ε) softmax(z / T) + ε / K. That
    log T is near 0 is assumed beforehand (a normal distribution), as little as some ten images outweigh.

    Parameters
    ----------
    logits : N×K, one row or more
    labels : int64, N; as given

    Raises
    ------
    ValueError
        Where there are no images.

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2.
    """
    if len(labels) == 0:
        raise ValueError("there are no images to fit a temperature to")
    every = -(-len(labels) // _MOST)
    values, given = logits[::every].astype(np.float64), labels[::every]
    classes = values.shape[1]
    values = values - values.max(1, keepdims=True)
    best, chosen = -np.inf, (0, 0)
    for place, log_temperature in enumerate(_LOG_TEMPERATURES):
        odds = np.exp(values / np.exp(log_temperature))
        of_label = odds[np.arange(len(given)), given] / odds.sum(1)
        mixed = (1 - _SHARES) * of_label[:, None] + _SHARES / classes
        likelihood = np.log(np.maximum(mixed, 1e-12)).sum(0) - 0.5 * (log_temperature / _PRIOR) ** 2
        share = int(likelihood.argmax())
        if likelihood[share] > best:
            best, chosen = float(likelihood[share]), (place, share)
    temperature = round(float(np.exp(_LOG_TEMPERATURES[chosen[0]])), 4)
    wrong = round(float(_SHARES[chosen[1]]) * (classes - 1) / classes, 4)
    return Calibration(temperature, wrong, len(given))
