"""Fetch one set of the catalogue (`data/raw/dvc.yaml`) to `data/raw/<name>/`.

`digits` comes with scikit-learn and is written as PNG files in class folders; the others come
through torchvision and are written as one `.npz` (see `ingestion/arrays.py` for what is in it).
Nothing here reads params.yaml: a set is the same whatever is done with it.
"""

from __future__ import annotations

import argparse
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.errors import WinnowError
from stages.workflow.runs import stage_run
from stages.workflow.stage import clean_exit, end_with_parent, only_writer, require_root

RAW = Path("data/raw")
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
NAMES = ("digits", *TORCHVISION)
_NETWORK_SECONDS = 60.0  # without an answer, before a download is given up


def fetch(name: str, root: Path = RAW, given: Path | None = None) -> Path:
    """Fetch a set into `root/<name>`; it is there whole or not at all.

    Parameters
    ----------
    name : one of `NAMES`
    root : the folder of all sets
    given : a folder with the set as torchvision lays it out, brought by hand; None to download

    Returns
    -------
    The set's folder.

    Raises
    ------
    WinnowError
        Where it can be neither downloaded nor read from `given`.
    """
    # Not files.new_folder: were that module a dependency, its every change would download anew.
    target, partial = root / name, root / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "set").mkdir(parents=True)
        if name == "digits":
            write_digits(partial / "set")
        else:
            arrays = read_torchvision(name, given or partial / "download", download=given is None)
            np.savez_compressed(partial / "set" / f"{name}.npz", allow_pickle=False, **arrays)
        shutil.rmtree(target, ignore_errors=True)
        (partial / "set").rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def write_digits(folder: Path) -> None:
    """Write scikit-learn's scans of handwritten digits as `<class>/NNNN.png`, 8×8, 8-bit grey.

    Their 17 grey levels, 0 to 16, are spread over 0 to 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
        path = folder / str(label) / f"{index:04d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)


def read_torchvision(name: str, root: Path, *, download: bool) -> dict[str, NDArray[Any]]:
    """Read both official splits of one of torchvision's sets, train first.

    Parameters
    ----------
    name : a key of `TORCHVISION`
    root : the folder that torchvision downloads to, or finds the set in
    download : whether it may download; with a progress bar

    Returns
    -------
    `images` uint8 N×H×W×C, `labels` int64 N, `split` N times `train` or `test`, `classes` names.

    Raises
    ------
    WinnowError
        Where the set cannot be downloaded, or is not in `root`.
    """
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[name])
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        # CIFAR-10's files are pickles, which torchvision opens only once their MD5 is the
        # published one.
        splits = {split: kind(root, train=split == "train", download=download) for split in ("train", "test")}
    except (OSError, RuntimeError, ValueError) as error:
        raise WinnowError(_by_hand(name, kind, root, download, error)) from error
    finally:
        socket.setdefaulttimeout(timeout)
    arrays = [np.asarray(split.data) for split in splits.values()]
    images = [array[..., np.newaxis] if array.ndim == 3 else array for array in arrays]
    counts = [len(array) for array in images]
    return {
        "images": np.concatenate(images),
        "labels": np.concatenate([np.asarray(split.targets, dtype=np.int64) for split in splits.values()]),
        "split": np.repeat(np.array(list(splits)), counts),
        # MNIST's classes are called "0 - zero" and so on.
        "classes": np.array([str(label).split(" - ")[0] for label in splits["train"].classes]),
    }


def _by_hand(name: str, kind: Any, root: Path, download: bool, error: Exception) -> str:
    """Say what failed, and how to bring the files without a network."""
    if name == "cifar10":
        where, files = "FOLDER", f"{kind.url} unpacked"
    else:
        where = f"FOLDER/{kind.__name__}/raw"
        files = f"{', '.join(file for file, _ in kind.resources)} of {kind.mirrors[0]}, each unpacked"
    what = f"{name} could not be downloaded" if download else f"{name} could not be read from {root}"
    detail = " ".join(str(error).split())
    return (
        f"{what}: {detail}. Check the network, or bring it by hand: put {files}, under {where}, run "
        f"`python -m stages.fetch {name} --from FOLDER`, then `dvc commit --force data/raw/dvc.yaml:{name}`"
    )


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and fetch one set."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.fetch",
        description=f"Fetch one set of the catalogue into {RAW}/<name>.",
        epilog="`dvc repro` runs it when ingest.source in params.yaml names the set.",
    )
    parser.add_argument("name", choices=NAMES, help="which set")
    parser.add_argument(
        "--from",
        dest="given",
        type=Path,
        metavar="FOLDER",
        help="read torchvision's files from this folder instead of the network",
    )
    options = parser.parse_args(argv)
    with clean_exit("fetch"):
        end_with_parent()
        require_root()
        if options.given is not None and options.name == "digits":
            raise WinnowError("digits comes with scikit-learn: leave --from out")
        with only_writer(f"fetch-{options.name}"), stage_run(options.name, None):
            print(f"fetch: {options.name} is in {fetch(options.name, given=options.given)}")


if __name__ == "__main__":
    main()
