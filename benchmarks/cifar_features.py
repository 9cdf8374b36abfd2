"""CIFAR-10 images as features: what the project's small network sees in images it was not trained on.

The network learns from clean labels of other images. So probabilities from these features are what one
gets with a pretrained backbone: a few seconds a model, at an accuracy like that of many real projects.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from benchmarks.planting import Arrays, Floats, Labels, kept
from stages.dataset.base import View
from stages.learning.loop import fit
from stages.learning.models import build_model, pixel_statistics
from stages.learning.networks.layers import ModelSpec
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe, steps_per_epoch
from stages.learning.resume import code_files

PEOPLE = ("aggregate", "random1", "random2", "random3", "worst")  # CIFAR-10N's sets of human labels
_TRAINED_ON = range(1500)  # numbers of the files of each class
_SEEN = range(2000, 3000)
_EPOCHS, _BATCH, _RATE = 8, 128, 0.005


class Features(NamedTuple):
    """10,000 images, 1,000 a class.

    Attributes
    ----------
    features : 10,000×D, each column of mean 0 and standard deviation 1
    pixels : 10,000×192, likewise; the images at 8×8 pixels, which know nothing of the network
    true : 10,000; 0 to 9
    given : by name of `PEOPLE` the labels that people gave
    """

    features: Floats
    pixels: Floats
    true: Labels
    given: dict[str, Labels]


def cifar_features(data: Path) -> Features:
    """Features and labels; the network is trained once, some minutes on one core.

    Parameters
    ----------
    data : the folder with cifar10.tar.gz and cifar10n_labels.csv.gz
    """
    table = pd.read_csv(data / "cifar10n_labels.csv.gz")
    number = table["path"].str.extract(r"(\d+)\.jpg$", expand=False).astype(int)
    classes = sorted(table["clean"].unique())
    trained_on, seen = table[number.isin(_TRAINED_ON)], table[number.isin(_SEEN)]
    inputs = {
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in code_files(["learning"])],
        "recipe": (_TRAINED_ON, _SEEN, _EPOCHS, _BATCH, _RATE),
    }

    def make() -> Arrays:
        images = _read(data / "cifar10.tar.gz", [*trained_on["path"], *seen["path"]])
        labels = pd.Index(classes).get_indexer(trained_on["clean"]).astype(np.int64)
        return _embed(images[: len(trained_on)], labels, images[len(trained_on) :], classes)

    def shrink() -> Arrays:
        images = _read(data / "cifar10.tar.gz", [*seen["path"]])
        return {"pixels": images.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4)).reshape(len(images), -1)}

    embeddings = kept("features", inputs, make)["embeddings"]
    pixels = kept("pixels", {"seen": _SEEN}, shrink)["pixels"]
    columns = {name: pd.Index(classes).get_indexer(seen[name]) for name in ("clean", *PEOPLE)}
    return Features(
        _standardised(embeddings),
        _standardised(pixels),
        columns["clean"].astype(np.int64),
        {name: columns[name].astype(np.int64) for name in PEOPLE},
    )


def _standardised(columns: NDArray[np.floating]) -> Floats:
    values = columns.astype(np.float64)
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-6)


def _embed(
    images: NDArray[np.uint8], labels: Labels, others: NDArray[np.uint8], classes: list[str]
) -> Arrays:
    """Train on some images, look at others."""
    spec = ModelSpec("small_cnn", classes, images.shape[1:], *pixel_statistics(images))
    names = np.array([str(i) for i in range(len(images))], dtype=object)
    view = View(images, labels, np.ones(len(images), np.float32), names, classes)
    steps = steps_per_epoch(len(images), _BATCH)
    recipe = Recipe(_EPOCHS, steps, _BATCH, _RATE, shift=2, flip=True)
    model = build_model(spec, seed=0)
    fit(model, view, recipe, seed=0, device="cpu", description="network for features")
    return {"embeddings": predict(model, others, "cpu")[1]}


def _read(archive: Path, names: list[str]) -> NDArray[np.uint8]:
    """The images of those names, in this order: uint8, N×32×32×3."""
    place = {name: i for i, name in enumerate(names)}
    images = np.empty((len(names), 32, 32, 3), np.uint8)
    missing = set(names)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/")[2]  # without the archive's own folder
            file = tar.extractfile(member) if name in place else None
            if file is not None:
                images[place[name]] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                missing.discard(name)
    if missing:
        raise ValueError(f"{len(missing)} images are not in {archive}")
    return images
