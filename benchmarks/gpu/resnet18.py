"""Images a second of ResNet-18 at 32×32: Winnow's loop against torchvision's reference loop over files.

    python -m benchmarks.gpu.resnet18

The same network (torchvision's ResNet-18 with a 3×3 stem and without its max pool, as is usual for CIFAR)
on CIFAR-10's training images, in batches of 512:

- `ours`: `stages.learning.loop.fit` with the precision `auto` and `compile: on`, as in a training of
  `--epochs` epochs, which is stopped when all rounds are taken.
- the reference (`benchmarks.gpu.reference_loop`): `ImageFolder` of PNG files, a `DataLoader` with pinned
  memory and 16 workers (or as many as there are cores), SGD, in fp32 as is its default; the same with its
  --amp; and in fp32 with its default batch of 32.
- where the reference's time goes: its loader without a network, and its steps over one batch that lies on
  the device already.

All take an epoch in turn, after one of each that does not count (compiling, cuDNN's trials, starting of
workers). Printed are medians and quarters over the rounds; the aim is ten times the reference in fp32.

An H100 should take seven minutes for the seven rounds: one of archive and files, up to two of compiling,
half a minute a round. Each round is a line in the file of --out: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.machine import ARCHIVE, data_file, describe, make_parser, measured, open_device, wait
from benchmarks.gpu.turns import Rounds, speed_table
from stages.dataset.base import View
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    import torch

    from stages.learning.models import Classifier
    from stages.learning.names import Device

RESULTS = Path(".winnow/bench/gpu/resnet18.jsonl")
AIM = 10.0
_PLACE = Path(".winnow/bench/gpu/resnet18")
_SHIFT = 4  # pixels, as the reference's padding
_COUNTING = ("model", "images", "batch_size", "workers", "epochs", "compile")  # options
_NOTE = "train: "  # what begins a line of the training loop's own

Sides = dict[str, Callable[[], int]]


@dataclass(frozen=True)
class Task:
    """What all train, and on what.

    Attributes
    ----------
    architecture : of the network
    images : uint8, N×H×W×3
    labels : int64, N
    folder : with the same images as PNG files, in a folder a class
    mean, std : of the pixels
    """

    architecture: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: list[str]
    folder: Path
    mean: list[float]
    std: list[float]

    def model(self) -> Classifier:
        """The network that all begin with."""
        from stages.learning.models import build_model
        from stages.learning.networks.layers import ModelSpec

        shape: tuple[int, int, int] = self.images.shape[1:]
        return build_model(ModelSpec(self.architecture, self.classes, shape, self.mean, self.std), seed=0)


class _EnoughError(Exception):
    """All rounds are taken, or time is over: the training loop need not go on."""


def main(argv: list[str] | None = None) -> None:
    """Measure the rounds that are not in the file of results yet, and print the table."""
    options = _parser().parse_args(argv)
    with clean_exit("resnet18"):
        from benchmarks.gpu.reference_loop import usable_workers
        from stages.learning.devices import choose_autocast

        if options.images < options.batch_size or options.batch_size < 1:
            raise WinnowError("--images must be as many as --batch-size at least, and that 1 or more")
        name, device = open_device(options)
        archive = data_file(options, ARCHIVE)
        if options.workers is None:
            options.workers = usable_workers(options.batch_size, side=32)
        settings = {
            "machine": describe(device),
            "precision": "bf16" if choose_autocast(device, options.precision).bf16 else "fp32",
            **{key: getattr(options, key) for key in _COUNTING},
        }
        rounds = Rounds(options.out, settings, options.rounds, options.minutes)
        if rounds.may_go_on:
            measure(_read(archive, options), rounds, options, name, device)
        print_table(rounds)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("resnet18", __doc__)
    parser.add_argument("--model", default="resnet18", help="another network of the catalogue")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--images", type=int, default=50_000, help="training images; default 50000")
    parser.add_argument("--batch-size", type=int, default=512, help="of all but one; default 512")
    parser.add_argument("--workers", type=int, help="of the DataLoader; default 16, or as many as cores")
    parser.add_argument(
        "--epochs", type=int, default=200, help="of a training that ours is the beginning of; default 200"
    )
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of ours")
    parser.add_argument("--compile", choices=("off", "on"), default="on", help="of ours")
    parser.add_argument("--minutes", type=float, default=9, help="to end within; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"of the results; default {RESULTS}")
    return parser


def _read(archive: Path, options: argparse.Namespace) -> Task:
    """Images of all classes in equal shares, in memory and as files."""
    from benchmarks.cifar_images import read_cifar10
    from benchmarks.training_sides import write_files
    from stages.learning.models import pixel_statistics

    data, count = read_cifar10(archive), options.images
    if count > len(data.labels):
        raise WinnowError(f"{archive} has {len(data.labels)} training images: lower --images")
    rows = np.sort(np.argsort(_place_in_class(data.labels), kind="stable")[:count])
    folder = _PLACE / str(len(rows))
    write_files(data, rows, folder)
    mean, std = pixel_statistics(data.images[rows])
    images, labels = data.images[rows], data.labels[rows]
    return Task(options.model, images, labels, data.classes, folder / "images", mean, std)


def _place_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many images of the same class stand before each."""
    places = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        own = labels == label
        places[own] = np.arange(own.sum())
    return places


