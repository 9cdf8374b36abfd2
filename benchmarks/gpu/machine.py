"""What all measurements on a GPU share: their options, what machine it was, seconds and memory."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from benchmarks.measuring import bench_data
from stages.errors import WinnowError

if TYPE_CHECKING:
    import torch

    from stages.learning.names import Device

ARCHIVE, PEOPLE = "cifar10.tar.gz", "cifar10n_labels.csv.gz"


def make_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """A parser with --device and --data; `name` is that of the module in benchmarks.gpu."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.gpu.{name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="default cuda; cpu is for trying it out"
    )
    parser.add_argument(
        "--data", type=Path, help=f"the folder with {ARCHIVE}; default WINNOW_BENCH_DATA or ../shared/data"
    )
    return parser


def open_device(options: argparse.Namespace) -> tuple[Device, torch.device]:
    """The device by its name for Winnow and as torch has it; says what machine this is.

    Raises
    ------
    WinnowError
        Where --device is cuda and there is none.
    """
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise WinnowError("there is no NVIDIA GPU here: these measurements are of one (--device cpu tries)")
    device = torch.device(options.device)
    print(describe(device), flush=True)
    return cast("Device", options.device), device


def describe(device: torch.device) -> str:
    """Device and versions, one line."""
    import numpy
    import torch
    import torchvision

    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        name = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
        name += f" · CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return (
        f"{name} · torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"numpy {numpy.__version__}, Python {platform.python_version()}"
    )


def data_file(options: argparse.Namespace, name: str) -> Path:
    """A file of --data.

    Raises
    ------
    WinnowError
        Where it is not there.
    """
    folder = options.data or bench_data()
    if folder is None or not (folder / name).is_file():
        raise WinnowError(f"there is no {name} in --data, WINNOW_BENCH_DATA or ../shared/data: put it there")
    return Path(folder / name)


@dataclass
class Span:
    """What a piece of work took.

    Attributes
    ----------
    seconds : from the moment all earlier work of the device was done until all of its own was
    peak_bytes : of the device's memory that torch held for tensors, at most; 0 on a CPU
    """

    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def measured(device: torch.device) -> Iterator[Span]:
    """Seconds and peak memory of what is done within; the device is waited for before and after."""
    import torch

    span = Span()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    yield span
    wait(device)
    span.seconds = time.perf_counter() - start
    if device.type == "cuda":
        span.peak_bytes = torch.cuda.max_memory_allocated(device)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
