"""What the GAN costs on a GPU, and how good its images are after minutes on a tenth of CIFAR-10.

    python -m benchmarks.gpu.gan
    python -m benchmarks.gpu.gan --parts quality --width 96
    python -m benchmarks.gpu.gan --inception pt_inception-2015-12-05-6726825d.pth

Three parts (`--parts`):

- `stage`: seconds of `train_gan` on 1,000 real images with the choices of params.yaml, as the stage
  `synthesize` trains it, once for each of `--seeds`;
- `steps`: images a second of its training steps at several batch sizes, in turns with the same networks in
  plain fp32, NCHW, fed by a DataLoader;
- `quality`: FID, KID, density and coverage after `--minutes` of training on 500 images of each class, against
  the 10,000 test images, beside 10,000 other real images that nothing has seen. They are compared in the
  features of a judge, two small CNNs trained on further training images; with --inception, in Inception's
  too, which alone compare with published figures. The judge also chooses each class's snapshot, by images
  that are not the GAN's; *last snapshot* does without, and rests on the 5,000 images alone.

An H100 should take nine minutes: half a minute for the archive, one for `stage` and `steps`, one for the
judge, six to seven for the GAN, one for the figures. How many steps fit the minutes is measured first, and
the GAN gets less than `--minutes` where they would end after nine and a half in all. Each result is a line in
the file of --out, and the GAN keeps checkpoints under .winnow/bench/gpu: a run that was killed goes on. After
a change of the GAN's code all is measured anew.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.gan_quality import Bench, Settings, default_config, measure_quality
from benchmarks.gpu.gan_tables import quality_table, stage_table, steps_table
from benchmarks.gpu.machine import ARCHIVE, data_file, make_parser, measured, open_device
from benchmarks.gpu.series import add_settings, given_settings
from benchmarks.results import Row
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    import torch

    from benchmarks.cifar_images import Cifar
    from benchmarks.gan_speed import Step

RESULTS = Path(".winnow/bench/gpu/gan.jsonl")
PARTS = ("stage", "steps", "quality")
_WARM_UP = 16  # steps: two gradient penalties


def main(argv: list[str] | None = None) -> None:
    """Measure what is not in the file of results yet, and print the tables."""
    options = _parser().parse_args(argv)
    with clean_exit("gan"):
        from benchmarks.cifar_images import read_cifar10

        started = time.monotonic()
        if options.inception is not None and not options.inception.is_file():
            raise WinnowError(f"--inception {options.inception}: there is no such file")
        name, device = open_device(options)
        bench = Bench(name, device, options.out.resolve(), started)
        cifar = read_cifar10(data_file(options, ARCHIVE))
        tables = []
        if "stage" in options.parts:
            tables.append(stage_table([measure_stage(cifar, seed, options, bench) for seed in options.seeds]))
        if "steps" in options.parts:
            tables.append(steps_table(measure_steps(options, bench)))
        if "quality" in options.parts:
            settings = Settings(**given_settings(options, Settings()))
            tables.append(quality_table(measure_quality(cifar, settings, options.inception, bench)))
        print("\n" + "\n\n".join(tables))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("gan", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of `stage`; default 0 1 2")
    parser.add_argument("--real", type=int, default=1000, help="images of `stage`; default 1000")
    parser.add_argument("--stage-steps", type=int, help="of `stage`; default: those of params.yaml")
    parser.add_argument("--rounds", type=int, default=3, help="of `steps`; default 3")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64], help="of `steps`; default 16 64")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[32, 128, 512], help="of `steps`; default 32 128 512"
    )
    parser.add_argument("--inception", type=Path, help="weights of Inception-v3, a state dict")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"of the results; default {RESULTS}")
    add_settings(parser, Settings())
    return parser


def measure_stage(cifar: Cifar, seed: int, options: argparse.Namespace, bench: Bench) -> Row:
    """Seconds and peak memory of one training as the stage has it."""
    from stages.synthesis.gan_training import train_gan

    config = default_config()
    config = replace(config, steps=options.stage_steps or config.steps)
    facts = {"part": "stage", "seed": seed, "real": options.real, "config": asdict(config)}
    if row := bench.find(facts):
        return row
    images, labels = some_of_each(cifar, options.real // len(cifar.classes), seed)
    short = replace(config, steps=_WARM_UP)  # loads cuDNN, and lets it choose its kernels
    train_gan(images, labels, short, seed=seed, device=bench.name, description="")
    with measured(bench.device) as span:
        gan = train_gan(images, labels, config, seed=seed, device=bench.name, description="")
    print(f"stage, seed {seed}: {span.seconds:.1f} s", flush=True)
    return bench.keep(
        facts, images=len(images), seconds=span.seconds, peak_bytes=span.peak_bytes, notes=gan.notes
    )


def some_of_each(cifar: Cifar, count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """So many training images of each class, drawn at random, and their labels."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(cifar.labels == k))[:count] for k in range(len(cifar.classes))]
    chosen = np.concatenate(rows)
    if count < 1 or len(chosen) < count * len(cifar.classes):
        raise WinnowError(f"{count} images of each class are asked for: choose another --real")
    return cifar.images[chosen], cifar.labels[chosen]


def measure_steps(options: argparse.Namespace, bench: Bench) -> list[Row]:
    """A row for each width and batch size: images a second of each round, ours and the plain side's."""
    rows = []
    for width in options.widths:
        for batch_size in options.batch_sizes:
            facts = {"part": "steps", "width": width, "batch_size": batch_size, "rounds": options.rounds}
            row = bench.find(facts)
            if row is None:
                speeds = _in_turns(width, batch_size, options.rounds, bench.device)
                row = bench.keep(facts, speeds=speeds)
                print(
                    f"steps, width {width}, batch {batch_size}: {speeds['ours'][-1]:,.0f} images/s",
                    flush=True,
                )
            rows.append(row)
    return rows


def _in_turns(width: int, batch_size: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Images a second of each round, the first one not counted; a round has two gradient penalties."""
    from benchmarks.gan_speed import fast_step, plain_step

    choice = argparse.Namespace(size=32, width=width, batch_size=batch_size, workers=0)
    images = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    sides: dict[str, Step] = {
        "ours": fast_step(images, labels, device, choice),
        "plain": plain_step(images, labels, device, choice),
    }
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, step in sides.items():
            with measured(device) as span:
                for _ in range(_WARM_UP):
                    step()
            if number:
                speeds[side].append(_WARM_UP * batch_size / span.seconds)
    return speeds


if __name__ == "__main__":
    main()
