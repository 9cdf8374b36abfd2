"""The peer of the fast training loop: cifar10-airbench's plain script, from a clone of its repository.

    git clone https://github.com/KellerJordan/cifar10-airbench

`legacy/airbench94.py` (MIT licence; Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv
2404.00498) is run as it is, out of that clone: nothing of it is here. It finds its data in the working
directory, which `peer_at_work` sees to, and trains with cuDNN trying its algorithms out: `load_peer` keeps
that to the peer's own training.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from benchmarks.cifar_images import Cifar
from stages.errors import WinnowError

REPOSITORY = "https://github.com/KellerJordan/cifar10-airbench"
FOLDER = "cifar10"  # where the peer looks for its data
_SCRIPT = "legacy/airbench94.py"
_NEEDED = ("CifarLoader", "main", "hyp")


def load_peer(path: Path) -> ModuleType:
    """The peer's script as a module; it only defines things.

    That cuDNN tries its algorithms out, which the script turns on for the whole process, is so within its
    `main` alone: what is measured beside it is as it is without it.

    Raises
    ------
    WinnowError
        Where there is no such file, it does not load, or it is another one; says how to get it.
    """
    import torch

    if not path.is_file():
        raise WinnowError(f"there is no {path}: git clone {REPOSITORY}, and give --peer its {_SCRIPT}")
    spec = importlib.util.spec_from_file_location("winnow_peer", path)
    if spec is None or spec.loader is None:
        raise WinnowError(f"{path} is no Python file: give --peer the {_SCRIPT} of {REPOSITORY}")
    module = importlib.util.module_from_spec(spec)
    before = torch.backends.cudnn.benchmark
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, UnicodeDecodeError) as error:
        raise WinnowError(
            f"{path} does not load ({error}): give --peer the {_SCRIPT} of {REPOSITORY}"
        ) from error
    finally:
        torch.backends.cudnn.benchmark = before
    missing = [name for name in _NEEDED if not hasattr(module, name)]
    if missing:
        raise WinnowError(f"{path} has no {', '.join(missing)}: give --peer the {_SCRIPT} of {REPOSITORY}")
    # A decorator too: in force while a call lasts.
    vars(module)["main"] = algorithms_tried()(module.main)
    return module


def peer_name(path: Path) -> str:
    """What is measured against: the file's name, and the start of its SHA-256."""
    return f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def write_peer_data(cifar: Cifar, folder: Path) -> None:
    """Write `train.pt` and `test.pt` as the peer's loader reads them.

    The images are shuffled, always in the same way: the peer whitens by the first 5,000, which in CIFAR-10's
    own files are of all classes, and here would be of one.

    Parameters
    ----------
    folder : made where it is not there
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in (
        ("train", cifar.images, cifar.labels),
        ("test", cifar.test_images, cifar.test_labels),
    ):
        order: NDArray[np.int64] = np.random.default_rng(0).permutation(len(labels))
        torch.save(
            {
                "images": torch.from_numpy(images[order]),
                "labels": torch.from_numpy(labels[order]),
                "classes": list(cifar.classes),
            },
            folder / f"{name}.pt",
        )


@contextmanager
def algorithms_tried() -> Iterator[None]:
    """cuDNN tries its algorithms for each new shape, and takes the fastest; afterwards as before."""
    import torch

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def peer_at_work(cifar: Cifar) -> Iterator[None]:
    """In a temporary working directory with the peer's data.

    Relative paths mean other places within: resolve them before.
    """
    with TemporaryDirectory(prefix="winnow-peer-") as place:
        write_peer_data(cifar, Path(place) / FOLDER)
        with chdir(place):
            yield
