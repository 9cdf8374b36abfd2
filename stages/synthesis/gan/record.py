"""What a GAN's training has brought so far, as arrays that go to disk and come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.learning.machine import digest
from stages.learning.names import Device
from stages.synthesis.gan.trainer import GANConfig

Weights = list[NDArray[np.float32]]
# In stages/; tests/synthesis/gan/test_record.py holds it against what training.py imports.
CODE = [
    "checkpoints.py",
    "learning/names.py",
    *(f"learning/machine/{name}.py" for name in ("__init__", "devices", "digest", "memory")),
    "synthesis/gan/diff_augment.py",
    *(f"synthesis/gan/{name}.py" for name in ("networks", "record", "snapshots", "trainer", "training")),
]
_LIBRARIES = ("numpy", "torch")


@dataclass
class Record:
    """Figures, snapshots and samples of a training.

    Attributes
    ----------
    history : a row every few steps: `step`, `generator_loss`, `discriminator_loss`, `penalty`
    notes : a sentence each for what did not go as ordered
    snapshots : step and averaged weights of each
    good : step and averaged weights of the last time that all was found to be numbers
    samples : step and uint8 K×n×H×W×C of each
    """

    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    snapshots: dict[int, Weights] = field(default_factory=dict)
    good: tuple[int, Weights] | None = None
    samples: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it; text as JSON in bytes."""
        text = json.dumps({"history": self.history, "notes": self.notes}).encode()
        state: dict[str, NDArray[Any]] = {"text": np.frombuffer(text, np.uint8)}
        state |= {f"sample.{step}": images for step, images in self.samples.items()}
        kept = {"good": dict([self.good] if self.good else []), "snapshot": self.snapshots}
        for name, states in kept.items():
            for step, weights in states.items():
                state |= {f"{name}.{step}.{index}": weight for index, weight in enumerate(weights)}
        return state

    @classmethod
    def load(cls, state: Mapping[str, NDArray[Any]]) -> Record:
        """What `state` gave."""
        text = json.loads(state["text"].tobytes())
        record = cls(text["history"], text["notes"])
        good: dict[int, Weights] = {}
        for key, array in state.items():
            kind, *numbers = key.split(".")
            if kind == "sample":
                record.samples[int(numbers[0])] = array
            elif kind in ("good", "snapshot"):
                states = good if kind == "good" else record.snapshots
                states.setdefault(int(numbers[0]), []).append(array)
        record.good = next(iter(good.items()), None)
        return record


def inputs_digest(
    images: NDArray[np.uint8], labels: NDArray[np.int64], config: GANConfig, *, seed: int, device: Device
) -> str:
    """64 hex that name all that the training follows from, to the bit.

    Images, labels, choices, seed, the code that trains, the libraries, and the machine's arithmetic.
    """
    return digest.inputs_digest(
        (images, labels),
        digest.code_files(CODE),
        [asdict(config), seed],
        device=device,
        libraries=_LIBRARIES,
    )
