"""A training in a process of its own, to be killed: by step, from outside."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.dataset.base import View
from stages.learning import resume
from stages.learning.loop import fit
from stages.learning.models import build_model
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.recipe import Recipe
from stages.learning.trainer import Trainer

EPOCHS, STEPS = 5, 6


@dataclass
class Ended:
    """How a process ended, and what it said: of a whole training, digest, history and notes."""

    status: int
    result: dict[str, Any] | None


def trained(folder: Path | None, choices: dict[str, Any], at_step: int | None = None, by: int = 0) -> Ended:
    """Train in a process of its own; after step `at_step` SIGTERM reaches it, or SIGKILL soon."""
    context = multiprocessing.get_context("forkserver")
    # Imported once, and not in each process; an optimiser imports the second.
    context.set_forkserver_preload(["stages.learning.loop", "torch._dynamo"])
    here, there = context.Pipe()
    process = context.Process(target=_train, args=(there, folder, choices, at_step, by))
    process.start()
    there.close()
    result = None
    try:
        while True:
            said = here.recv()
            if isinstance(said, dict):
                result = said
            elif said == at_step and by == signal.SIGKILL:
                process.kill()
    except (EOFError, ConnectionResetError):
        pass
    process.join()
    return Ended(process.exitcode, result)


def _train(
    to: Connection, folder: Path | None, choices: dict[str, Any], at_step: int | None, by: int
) -> None:
    torch.set_num_threads(1)
    resume._SHARE = math.inf  # after each epoch, however short
    step = Trainer.step

    def told(trainer: Trainer) -> None:
        step(trainer)
        to.send(trainer.steps)
        if at_step is not None and trainer.steps == at_step and by == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        if at_step is not None and trainer.steps > at_step and by == signal.SIGKILL:
            to.recv()  # for ever: on a busy machine the kill is late, and all steps would be done by then

    Trainer.step = told
    view, unlabeled = bars()
    layers = Layers(dropout=0.2)
    spec = ModelSpec("small_cnn", view.classes, (8, 8, 1), [0.2], [0.3], layers=layers)
    recipe = Recipe(EPOCHS, STEPS, 16, 5e-3, shift=1, flip=True, early_stopping=True, **choices)
    result = fit(
        build_model(spec, seed=3), view, recipe, seed=3, val=view, device="cpu", description="",
        keep_in=folder, unlabeled=unlabeled,
    )  # fmt: skip
    digest = hashlib.sha256()
    for tensor in result.model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    to.send({"weights": digest.hexdigest(), "history": result.history, "notes": result.notes,
             "best": result.best_epoch})  # fmt: skip


def bars() -> tuple[View, np.ndarray]:
    """40 noisy images of three classes, and 20 without labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (60, 8, 8, 1)).astype(np.uint8)
    labels = rng.integers(0, 3, 40)
    for image, label in zip(images, labels, strict=False):
        image[:, 2 * label] = 255
    names = np.arange(40).astype(object)
    return View(images[:40], labels, np.ones(40, np.float32), names, list("abc")), images[40:]
