"""The images of a dataset, all on the device where they fit, else brought there batch by batch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.learning.machine.devices import free_memory, to_device

_SHARE = 0.4  # of free memory that images may take: network, activations and validation need theirs


class Images(ABC):
    """N arrays of one shape and dtype, to be had by index.

    Attributes
    ----------
    resident : whether all are on the device
    """

    resident: bool

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        self._count, self._device = len(images), device

    def __len__(self) -> int:
        return self._count

    @abstractmethod
    def gather(self, index: Tensor) -> Tensor:
        """Those at `index` (int64, B, on the host), B×…, on the device."""

    @abstractmethod
    def prefetch(self, index: Tensor) -> None:
        """Make ready what `gather` will be asked for next; where it is asked for another, that is lost."""


def open_images(images: NDArray[Any], device: torch.device, *, resident: bool | None = None) -> Images:
    """`images` for training on `device`.

    Parameters
    ----------
    images : N×…, of any dtype that torch has; in memory or memory-mapped
    device : where batches are wanted
    resident : whether all are held there; None: where they take two fifths of its free memory at most. What
        lies in the memory of a CPU that is to compute stays as it is.
    """
    if resident is None:
        mapped = _is_mapped(images)
        resident = (device.type == "cpu" and not mapped) or images.nbytes <= _SHARE * free_memory(device)
    return _Resident(images, device) if resident else _Streamed(images, device)


def _is_mapped(images: NDArray[Any]) -> bool:
    """Whether an array is, or is a view of, a file."""
    part: object = images
    while isinstance(part, np.ndarray):
        if isinstance(part, np.memmap):
            return True
        part = part.base
    return False


class _Resident(Images):
    resident = True

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        super().__init__(images, device)
        in_memory = np.array(images) if _is_mapped(images) else np.ascontiguousarray(images)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes here
            self._images = torch.from_numpy(in_memory).to(device)

    def gather(self, index: Tensor) -> Tensor:
        return self._images.index_select(0, to_device(index, self._device))

    def prefetch(self, index: Tensor) -> None:
        """Nothing: all are there."""


class _Streamed(Images):
    """A thread reads the next batch while the device computes with the last."""

    resident = False

    def __init__(self, images: NDArray[Any], device: torch.device) -> None:
        super().__init__(images, device)
        self._images = images
        # Pinned memory belongs to the device that is current, and each thread has a current one of its own.
        enter = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
        self._reader = ThreadPoolExecutor(1, "images", enter)  # its thread ends with it
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None

    def gather(self, index: Tensor) -> Tensor:
        ahead, self._ahead = self._ahead, None
        expected = ahead is not None and torch.equal(ahead[0], index)
        batch = ahead[1].result() if ahead is not None and expected else self._read(index)
        return batch.to(self._device, non_blocking=batch.is_pinned())

    def prefetch(self, index: Tensor) -> None:
        self._ahead = (index, self._reader.submit(self._read, index))

    def _read(self, index: Tensor) -> Tensor:
        """A batch on the host, pinned for CUDA: only from there it is copied while the device computes."""
        batch = torch.from_numpy(self._images[index.numpy()])
        return batch.pin_memory() if self._device.type == "cuda" else batch
