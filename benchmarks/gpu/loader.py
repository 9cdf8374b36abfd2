"""Images a second of the loader alone, against cifar10-airbench's `CifarLoader`.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python -m benchmarks.gpu.loader --peer cifar10-airbench/legacy/airbench94.py

Both bring CIFAR-10's 50,000 training images to the GPU once, and then give shuffled batches of 1,024 with
shifts of two pixels and flips every other time: normalised pixels, and labels. Winnow's side is the training
loop's own (`stages.learning.batches`). Nothing computes with the batches: what is measured is how
often they could come. The sides take 40 passes in turn, long beside the groups that batches are made in
here; the first ones, which prepare, are left out, and so are the last images of a pass, which make no whole
batch. The aim is a ratio of .95 at least.

Two minutes at most on an H100, nearly all of it to unpack the archive and to start. Each round is a line in
the file of --out: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from benchmarks.cifar_images import Cifar
from benchmarks.gpu.machine import ARCHIVE, data_file, describe, make_parser, measured, open_device, wait
from benchmarks.gpu.turns import Rounds, speed_table
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RESULTS = Path(".winnow/bench/gpu/loader.jsonl")
AIM = 0.95
_SHIFT = 2  # pixels, as the peer's own training has it
_WARM_UP = 2  # passes: in its first the peer prepares, and in its second it flips for the first time
_SIDES = (("peer", "CifarLoader"), ("ours", "ours (Feed)"))

Deliver = Callable[[], "tuple[Tensor, Tensor]"]


@dataclass
class Side:
    """A loader that is ready.

    Attributes
    ----------
    run : takes a pass, and gives its last batch: pixels and labels
    held_bytes : of the device's memory, between passes
    peak_bytes : of it, in a pass
    pixels : dtype and memory layout of what is delivered
    """

    run: Deliver
    held_bytes: int = 0
    peak_bytes: int = 0
    pixels: str = ""


def main(argv: list[str] | None = None) -> None:
    """Measure the rounds that are not in the file of results yet, and print the table."""
    options = _parser().parse_args(argv)
    with clean_exit("loader"):
        from benchmarks.cifar_images import read_cifar10
        from benchmarks.gpu.peer import load_peer, peer_at_work, peer_name

        if min(options.passes, options.batch_size) < 1:
            raise WinnowError("--passes and --batch-size must be 1 or more")
        _, device = open_device(options)
        peer = load_peer(options.peer)
        settings = {
            "machine": describe(device),
            "peer": peer_name(options.peer),
            "batch_size": options.batch_size,
            "passes": options.passes,
        }
        rounds = Rounds(options.out, settings, options.rounds, options.minutes)
        cifar = read_cifar10(data_file(options, ARCHIVE))
        batches = len(cifar.labels) // options.batch_size
        if batches == 0:
            raise WinnowError(
                f"{len(cifar.labels)} images make no batch of {options.batch_size}: lower --batch-size"
            )
        with peer_at_work(cifar):
            measure(cifar, peer, rounds, batches, options, device)
        print_table(rounds, batches, len(cifar.labels), options)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("loader", __doc__)
    parser.add_argument("--peer", type=Path, required=True, help="the peer's legacy/airbench94.py")
    parser.add_argument("--rounds", type=int, default=20, help="default 20")
    parser.add_argument("--passes", type=int, default=40, help="of each side in a round; default 40")
    parser.add_argument("--batch-size", type=int, default=1024, help="default 1024")
    parser.add_argument("--minutes", type=float, default=9, help="to end within; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"of the results; default {RESULTS}")
    return parser


def measure(
    cifar: Cifar,
    peer: ModuleType,
    rounds: Rounds,
    batches: int,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Both sides in turns, until there are as many rounds as are wanted or time is over."""
    if not rounds.may_go_on:
        return
    sides = {
        "peer": _ready(lambda: _peer(peer, options.batch_size, device), device),
        "ours": _ready(lambda: _ours(cifar, batches, options.batch_size, device), device),
    }
    images = batches * options.batch_size * options.passes
    while rounds.may_go_on:
        rounds.begin()
        speed = {}
        # Who comes second may find the device warmer: the order changes from round to round.
        for name in sorted(sides, reverse=rounds.left % 2 == 0):
            with measured(device) as span:
                for _ in range(options.passes):
                    sides[name].run()
            speed[name] = images / span.seconds
            beside = sum(side.held_bytes for other, side in sides.items() if other != name)
            sides[name].peak_bytes = max(sides[name].peak_bytes, span.peak_bytes - beside)
        rounds.end(
            {name: speed[name] for name, _ in _SIDES},
            megabytes={name: round(side.peak_bytes / 1e6) for name, side in sides.items()},
            pixels={name: side.pixels for name, side in sides.items()},
        )


