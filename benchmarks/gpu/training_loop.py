"""Seconds of training to 94 % on CIFAR-10, against cifar10-airbench's plain `airbench94`.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python -m benchmarks.gpu.training_loop --peer cifar10-airbench/legacy/airbench94.py

Both train the same network for the same 476 steps of 1,024 images: the peer by its script as it is, Winnow
by `stages.learning.loop.fit` with the catalogue's `airbench94` and Jordan's recipe (arXiv 2404.00498) in
the terms of `Recipe`. Counted is what the peer counts: from the whitening of the first layer to the last
step, and the prediction of the test images in six views; of Winnow's side all of `fit` besides, with the
images on their way to the GPU. Not counted are imports, the first run of each (kernels are loaded and
chosen in it), and scores after each epoch. The sides take turns, and the order of a round is the other way
round in the next. The aims: 1.15 times the peer's seconds at most, and an accuracy within .2 points.

What else a stage does is measured apart, in one run each: scores after each epoch, checkpoints, and compiled
networks (`compile: on`, its compilation included).

Two minutes on an H100, half of it to unpack the archive and to start; without --peer Winnow's side alone.
Each round is a line in the file of --out: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cifar_images import Cifar
from benchmarks.gpu.airbench_recipe import BATCH, STEPS, recipe, spec, view
from benchmarks.gpu.machine import ARCHIVE, Span, data_file, describe, make_parser, measured, open_device
from benchmarks.gpu.turns import Rounds
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    import torch

    from stages.learning.names import Device
    from stages.learning.recipe import Recipe

RESULTS = Path(".winnow/bench/gpu/training_loop.jsonl")
AIM, POINTS = 1.15, 0.2
_APART = ("scores", "checkpoints", "compiled")


def main(argv: list[str] | None = None) -> None:
    """Measure the rounds that are not in the file of results yet, and print the table."""
    options = _parser().parse_args(argv)
    with clean_exit("training_loop"):
        from benchmarks.cifar_images import read_cifar10

        name, device = open_device(options)
        peer, against = _peer(options.peer)
        settings = {
            "machine": describe(device),
            "peer": against,
            "steps": options.steps,
            "batch_size": options.batch_size,
        }
        rounds = Rounds(options.out, settings, options.runs, options.minutes)
        cifar = _mixed(read_cifar10(data_file(options, ARCHIVE)))
        how = recipe(options.steps, options.batch_size)
        measure(cifar, peer, rounds, how, name, device)
        print_table(rounds, how)
        if not options.rounds_only:
            print_apart(cifar, how, name, device)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("training_loop", __doc__)
    parser.add_argument("--peer", type=Path, help="the peer's legacy/airbench94.py; default: none")
    parser.add_argument("--runs", type=int, default=5, help="of each side; default 5")
    parser.add_argument("--rounds-only", action="store_true", help="leave out what is measured apart")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of Winnow's side; default {STEPS}")
    parser.add_argument("--batch-size", type=int, default=BATCH, help=f"of Winnow's side; default {BATCH}")
    parser.add_argument("--minutes", type=float, default=9, help="to end within; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"of the results; default {RESULTS}")
    return parser


def _peer(path: Path | None) -> tuple[ModuleType | None, str]:
    from benchmarks.gpu.peer import load_peer, peer_name

    return (None, "none") if path is None else (load_peer(path), peer_name(path))


def _mixed(cifar: Cifar) -> Cifar:
    """The training images in a random order, as in CIFAR-10's own files; always the same."""
    order = np.random.default_rng(0).permutation(len(cifar.labels))
    return replace(cifar, images=cifar.images[order], labels=cifar.labels[order])


def measure(
    cifar: Cifar,
    peer: ModuleType | None,
    rounds: Rounds,
    how: Recipe,
    name: Device,
    device: torch.device,
) -> None:
    """Rounds of one run of each side, the seeds 0, 1, …, until there are as many as are wanted."""
    import contextlib

    from benchmarks.gpu.peer import peer_at_work

    if not rounds.may_go_on:
        return
    images = how.epochs * how.steps_per_epoch * how.batch_size
    with peer_at_work(cifar) if peer is not None else contextlib.nullcontext():
        _ours(cifar, how, 0, name, device)
        if peer is not None:
            _theirs(peer, "warmup")
        while rounds.may_go_on:
            rounds.begin()
            seed = len(rounds.rows)
            seconds: dict[str, float] = {}
            accuracy: dict[str, float] = {}
            peak = 0
            for side in ("peer", "ours") if seed % 2 else ("ours", "peer"):
                if side == "ours":
                    span, accuracy[side] = _ours(cifar, how, seed, name, device)
                    seconds[side], peak = span.seconds, span.peak_bytes
                elif peer is not None:
                    seconds[side], accuracy[side] = _theirs(peer, seed)
            speed = {side: images / seconds[side] for side in sorted(seconds)}
            rounds.end(speed, seed=seed, seconds=seconds, accuracy=accuracy, megabytes=round(peak / 1e6))


