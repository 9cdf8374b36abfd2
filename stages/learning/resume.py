"""Resume trainings that were killed: keys and files of checkpoints, and SIGTERM put off until a step is done.

The key of a checkpoint is a digest of all that the computation follows from, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from stages.dataset.base import View
from stages.dataset.checkpoints import Checkpoints
from stages.learning.devices import choose_device, computes_in_bf16
from stages.learning.models import Classifier
from stages.learning.names import Device
from stages.learning.parallel import world
from stages.learning.recipe import Recipe

_STAGES = Path(__file__).resolve().parents[1]
_STATUS = 128 + signal.SIGTERM

# In stages/; tests/learning/test_resume.py holds it against what loop.py imports.
CODE = ("dataset", "learning")

_NEWEST = 0  # the number of the one that is kept
_SHARE = 0.05  # of the time may go into checkpoints


def inputs_digest(
    arrays: Iterable[NDArray[Any] | None],
    files: Iterable[Path],
    facts: object,
    *,
    device: Device,
    libraries: Iterable[str],
) -> str:
    """Digest data, files, facts, libraries, and the machine's arithmetic to 64 hex.

    Parameters
    ----------
    arrays : in an order that says what each is; None for one that is not there
    files : code, weights; their content counts, not where they are
    facts : anything else, as JSON can say it
    libraries : names of installed packages, whose versions count
    """
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none")
            continue
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    versions = [f"{name} {version(name)}" for name in libraries]
    digest.update(json.dumps([facts, arithmetic(device), versions]).encode())
    return digest.hexdigest()


def arithmetic(device: Device) -> list[object]:
    """Return what decides how numbers are rounded on a device, and in which order they are added."""
    target = choose_device(device)
    name = torch.cuda.get_device_name() if target.type == "cuda" else platform.machine()
    return [
        target.type,
        name,
        torch.backends.cpu.get_cpu_capability(),
        computes_in_bf16(target),
        torch.get_num_threads(),
    ]


def code_files(names: Iterable[str]) -> list[Path]:
    """Return files of the package `stages` by their names in it; a folder stands for all its modules."""
    files: list[Path] = []
    for name in names:
        path = _STAGES / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


class Termination:
    """Put off SIGTERM: within the `with` it only sets `asked`, and `end` ends the process.

    In the main thread alone, which alone may set handlers; and not where the signal is ignored.
    """

    def __init__(self, *, awaited: bool = True) -> None:
        self.asked = False
        self._awaited = awaited and threading.current_thread() is threading.main_thread()
        self._former: Any = None

    def __enter__(self) -> Termination:
        # None: a handler that did not come from Python, and could not be put back.
        if self._awaited and signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, None):
            self._former = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        if self.asked and kind is None:
            self.end()

    def end(self) -> None:
        """Let the signal do what it would have done."""
        self._restore()
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(_STATUS)  # where a handler thought better of it

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _restore(self) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
            self._former = None


class KeptTraining:
    """The newest state of one training in a folder.

    Parameters
    ----------
    folder : for this training, whatever it trains on; None keeps nothing
    key : of all that the training follows from; what was kept under another is removed
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._checkpoints = Checkpoints(folder, key)
        self._next = 0.0

    @property
    def keeps(self) -> bool:
        """Return whether anything is kept at all."""
        return self._checkpoints.keeps

    def read(self) -> dict[str, Any] | None:
        """Read the state; None where there is none, or it is damaged. Nothing is unpickled."""
        return self._checkpoints.read_with(
            _NEWEST, lambda file: torch.load(file, map_location="cpu", weights_only=True)
        )

    @property
    def due(self) -> bool:
        """Return whether the last write is long enough ago for what it cost."""
        return self.keeps and time.monotonic() >= self._next

    def write(self, state: dict[str, Any]) -> None:
        """Write a state of tensors and plain values in place of the last."""

        def save(file: BinaryIO) -> None:
            torch.save(state, file)

        start = time.monotonic()
        self._checkpoints.write_with(_NEWEST, save)
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
    """Digest all that the weights follow from, to the bit; `model` as training finds it."""
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
    """Yield the weights as bytes: numpy has no bfloat16."""
    for tensor in model.state_dict().values():
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
