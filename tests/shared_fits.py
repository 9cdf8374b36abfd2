"""Small trainings that several processes can share; as a program, those of one process of them.

`python shared_fits.py FOLDER NAME…` trains, and the first process writes the weights to FOLDER/NAME.npz.
With CHECKPOINTS they are kept there, and with CRASH the first process ends after the first epoch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiny_repo import environment

from stages.dataset.base import View
from stages.learning.loop import Fit, fit
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.parallel import joined
from stages.learning.recipe import Recipe

BASE = Recipe(
    epochs=2, steps_per_epoch=5, batch_size=32, learning_rate=0.001, optimiser="sgd", shift=1, flip=True,
    mixup=0.4, precision="fp32",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Keys of the recipe, whether unlabelled images are there, whether in float64 (without validation), and
    the network.

    In float32 rounding alone parts two trainings: a pixel that is just under a kink in one is above it in
    the other. In float64 only what is done otherwise does.
    """

    changes: dict = field(default_factory=dict)
    unlabeled: bool = False
    exact: bool = True
    network: str = "small_cnn"


CASES = {
    "float32": Case({"early_stopping": True}, exact=False),
    "odd_batch": Case({"batch_size": 31, "learning_rate": 3e-4}, exact=False),
    "plain": Case({"optimiser": "adamw", "learning_rate": 0.005, "cutout": 4}),
    "co_teaching": Case({"loss": "co_teaching", "learning_rate": 3e-4}, exact=False),
    "early_learning": Case({"loss": "early_learning", "cutmix": 1.0, "average_weights": 0.9}),
    "coral": Case({"coral": 1.0, "mixup": 0.0, "batch_size": 33}, unlabeled=True),
    "airbench94": Case(
        {"lookahead": 2, "norm_bias_factor": 4.0, "alternate_flips": True, "epochs": 4}, network="airbench94"
    ),
    "frozen": Case({"frozen_stages": 1, "l1": 1e-4, "class_weighting": "balanced", "deferred": 0.5}),
}


def view(count: int, seed: int) -> View:
    """Images 16×16 of 3 classes that a model can tell apart: bars at three places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 16, 16, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 + 4 * label : 5 + 4 * label] += np.uint8(180)
    weights = rng.uniform(0.5, 1.5, count).astype(np.float32)
    ids = [str(row) for row in range(count)]
    return View(images=images, labels=labels, weights=weights, sample_ids=ids, classes=["a", "b", "c"])


def crash(row: dict[str, float]) -> None:
    """After an epoch."""
    if "CRASH" in os.environ:
        os._exit(7)


def train(name: str, keep_in: Path | None = None) -> Fit:
    """One of `CASES`, with all processes that were joined."""
    case = CASES[name]
    model = build_model(ModelSpec(case.network, ["a", "b", "c"], (16, 16, 1), [0.3], [0.3]), seed=0)
    if case.exact:
        model.double()
        normalise = model.normalise
        model.normalise = lambda images: normalise(images).double()
    return fit(
        model, view(90, 0), replace(BASE, **case.changes), seed=0, device="cpu", description="",
        val=None if case.exact else view(11, 1), keep_in=keep_in, on_epoch=crash,
        unlabeled=view(40, 2).images if case.unlabeled else None,
    )  # fmt: skip


def weights_of(result: Fit) -> dict[str, NDArray]:
    return {name: tensor.numpy() for name, tensor in result.model.state_dict().items()}


def start(arguments: list[str], number: int, **variables: str) -> list[subprocess.Popen]:
    """Python programs that find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(number)
    ]  # fmt: skip


if __name__ == "__main__":
    kept = os.environ.get("CHECKPOINTS")
    with joined("cpu") as here:
        for name in sys.argv[2:]:
            result = train(name, None if kept is None else Path(kept))
            if here.is_main:
                history = np.array([list(row.values()) for row in result.history])
                np.savez(Path(sys.argv[1], name), history=history, **weights_of(result))
