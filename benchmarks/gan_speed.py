"""One step of the GAN against the same networks in plain fp32, NCHW, fed by a DataLoader.

    python -m benchmarks.gan_speed
    python -m benchmarks.gan_speed --device cuda --width 64 --batch-size 256

Same seed, losses, penalties, DiffAugment and moving average in both; only precision, memory layout and
the way to the data differ. The two take turns, round by round, each round as many steps as lie between
some gradient penalties, so that each has its share of them; a first round of each does not count. The
images are noise in ten classes: a step takes the same time on any. Printed are milliseconds a step and
the ratio of each pair of rounds: median, least and greatest. Three minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stages.learning.devices import choose_device, to_device
from stages.synthesis.gan_trainer import GANConfig, GANTrainer
from stages.workflow.stage import clean_exit

_IMAGES, _CLASSES = 2000, 10
_PENALTIES = 2  # a round

Step = Callable[[], None]


class Images(Dataset[tuple[Tensor, int]]):
    """uint8 images N×H×W×C one by one, as C×H×W on the scale from -1 to 1, with their labels."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = torch.from_numpy(self.images[index]).permute(2, 0, 1).float().div(127.5).sub(1)
        return pixels, int(self.labels[index])


class Batches(Sampler[list[int]]):
    """Endless batches of indices, as the trainer draws them."""

    def __init__(self, trainer: GANTrainer, members: list[Tensor]) -> None:
        self.trainer, self.members = trainer, members

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self.trainer.draw(self.members).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gan_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="pixels; default 32")
    parser.add_argument("--width", type=int, default=32, help="channels at full resolution; default 32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader; default 0")
    options = parser.parse_args(argv)
    with clean_exit("gan_speed"):
        torch.set_num_threads(options.threads)
        fast, plain = measure(options)
        ratios = [slow / quick for slow, quick in zip(plain, fast, strict=True)]
        for name, values, unit in (
            ("Winnow", [1000 * each for each in fast], "ms a step"),
            ("plain", [1000 * each for each in plain], "ms a step"),
            ("ratio", ratios, "×"),
        ):
            middle = statistics.median(values)
            print(f"{name:8}{middle:9.2f} ({min(values):.2f} to {max(values):.2f}) {unit}")


def measure(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds a step of each round, of Winnow's and of the plain one."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (_IMAGES, options.size, options.size, 3), dtype=np.uint8)
    labels = np.arange(_IMAGES) % _CLASSES
    device = choose_device(options.device)
    print(f"{device}, {options.threads} threads, {images.shape[1:]}, batch {options.batch_size}")
    steps = [make(images, labels, device, options) for make in (fast_step, plain_step)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(options.rounds + 1):
        for step, taken in zip(steps, seconds, strict=True):
            spent = _time(step, _PENALTIES * GANConfig(1, 8, 1, 8, 1.0).penalty_every, device)
            if number:
                taken.append(spent)
    return seconds


def fast_step(
    images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device, options: argparse.Namespace
) -> Step:
    """A step as `train_gan` takes it: the dataset on the device, bf16 where it is fast, channels last."""
    trainer, members = _trainer(labels, device, options, fast=True)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(device)
    on_device = torch.from_numpy(labels).to(device)

    def step() -> None:
        index = to_device(trainer.draw(members), device)
        trainer.step(pixels[index], on_device[index])

    return step


def plain_step(
    images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device, options: argparse.Namespace
) -> Step:
    """The same step in fp32 and NCHW, batches from a DataLoader."""
    trainer, members = _trainer(labels, device, options, fast=False)
    loader = DataLoader(
        Images(images, labels), batch_sampler=Batches(trainer, members), num_workers=options.workers
    )
    batches = iter(loader)

    def step() -> None:
        real, real_labels = next(batches)
        trainer.step(real.to(device), real_labels.to(device))

    return step


def _trainer(
    labels: NDArray[np.int64], device: torch.device, options: argparse.Namespace, *, fast: bool
) -> tuple[GANTrainer, list[Tensor]]:
    config = GANConfig(10**6, options.batch_size, 64, options.width, 2e-4)
    shape = (options.size, options.size, 3)
    trainer = GANTrainer(shape, np.bincount(labels), config, 0, device, fast=fast)
    return trainer, [torch.from_numpy(np.flatnonzero(labels == label)) for label in range(_CLASSES)]


def _time(step: Step, count: int, device: torch.device) -> float:
    """Seconds a step."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    main()
