"""Classify a folder of images by a trained model, into a CSV: `python -m stages.predict FOLDER`.

No stage of the pipeline: it reads a model and images, writes one file, and tells DVC and MLflow nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from stages.dataset.files import new_file
from stages.errors import UnusableError, WinnowError
from stages.ingestion.source import printable
from stages.ingestion.trees import FolderTree
from stages.learning.names import Device, TestTime
from stages.workflow.models import model_folder
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.models import Classifier
    from stages.learning.networks.layers import ModelSpec

_EXAMPLES = """examples:
  python -m stages.predict holiday
  python -m stages.predict holiday --model models:/winnow@champion --out holiday.csv

The columns: file, relative to FOLDER; label; confidence, the label's probability; p_ and each class; error,
why a file could not be read, where the others are empty. Hidden files are passed over, links out of FOLDER
are not followed. Exit status 2 where no file could be read."""


class Read(NamedTuple):
    """A file below the folder: its pixels as the model takes them, or why there are none."""

    name: str
    pixels: NDArray[np.uint8] | None
    error: str = ""


def main(argv: list[str] | None = None) -> None:
    """Classify every image below a folder, and write a row for each file to a CSV."""
    options = _parser().parse_args(argv)
    with clean_exit("predict"), model_folder(options.model) as folder:
        from stages.learning.devices import choose_device
        from stages.learning.store import load_model

        choose_device(options.device)
        model = load_model(folder)
        if model.spec.preprocessing is None:
            raise WinnowError(
                f"{options.model} does not say how images are resized: train it again, or add to its "
                'model.json "preprocessing": {"resize": "crop", "color": "rgb"}, as in params.yaml then'
            )
        out: Path = options.out
        if out.is_dir():
            raise WinnowError(f"--out {out} is a folder: name a file in it")
        if not options.folder.is_dir():
            raise WinnowError(f"{options.folder} is not a folder: name one with images in it")
        tree = FolderTree(options.folder)
        ignored = {path.resolve() for path in (out, out.with_name(out.name + ".partial"))}
        with new_file(out) as file:
            done, failed = write_predictions(
                file, tree, model, options.batch_size, options.device, options.test_time, ignored
            )
            if not done and not failed:
                raise WinnowError(f"{options.folder} holds no files")
        print(f"predict: {out}: {done} images" + (f"; {failed} files could not be read" if failed else ""))
        if not done:
            raise WinnowError(f"none of the {failed} files in {options.folder} could be read: {out} says why")


def write_predictions(
    path: Path,
    tree: FolderTree,
    model: Classifier,
    batch_size: int,
    device: Device,
    test_time: TestTime,
    ignored: frozenset[Path] | set[Path] = frozenset(),
) -> tuple[int, int]:
    """Classify all files of `tree` and write the table to `path`, a batch at a time.

    Parameters
    ----------
    ignored : files that are not looked at, since this writes them; resolved

    Returns
    -------
    How many files were classified, and how many could not be read.
    """
    root = Path(tree.shown).resolve()
    names = (name for name in tree.walk() if root / name not in ignored)
    done = failed = 0
    with (
        path.open("w", encoding="utf-8", newline="") as file,
        tqdm(total=tree.count(), desc="predict", unit="img", mininterval=0.5) as progress,
    ):
        items = read_ahead(tree, names, model.spec, 2 * batch_size)
        while batch := list(itertools.islice(items, batch_size)):
            table = classify(batch, model, device, test_time)
            table.to_csv(file, header=not done + failed, index=False, float_format="%.6g")
            unread = int((table["error"] != "").sum())
            done, failed = done + len(table) - unread, failed + unread
            progress.update(len(table))
        refused = [Read(row.path, None, f"{row.reason}: {row.detail}") for row in tree.refused]
        if refused:
            classify(refused, model, device, test_time).to_csv(file, header=not done + failed, index=False)
    return done, failed + len(refused)


def classify(batch: list[Read], model: Classifier, device: Device, test_time: TestTime) -> pd.DataFrame:
    """Make a row for each file in `batch`: `file`, `label`, `confidence`, `p_<class>`, `error`."""
    from stages.learning.prediction import predict

    classes = model.spec.classes
    table = pd.DataFrame({"file": [printable(item.name) for item in batch]})
    pixels = [item.pixels for item in batch if item.pixels is not None]
    readable = np.array([item.pixels is not None for item in batch])
    labels = np.full(len(batch), "", object)
    probabilities = np.full((len(batch), len(classes)), np.nan, np.float32)
    if pixels:
        probabilities[readable], _ = predict(model, np.stack(pixels), device, views=test_time)
        labels[readable] = np.asarray(classes, object)[probabilities[readable].argmax(1)]
    table["label"] = labels
    table["confidence"] = probabilities.max(1)
    named = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in classes])
    return pd.concat([table, named], axis=1).assign(error=[item.error for item in batch])


def read_ahead(tree: FolderTree, names: Iterable[str], spec: ModelSpec, window: int) -> Iterator[Read]:
    """Read the files of these names in this order, by threads; at most `window` are in memory.

    Decoders let other threads go on, and while the model computes, the next files are read.
    """
    from stages.serving.inputs import prepare

    def read(name: str) -> Read:
        (item,) = tree.payload([name]).read()
        try:
            if isinstance(item, UnusableError):
                raise item
            return Read(name, prepare(item, spec))
        except UnusableError as error:
            return Read(name, None, str(error))

    waiting: deque[Future[Read]] = deque()
    # What is wrong with a file, the table says better than a decoder's warnings.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        try:
            for name in names:
                waiting.append(pool.submit(read, name))
                if len(waiting) >= window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.predict",
        description=main.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="images, in folders of any depth")
    parser.add_argument(
        "--model",
        default="models/finetune",
        help="a folder that train, finetune or baseline wrote, or an MLflow address models:/NAME@ALIAS "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.csv"), help="the table (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=_positive, default=256, help="images at a time (default: %(default)s)"
    )
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--test-time",
        choices=get_args(TestTime),
        default="none",
        help="average over flipped or shifted copies of each image (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 2**20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images: 1 or more")
    return int(text)


if __name__ == "__main__":
    main(sys.argv[1:])
