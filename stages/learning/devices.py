"""Choose where to compute and in which precision, and recognise when memory ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from stages.errors import WinnowError
from stages.learning.names import Device

_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


def choose_device(device: Device) -> torch.device:
    """Choose a device: `auto` is CUDA, then MPS, then CPU; a named one that is missing is an error."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(name for name, present in available.items() if present))
    if not available[device]:
        raise WinnowError(f"device = {device!r}, but this machine has none: use auto or cpu")
    return torch.device(device)


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether the hardware computes in bf16, and does not emulate it: `auto` is bf16 then."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Autocast:
    """A choice of precision on a device."""

    device: str
    bf16: bool

    def context(self) -> torch.autocast:
        """Return a context to compute in."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)


def choose_autocast(device: torch.device, precision: str) -> Autocast:
    """Choose the precision; `auto` is bf16 where `computes_in_bf16`."""
    if precision != "auto":
        return Autocast(device.type, precision == "bf16")
    return Autocast(device.type, computes_in_bf16(device))


@contextmanager
def chosen_kernels(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its algorithms for convolutions, and take the fastest for each size.

    Worth it where all batches are of one size; which it takes may change from run to run.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor from the host to `device` without waiting for what computes there.

    From memory that is not pinned CUDA copies only when all before it is done; so would the host wait.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free for tensors on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds in reserve is taken as the driver sees it, and free as we do.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether CUDA, MPS or the CPU's allocator had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