def measure(
    task: Task, rounds: Rounds, options: argparse.Namespace, name: Device, device: torch.device
) -> None:
    """Our training, which the others interrupt after each epoch for one of their own."""
    from stages.learning.loop import fit
    from stages.learning.recipe import Recipe

    sides = _references(task, options, device)
    for side in sides.values():  # also before our loop has any threads: workers are forked
        side()
    recipe = Recipe(
        epochs=max(options.epochs, rounds.left + 1),
        steps_per_epoch=len(task.labels) // options.batch_size,
        batch_size=options.batch_size,
        learning_rate=0.1,
        optimiser="sgd",
        weight_decay=5e-4,
        clip_norm=None,  # the reference has none
        shift=_SHIFT,
        flip=True,
        precision=options.precision,
        compile=options.compile,
    )
    names = np.arange(len(task.labels)).astype(object)
    view = View(task.images, task.labels, np.ones(len(names), np.float32), names, task.classes)
    said = io.StringIO()  # what was compiled is said on stderr, and nowhere else before training ends
    turns = _Turns(rounds, sides, recipe.steps_per_epoch * recipe.batch_size, device, said)
    try:
        with suppress(_EnoughError), redirect_stderr(said):
            fit(task.model(), view, recipe, seed=0, device=name, description="", on_epoch=turns.after_epoch)
    finally:
        sys.stderr.write(said.getvalue())


class _Turns:
    """What happens between two epochs of ours: its seconds are noted, and all others have theirs.

    Parameters
    ----------
    images : in an epoch of ours
    said : by our training loop so far
    """

    def __init__(
        self, rounds: Rounds, sides: Sides, images: int, device: torch.device, said: io.StringIO
    ) -> None:
        self._rounds, self._sides, self._images = rounds, sides, images
        self._device, self._said = device, said
        self._others: dict[str, float] = {}
        self._start_up = 0.0  # seconds to the end of the first epoch, which does not count
        self._since = time.perf_counter()

    def after_epoch(self, _: dict[str, float]) -> None:
        """An epoch of ours has ended; returns when the next may begin."""
        wait(self._device)
        seconds = time.perf_counter() - self._since
        if self._others:
            self._rounds.end(
                {"ours": self._images / seconds, **self._others},
                start_up_seconds=self._start_up,
                epoch_seconds=seconds,
                notes=[line for line in self._said.getvalue().splitlines() if line.startswith(_NOTE)],
            )
        else:
            self._start_up = seconds
            print(f"our first epoch, with compiling: {seconds:.1f} s", flush=True)
        if not self._rounds.may_go_on:
            raise _EnoughError
        self._rounds.begin()
        found = {name: self._speed(name) for name in self._order()}
        self._others = {name: found[name] for name in self._sides}
        self._since = time.perf_counter()

    def _order(self) -> list[str]:
        """Each time another of them is the first: our epoch goes before that one."""
        names = list(self._sides)
        first = self._rounds.left % len(names)
        return names[first:] + names[:first]

    def _speed(self, name: str) -> float:
        with measured(self._device) as span:
            images = self._sides[name]()
        return images / span.seconds


def _references(task: Task, options: argparse.Namespace, device: torch.device) -> Sides:
    """All that ours is compared with; those of one batch size share a loader: only one is at work."""
    from benchmarks.gpu.reference_loop import (
        BATCH_SIZE,
        Files,
        ReferenceLoop,
        loader_alone,
        make_loader,
        on_device,
    )

    files = Files(task.folder, task.images.shape[1], task.mean, task.std)
    large = make_loader(files, options.batch_size, options.workers, device)
    small = make_loader(files, BATCH_SIZE, options.workers, device)
    one = next(on_device(make_loader(files, options.batch_size, 0, device), device))
    ready = [one] * (len(task.labels) // options.batch_size)

    def loop(batches: Any, *, amp: bool = False) -> ReferenceLoop:
        return ReferenceLoop(task.model(), batches, device, amp=amp)

    return {
        "reference": loop(large),
        "reference_amp": loop(large, amp=True),
        "reference_small": loop(small),
        "loader": loader_alone(large, device),
        "steps": loop(ready),
        "steps_amp": loop(ready, amp=True),
    }


def print_table(rounds: Rounds) -> None:
    """Images a second of each, ratios to ours, what was compiled, and what it took."""
    from benchmarks.gpu.reference_loop import BATCH_SIZE

    if not rounds.rows:
        raise WinnowError("no round ended in time: raise --minutes, or lower --images")
    own = rounds.settings
    print(f"\n{own['model']} at 32×32 · {own['machine']}")
    print(
        f"{own['images']:,} images, batches of {own['batch_size']}, {own['workers']} workers; "
        f"{len(rounds.rows)} rounds of an epoch each in turns, seed 0; medians\n"
    )
    sides = (
        ("ours", f"ours (fit), {own['precision']}"),
        ("reference", "reference"),
        ("reference_amp", "reference --amp"),
        ("reference_small", f"reference, batches of {BATCH_SIZE}"),
        ("loader", "its loader alone"),
        ("steps", "its steps alone"),
        ("steps_amp", "its steps alone, --amp"),
    )
    print(speed_table(rounds, "ours", sides))
    first, usual = (
        statistics.median(row[key] for row in rounds.rows) for key in ("start_up_seconds", "epoch_seconds")
    )
    print("the reference computes in fp32, with TF32 in convolutions on a GPU, as torch does by default")
    print(f"our first epoch {first:.1f} s, with building, trials and compiling; a later one {usual:.2f} s")
    for note in sorted({note for row in rounds.rows for note in row["notes"]}):
        print(note)
    ratio = statistics.median(rounds.ratios("ours", "reference"))
    print(f"ours / reference {ratio:.2f}; the aim is {AIM:g} at least")


if __name__ == "__main__":
    main()
