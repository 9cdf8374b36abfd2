"""Name samples and the splits that they can be in; light, for worker processes to import.

A `sample_id` is 16 hexadecimal digits, the first 64 bits of a SHA-256. Where there are many of
them they are held as uint64 (`number_of`, `hex_ids`).
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test", "unlabeled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unlabeled")


def pixel_id(pixels: NDArray[np.uint8]) -> str:
    """Return the `sample_id` of an array: 16 hex of SHA-256 over shape, dtype and pixels."""
    digest = hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:16]


def bytes_id(encoded: bytes) -> str:
    """Return the `sample_id` of an encoded file: 16 hex of SHA-256 over its bytes."""
    return hashlib.sha256(encoded).hexdigest()[:16]


def derived_id(parent_id: str, method: str, counter: int) -> str:
    """Return the `sample_id` of a sample in a delta: 16 hex of SHA-256 over parent, method and counter."""
    return hashlib.sha256(f"{parent_id}/{method}/{counter}".encode()).hexdigest()[:16]


def sample_seed(seed: int, sample_id: str) -> int:
    """Return a seed for one sample that depends on neither order nor process count (below 2**32)."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def number_of(sample_id: str) -> int:
    """Return a `sample_id` as a number below 2**64; in the same order as the digits."""
    return int(sample_id, 16)


def hex_ids(numbers: NDArray[np.uint64]) -> list[str]:
    """Return numbers as `sample_id`s."""
    return [f"{number:016x}" for number in numbers.tolist()]
