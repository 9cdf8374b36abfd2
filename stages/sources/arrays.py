"""The catalogue's arrays: one `.npz` with images, labels, the official split and class names."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.dataset import Split, pixel_id
from stages.errors import WinnowError
from stages.sources.base import Item, Picture, Quarantined

_SPLITS = ("train", "val", "test")


class NpzArrays:
    """Reads an `.npz` of `images`, `labels`, `classes` and, where the source brings one, `split`.

    `images` are uint8, N×H×W×1 or N×H×W×3; `labels` integers, N; `classes` names; `split` N times
    `train`, `val` or `test`. They are held in memory: the public sets that come as arrays are small.

    Parameters
    ----------
    path : the file

    Raises
    ------
    WinnowError
        Where it is no such file; nothing in it is ever unpickled.
    """

    refused: tuple[Quarantined, ...] = ()
    unlabeled = 0

    def __init__(self, path: Path) -> None:
        arrays = _load(path)
        self._images = _checked_images(arrays["images"], path)
        names = [str(name) for name in arrays["classes"]]
        labels = _checked_labels(arrays["labels"], len(self._images), len(names), path)
        splits = _checked_splits(arrays.get("split"), len(labels), path)
        if len(set(names)) < len(names):
            raise WinnowError(f"{path}: the same name stands twice in `classes`")
        self.classes = names
        self.items = [
            Item(f"{path.name}#{i}", names[label], split)
            for i, (label, split) in enumerate(zip(labels, splits, strict=True))
        ]

    def read(self, index: int) -> Picture:
        """Take one row of the array; see `base.Source.read`."""
        pixels = self._images[index]
        sample_id = pixel_id(pixels)
        # Every row has the same shape: equal ids are equal pixels.
        return Picture(
            sample_id, sample_id, Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {
                name: archive[name] for name in ("images", "labels", "classes", "split") if name in archive
            }
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise WinnowError(f"{path} is not an .npz of plain arrays: {error}") from error
    missing = [name for name in ("images", "labels", "classes") if name not in arrays]
    if missing:
        raise WinnowError(f"{path} lacks {', '.join(missing)}: images, labels and classes are needed")
    return arrays


def _checked_images(images: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise WinnowError(
            f"{path}: images must be uint8 N×H×W×1 or N×H×W×3, not {images.dtype} {images.shape}"
        )
    return images


def _checked_labels(labels: NDArray[Any], count: int, classes: int, path: Path) -> list[int]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise WinnowError(f"{path}: labels must be {count} integers, not {labels.dtype} {labels.shape}")
    if count and not 0 <= labels.min() <= labels.max() < classes:
        raise WinnowError(
            f"{path}: labels run from {labels.min()} to {labels.max()}, but there are {classes} classes"
        )
    return [int(label) for label in labels]


def _checked_splits(split: NDArray[Any] | None, count: int, path: Path) -> list[Split | None]:
    if split is None:
        return [None] * count
    names = [str(name) for name in split]
    unknown = sorted(set(names) - set(_SPLITS))
    if len(names) != count or unknown:
        wrong = f"{unknown[0]!r}" if unknown else f"{len(names)} entries"
        raise WinnowError(f"{path}: split must say train, val or test for {count} images, not {wrong}")
    return cast("list[Split | None]", names)
