"""What a pipeline does with all of its images, on synthetic ones: inputs, and the work on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import ROOT

if TYPE_CHECKING:
    import pandas as pd

    from stages.learning.models import Classifier
    from stages.learning.names import Device

SIDE, CLASSES = 32, 10
IMAGE_BYTES = SIDE * SIDE * 3
_BLOCK = 10_000  # images that are drawn; all others repeat them
_EMBEDDING = 128  # of the small CNN
_NAMES = [f"class {number}" for number in range(CLASSES)]

Work = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """How many images, and where.

    Attributes
    ----------
    place : an empty folder
    """

    images: int
    batch_size: int
    device: Device
    place: Path


@dataclass(frozen=True)
class Cost:
    """Something that a pipeline does.

    Attributes
    ----------
    prepare : makes the inputs, and gives what is then measured
    on_device : whether it computes with torch
    needs : a library that it cannot do without, and that a GPU machine may lack
    """

    prepare: Callable[[Job], Work]
    on_device: bool = False
    needs: str | None = None


def _images(count: int) -> NDArray[np.uint8]:
    block = np.random.default_rng(0).integers(0, 256, (min(_BLOCK, count), SIDE, SIDE, 3), dtype=np.uint8)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for start in range(0, count, len(block)):
        images[start : start + len(block)] = block[: count - start]
    return images


def _model(architecture: str, images: NDArray[np.uint8]) -> Classifier:
    from stages.learning.models import build_model, pixel_statistics
    from stages.learning.networks.layers import ModelSpec

    statistics = pixel_statistics(images[:_BLOCK])
    return build_model(ModelSpec(architecture, _NAMES, (SIDE, SIDE, 3), *statistics), seed=0)


def _epoch(architecture: str, job: Job) -> Work:
    """One pass of the training loop; not compiled, so that all sizes compute the same."""
    from stages.dataset.base import View
    from stages.learning.loop import fit
    from stages.learning.recipe import Recipe

    images = _images(job.images)
    labels = np.arange(job.images) % CLASSES
    every = View(images, labels, np.ones(len(labels), np.float32), np.full(len(labels), "", object), _NAMES)
    model = _model(architecture, images)

    def train(steps: int) -> object:
        batch = min(job.batch_size, job.images)
        recipe = Recipe(1, steps, batch, 0.001, shift=2, flip=True)
        return fit(model, every, recipe, seed=0, device=job.device, description="")

    train(3)
    return partial(train, math.ceil(job.images / job.batch_size))


def _predict(architecture: str, job: Job) -> Work:
    """Probabilities and embeddings of all images."""
    from stages.learning.prediction import predict

    images = _images(job.images)
    model = _model(architecture, images)
    predict(model, images[: 2 * job.batch_size], job.device)
    return lambda: predict(model, images, job.device)


def _statistics(job: Job) -> Work:
    """Mean and standard deviation of the pixels."""
    from stages.learning.models import pixel_statistics

    images = _images(job.images)
    return lambda: pixel_statistics(images)


def _view(job: Job) -> Work:
    """The training view of a base on disk (eight images of ten are in training) and its ledger."""
    from stages.dataset import base as dataset
    from stages.dataset.files import write_json, write_table

    samples, issues = tables(job.images)
    shape = (job.images, SIDE, SIDE, 3)
    written = np.lib.format.open_memmap(
        job.place / "images.npy", mode="w+", dtype=np.dtype(np.uint8), shape=shape
    )
    for start in range(0, job.images, _BLOCK):
        written[start : start + _BLOCK] = _images(min(_BLOCK, job.images - start))
    written.flush()
    write_table(job.place / "samples.parquet", samples)
    write_json(job.place / "classes.json", _NAMES)
    write_table(job.place / "ledger.parquet", _decision(samples, issues)())

    def read() -> object:
        base = dataset.read_dataset(job.place)
        return dataset.training_view(base, dataset.read_ledger(job.place))

    return read


def _rule(job: Job) -> Work:
    """Which labels are wrong, by the default rule."""
    from stages.noise.labels import find_label_errors

    labels, probs = probabilities(job.images)
    return lambda: find_label_errors(labels, probs)


def _neighbours(job: Job) -> Work:
    """The graph of nearest neighbours, from which all checks of neighbourhoods start."""
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401 (loaded here, not while it is measured)

    from stages.noise.neighbourhood import nearest_neighbours

    points = embeddings(job.images)
    return lambda: nearest_neighbours(points, 10)


def _near_duplicates(job: Job) -> Work:
    """Hashes, and the pairs that show the same picture, among thumbnails of which one in 50 has a copy."""
    from stages.images.near_duplicates import near_pairs
    from stages.images.perceptual import perceptual_hashes
    from stages.workflow.params import PARAMS_FILE, load_params

    thumbs = thumbnails(job.images)
    similarity = load_params(ROOT / PARAMS_FILE).ingest.near_duplicates or 0.85

    def search() -> object:
        hashes, flat = perceptual_hashes(thumbs)
        return near_pairs(hashes, flat, lambda rows: thumbs[rows], similarity)

    return search


def _ledger(job: Job) -> Work:
    """What is done about every sample, by the policies of params.yaml."""
    return _decision(*tables(job.images))


def _issues(job: Job) -> Work:
    """All of detect_noise after its models: rule, graph, Datalab's checks, and those of the images."""
    from stages.noise.issues import find_issues

    def find(count: int) -> object:
        part = slice(count)
        return find_issues(
            samples[part], probs[part], points[part], _NAMES, rule="auto", neighbors=10, images=images[part]
        )

    samples, _ = tables(job.images)
    probs = probabilities(job.images)[1].astype(np.float32)
    points, images = embeddings(job.images), _images(job.images)
    find(100)  # loads Datalab
    return partial(find, job.images)