def _ours(
    cifar: Cifar, how: Recipe, seed: int, name: Device, device: torch.device, **more: Any
) -> tuple[Span, float]:
    """One training: what it took, and accuracy on the test images."""
    from stages.learning.loop import fit
    from stages.learning.models import build_model
    from stages.learning.prediction import predict

    model = build_model(spec(cifar), seed=seed).to(device)
    data = view(cifar.images, cifar.labels, cifar.classes)
    with measured(device) as span:
        result = fit(model, data, how, seed=seed, device=name, description="", **more)
        probabilities, _ = predict(result.model, cifar.test_images, name, "auto", "flip_shift")
    return span, float((probabilities.argmax(1) == cifar.test_labels).mean())


def _theirs(peer: ModuleType, run: int | str) -> tuple[float, float]:
    """The peer's seconds by its own clock, and its accuracy; its table is not printed."""
    import torch

    said: dict[str, Any] = {}
    peer.print_training_details = lambda variables, is_final_entry: said.update(variables)  # type: ignore[attr-defined]
    torch.manual_seed(run if isinstance(run, int) else 0)
    accuracy = float(peer.main(run))
    return float(said["total_time_seconds"]), accuracy


def print_table(rounds: Rounds, how: Recipe) -> None:
    """Seconds and accuracy of each side: means over the runs, and the smallest and the largest."""
    steps = how.epochs * how.steps_per_epoch
    print(
        f"\n{len(rounds.rows)} runs of each side, seeds 0 to {len(rounds.rows) - 1}, {steps} steps of", end=""
    )
    print(f" {how.batch_size} images; seconds of training and of predicting the test images in six views")
    print(f"{'':8}{'seconds':>10}{'from':>8}{'to':>8}{'accuracy':>12}{'from':>8}{'to':>8}{'peak MB':>10}")
    for side in ("peer", "ours"):
        if side not in rounds.rows[0]["seconds"]:
            continue
        line = f"{side:8}"
        for key, form in (("seconds", ".3f"), ("accuracy", ".4f")):
            values = [row[key][side] for row in rounds.rows]
            line += f"{statistics.mean(values):>{12 if key == 'accuracy' else 10}{form}}"
            line += f"{min(values):>8{form}}{max(values):>8{form}}"
        if side == "ours":
            line += f"{max(row['megabytes'] for row in rounds.rows):>10,}"
        print(line)
    if "peer" in rounds.rows[0]["seconds"]:
        ratios = [row["seconds"]["ours"] / row["seconds"]["peer"] for row in rounds.rows]
        points = [100 * (row["accuracy"]["ours"] - row["accuracy"]["peer"]) for row in rounds.rows]
        print(
            f"ours / peer, seconds: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
            f"{max(ratios):.3f}); the aim is {AIM} at most"
        )
        print(f"ours - peer, accuracy: {statistics.mean(points):+.2f} points; the aim is within {POINTS}")


def print_apart(cifar: Cifar, how: Recipe, name: Device, device: torch.device) -> None:
    """What a stage does besides, in one run each, beside a run without."""
    plain, _ = _ours(cifar, how, 0, name, device)
    print(f"\nmeasured apart, one run each; without any of it {plain.seconds:.3f} s:")
    for what in _APART:
        with tempfile.TemporaryDirectory(prefix="winnow-bench-") as place:
            more: dict[str, Any] = {}
            changed = how
            if what == "scores":
                more["val"] = view(cifar.test_images, cifar.test_labels, cifar.classes)
            elif what == "checkpoints":
                more["keep_in"] = Path(place)
            else:
                changed = replace(how, compile="on")
            try:
                span, _ = _ours(cifar, changed, 0, name, device, **more)
            except WinnowError as error:  # of torch.compile, where there is no compiler
                if what != "compiled":
                    raise
                print(f"  {what:14}not here: {error}", flush=True)
                continue
        print(f"  {what:14}{span.seconds:>8.3f} s", flush=True)


if __name__ == "__main__":
    main()
