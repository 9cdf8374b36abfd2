"""Checkpoints of a training: what names it, and how its state goes to disk and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from stages.checkpoints import Checkpoints
from stages.dataset import View
from stages.learning.machine.digest import code_files, inputs_digest
from stages.learning.machine.parallel import world
from stages.learning.models import Classifier
from stages.learning.names import Device
from stages.learning.recipe import Recipe

# In stages/; tests/learning/training/test_kept.py holds it against what loop.py imports.
CODE = ("checkpoints.py", "learning")
_NEWEST = 0  # the number of the one that is kept
_SHARE = 0.05  # of the time may go into checkpoints


class KeptTraining:
    """The newest state of one training in a folder.

    Parameters
    ----------
    folder : for this training, whatever it trains on; None keeps nothing
    key : of all that the training follows from; what was kept under another is removed
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._parts = Checkpoints(folder, key)
        self._next = 0.0

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._parts.keeps

    def read(self) -> dict[str, Any] | None:
        """The state that was kept; None where there is none, or it is damaged. Nothing is unpickled."""
        return self._parts.read_with(
            _NEWEST, lambda file: torch.load(file, map_location="cpu", weights_only=True)
        )

    @property
    def due(self) -> bool:
        """Whether the last one is long enough ago for what it cost."""
        return self.keeps and time.monotonic() >= self._next

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state of tensors and plain values in place of the last."""

        def save(file: BinaryIO) -> None:
            torch.save(state, file)

        start = time.monotonic()
        self._parts.write_with(_NEWEST, save)
        end = time.monotonic()
        self._next = end + (end - start) / _SHARE


def training_key(
    model: Classifier,
    data: View,
    recipe: Recipe,
    *,
    seed: int,
    device: Device,
    val: View | None,
    transition: NDArray[np.float64] | None,
    unlabeled: NDArray[np.uint8] | None,
) -> str:
    """64 hex that name all that the weights follow from, to the bit; `model` as training finds it."""
    arrays = [*_arrays(data), *_arrays(val), transition, unlabeled, *_weights(model)]
    libraries = ["numpy", "torch", "torchvision"]
    if model.spec.architecture.startswith("timm/"):
        libraries.append("timm")
    facts = [model.spec.to_json(), list(model.state_dict()), asdict(recipe), data.classes, seed, world().size]
    return inputs_digest(arrays, code_files(CODE), facts, device=device, libraries=libraries)


def _arrays(view: View | None) -> list[NDArray[Any] | None]:
    if view is None:
        return [None]
    return [view.images, view.labels, view.weights, view.second_labels]


def _weights(model: Classifier) -> Iterable[NDArray[Any]]:
    """As bytes: numpy has no bfloat16."""
    for tensor in model.state_dict().values():
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