COSTS: dict[str, Cost] = {
    "epoch, small_cnn": Cost(partial(_epoch, "small_cnn"), on_device=True),
    "epoch, resnet18": Cost(partial(_epoch, "resnet18"), on_device=True),
    "predict, small_cnn": Cost(partial(_predict, "small_cnn"), on_device=True),
    "predict, resnet18": Cost(partial(_predict, "resnet18"), on_device=True),
    "pixel statistics": Cost(_statistics),
    "training view": Cost(_view),
    "noise rule": Cost(_rule),
    "nearest neighbours": Cost(_neighbours),
    "near-duplicates": Cost(_near_duplicates),
    "ledger": Cost(_ledger),
    "all issues": Cost(_issues, needs="cleanlab"),
}


def probabilities(count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels, one in five of them wrong, and out-of-sample probabilities, N×10, of a fair model."""
    rng = np.random.default_rng(1)
    true = np.arange(count) % CLASSES
    logits = rng.normal(size=(count, CLASSES))
    logits[np.arange(count), true] += 3
    probs = np.exp(logits)
    probs /= probs.sum(1, keepdims=True)
    wrong = rng.random(count) < 0.2
    return np.where(wrong, rng.integers(0, CLASSES, count), true), probs


def embeddings(count: int) -> NDArray[np.float32]:
    """N×128, float32: ten clouds."""
    rng = np.random.default_rng(2)
    points = rng.standard_normal((count, _EMBEDDING), np.float32)
    points += rng.standard_normal((CLASSES, _EMBEDDING), np.float32)[np.arange(count) % CLASSES]
    return points


def thumbnails(count: int) -> NDArray[np.uint8]:
    """N×16×16, grey, with the spectrum of natural images; one in 50 is a brighter copy of the one before."""
    from scipy.fft import idctn

    rng = np.random.default_rng(3)
    frequency = np.hypot(*np.mgrid[:16, :16])
    amplitude = (1 / np.maximum(frequency, 1)).astype(np.float32)
    thumbs = np.empty((count, 16, 16), np.uint8)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        waves = rng.standard_normal((size, 16, 16), np.float32) * amplitude
        pixels = idctn(waves, axes=(1, 2), norm="ortho")
        scaled = 128 + 45 * pixels / pixels.std((1, 2), keepdims=True)
        thumbs[start : start + size] = scaled.clip(0, 255)
    thumbs[1::50] = np.minimum(thumbs[0::50][: len(thumbs[1::50])], 245) + 10
    return thumbs


def tables(count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples, and issues in the same order: one label in ten suspected, one sample in 100 odd otherwise."""
    import pandas as pd

    from stages.dataset.issue_kinds import OTHER_KINDS, flag_column, score_column

    rng = np.random.default_rng(4)
    names = np.asarray(_NAMES, object)
    number = rng.permutation(count)
    ids = [f"{each:016x}" for each in number.tolist()]
    labels = names[number % CLASSES]
    splits = np.asarray(["train"] * 8 + ["val", "test"], object)[rng.integers(0, 10, count)]
    samples = pd.DataFrame({"sample_id": ids, "row": np.arange(count), "split": splits, "label": labels})
    samples = samples.assign(source=ids, width=SIDE, height=SIDE, group=ids, weight=1.0)
    columns: dict[str, Any] = {
        "sample_id": ids,
        "split": splits,
        "given_label": labels,
        "suggested_label": names[(number + 1) % CLASSES],
        "suggested_score": rng.random(count),
        "suggested_agreement": rng.random(count),
        "label_score": rng.random(count),
        "is_label_issue": rng.random(count) < 0.1,
        "near_duplicate_set": np.full(count, -1),
        "underperforming_group": np.full(count, -1),
    }
    for kind in OTHER_KINDS:
        columns[score_column(kind)] = rng.random(count)
        columns[flag_column(kind)] = rng.random(count) < 0.01
    return samples, pd.DataFrame(columns)


def _decision(samples: pd.DataFrame, issues: pd.DataFrame) -> Callable[[], pd.DataFrame]:
    """Makes a ledger, by the policies of params.yaml; nobody reviewed anything."""
    import pandas as pd

    from stages.curate import read_policy
    from stages.curation.ledger import build_ledger
    from stages.curation.reviews import COLUMNS
    from stages.dataset.base import CONFLICT_COLUMNS
    from stages.workflow.params import PARAMS_FILE, load_params

    reviews, conflicts = (
        pd.DataFrame({name: pd.Series(dtype="str") for name in names})
        for names in (COLUMNS, CONFLICT_COLUMNS)
    )
    policy = read_policy(load_params(ROOT / PARAMS_FILE).curate)
    return lambda: build_ledger(samples, issues, policy, reviews, conflicts)[0]
