"""Make more samples for rare classes: by interpolation, or by a GAN and the gate behind it.

`GANOverSampler` is imported when it is first asked for: torch takes seconds, and the other modules
do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.synthesis.sampler import GANOverSampler

__all__ = ["GANOverSampler"]


def __getattr__(name: str) -> Any:
    if name == "GANOverSampler":
        from importlib import import_module

        return import_module("stages.synthesis.sampler").GANOverSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
