"""Digests of all that a computation follows from, to the bit: the keys of its checkpoints."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.learning.machine.devices import choose_device, computes_in_bf16
from stages.learning.names import Device

_STAGES = Path(__file__).resolve().parents[2]


def inputs_digest(
    arrays: Iterable[NDArray[Any] | None],
    files: Iterable[Path],
    facts: object,
    *,
    device: Device,
    libraries: Iterable[str],
) -> str:
    """64 hex that name data, files, facts, libraries, and the machine's arithmetic.

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
    """What decides how numbers are rounded there, and in which order they are added."""
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
    """Files of the package `stages` by their names in it; a folder stands for all its modules."""
    found: list[Path] = []
    for name in names:
        path = _STAGES / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found