def _ready(make: Callable[[], Deliver], device: torch.device) -> Side:
    """A side after its first passes, and what memory it then holds."""
    before = _held(device)
    side = Side(make())
    for _ in range(_WARM_UP):
        pixels, labels = side.run()
    if len(pixels) != len(labels) or pixels.device.type != device.type or labels.device.type != device.type:
        raise RuntimeError("a loader does not deliver pixels and labels on the device")
    layout = "channels-last" if pixels.stride(1) == 1 else "contiguous"
    side.pixels = f"{str(pixels.dtype).removeprefix('torch.')}, {layout}"
    del pixels, labels
    side.held_bytes = _held(device) - before
    return side


def _peer(peer: ModuleType, batch_size: int, device: torch.device) -> Deliver:
    from benchmarks.gpu.peer import FOLDER

    loader = peer.CifarLoader(
        FOLDER, train=True, batch_size=batch_size, aug={"flip": True, "translate": _SHIFT}, gpu=str(device)
    )

    def run() -> tuple[Tensor, Tensor]:
        for pixels, labels in loader:  # noqa: B007 (the last ones)
            pass
        return pixels, labels

    return run


def _ours(cifar: Cifar, batches: int, batch_size: int, device: torch.device) -> Deliver:
    import torch

    from stages.learning.batches import Feed
    from stages.learning.models import build_model, pixel_statistics
    from stages.learning.networks.layers import ModelSpec
    from stages.learning.recipe import Recipe

    shape: tuple[int, int, int] = cifar.images.shape[1:]
    # Any network will do: they all normalise in the same way.
    model = build_model(
        ModelSpec("small_cnn", cifar.classes, shape, *pixel_statistics(cifar.images)), seed=0
    ).to(device)
    recipe = Recipe(
        epochs=1,
        steps_per_epoch=batches,
        batch_size=batch_size,
        learning_rate=0.1,
        shift=_SHIFT,
        flip=True,
        alternate_flips=True,
    )
    feed = Feed(cifar.images, cifar.labels, recipe, seed=0, device=device, normalise=model.normalise)
    labels = torch.from_numpy(cifar.labels).to(device)

    def run() -> tuple[Tensor, Tensor]:
        for _ in range(batches):
            batch = feed.next()
            given = labels[batch.index]
        return batch.pixels, given

    return run


def _held(device: torch.device) -> int:
    """Bytes of the device that tensors hold now; 0 on a CPU."""
    import torch

    wait(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def print_table(rounds: Rounds, batches: int, count: int, options: argparse.Namespace) -> None:
    """Images a second of both, their ratio, what they deliver and the memory that they take."""
    if not rounds.rows:
        raise WinnowError("no round ended in time: raise --minutes")
    print(f"\nloader alone · {rounds.settings['machine']}\npeer: {rounds.settings['peer']}")
    print(
        f"{count:,} images of 32×32 in {batches} batches of {options.batch_size}, shift {_SHIFT}, flips "
        f"every other time; {len(rounds.rows)} rounds of {options.passes} passes each in turns; medians\n"
    )
    print(speed_table(rounds, "ours", _SIDES))
    for name, text in _SIDES:
        most = max(row["megabytes"][name] for row in rounds.rows)
        print(f"{text}: pixels {rounds.rows[-1]['pixels'][name]}; GPU memory at most {most:,} MB")
    ratio = statistics.median(rounds.ratios("ours", "peer"))
    print(f"ours / CifarLoader {ratio:.3f}; the aim is {AIM} at least")


if __name__ == "__main__":
    main()
