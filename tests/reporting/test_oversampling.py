"""Pictures of what was made, drawn from the tables and arrays that `augment` and `synthesize` write."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import augment, synthesize
from stages.augmentation.survival import unchecked
from stages.dataset import base as dataset
from stages.dataset.base import Dataset, View, empty_delta, split_view, write_dataset
from stages.dataset.delta import build_delta
from stages.dataset.files import new_folder, write_json, write_table
from stages.reporting.outputs import Outputs
from stages.reporting.pictures import draw_all
from stages.synthesis.gate import ClassQuality
from stages.synthesis.oversample import GANRecord, RefusedCandidates, Synthetic

TILE = 32 * 32 * 0.75  # pixels of an image in a picture, which is scaled down a little, at least
CLASSES = ["a", "b $x$"]


def block(count, value):
    return np.full((count, 8, 8, 1), value, np.uint8)


def greys(path):
    """How many pixels of each grey a picture has."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    alike = pixels[(pixels == pixels[:, :1]).all(1), 0]
    return np.bincount(alike, minlength=256)


@pytest.fixture
def base(workspace) -> Dataset:
    """Three images of grey 51 and two of grey 77, ingested."""
    images = np.concatenate([block(3, 51), block(2, 77)])
    ids = [f"{number:016x}" for number in range(5)]
    columns = {
        "sample_id": ids,
        "row": range(5),
        "split": "train",
        "label": [CLASSES[0]] * 3 + [CLASSES[1]] * 2,
    }
    samples = pd.DataFrame(columns | {"source": ids, "width": 8, "height": 8, "group": ids, "weight": 1.0})
    base = Dataset(images, samples, CLASSES)
    with new_folder(dataset.INGESTED) as folder:
        write_dataset(folder, base)
    return base


@pytest.fixture
def real(base) -> View:
    return split_view(base, "train")


def synthetic(*, images=0, refused=(), gan=None):
    quality = {name: ClassQuality(3, 3, 0, method="gan") for name in CLASSES}
    labels, parents = np.ones(images, np.int64), np.full(images, 3)
    return Synthetic(block(images, 151), labels, parents, ["gan"] * images, quality, gan, list(refused))


def draw_synthetic(base: Dataset, real: View, made: Synthetic, folder):
    """Write what the stage writes of `made`, and draw it."""
    with new_folder(synthesize.REPORT) as report:
        table, images = synthesize.examples(real, made)
        write_table(report / "examples.parquet", table)
        np.save(report / "examples.npy", images)
        gan = None if made.gan is None else made.gan.to_json()
        quality = {name: {"method": entry.method} for name, entry in made.quality.items()}
        write_json(report / "quality.json", {"gan": gan, "classes": quality})
    with new_folder(dataset.SYNTHETIC) as delta:
        write_dataset(delta, synthesize.synthetic_delta(base, real, made, 0.3))
    draw_all("synthesize", Outputs(), folder)


def test_samples_stand_between_real_and_nearest_real_images(tmp_path, base, real):
    draw_synthetic(base, real, synthetic(images=2), tmp_path)
    shades = greys(tmp_path / "samples.png")
    assert shades[151] >= 2 * TILE
    assert shades[77] >= 4 * TILE  # two real images, and twice the nearest
    assert shades[51] < 300  # the class that gained none has no line


def test_without_samples_there_is_still_a_picture(tmp_path, base, real):
    draw_synthetic(base, real, synthetic(), tmp_path)
    assert Image.open(tmp_path / "samples.png").size[0] > 100
    assert not (tmp_path / "refused.png").exists()
    assert not (tmp_path / "progress").exists()


def test_refused_ones_stand_by_class_and_check(tmp_path, base, real):
    refused = [RefusedCandidates(0, "stray", block(9, 201), np.zeros(9, np.int64))]
    draw_synthetic(base, real, synthetic(refused=refused), tmp_path)
    shades = greys(tmp_path / "refused.png")
    assert shades[201] >= 8 * TILE
    assert shades[201] / shades[51] == pytest.approx(8 / 11, rel=0.05)  # three real and eight nearest ones


def test_progress_is_a_picture_a_step(tmp_path, base, real):
    progress = {5: np.stack([block(4, 61), block(4, 131)]), 1000: np.stack([block(4, 62), block(4, 132)])}
    refused = [
        RefusedCandidates(1, "repeat", block(2, 201), np.array([3, 4]))
    ]  # which shares the array with it
    gan = GANRecord(CLASSES, 1000, 1000, 8, progress=progress)
    draw_synthetic(base, real, synthetic(refused=refused, gan=gan), tmp_path)
    names = sorted(path.name for path in (tmp_path / "progress").iterdir())
    assert names == ["step_000005.png", "step_001000.png"]
    for name, expected in zip(names, ((61, 131), (62, 132)), strict=True):
        shades = greys(tmp_path / "progress" / name)
        assert min(shades[grey] for grey in expected) >= 4 * TILE
        assert shades[201] < 300


def draw_augmented(base: Dataset, delta: Dataset, table: pd.DataFrame, images: np.ndarray, folder):
    with new_folder(augment.REPORT) as report:
        write_table(report / "transformed.parquet", table)
        np.save(report / "transformed.npy", images)
    with new_folder(dataset.AUGMENTED) as made:
        write_dataset(made, delta)
    draw_all("augment", Outputs(), folder)


def test_copies_stand_beside_their_originals_and_transforms_by_themselves(tmp_path, base, real, make_params):
    delta = build_delta(
        base, block(2, 181), np.array([1, 1]), real.sample_ids[3:].tolist(), ["augment"] * 2, np.ones(2)
    )
    policy = [{"name": "InvertImg", "args": {}}, {"name": "VerticalFlip", "args": {}}]
    section = make_params({"augment.policy": policy, "augment.preset": "textures"}).augment
    verdict = unchecked(augment.policy_of(section)[0])
    verdict.table.loc[0] = dict.fromkeys(verdict.table, "") | {"key": "no such transform"}
    table, images = augment.transformed_examples(real, section, verdict, seed=0)
    assert table["transform"].tolist() == ["InvertImg"] * 5 + ["VerticalFlip"] * 5
    assert table["row"].tolist() == list(range(10))
    draw_augmented(base, delta, table, images, tmp_path)
    shades = greys(tmp_path / "preview.png")
    assert min(shades[181], shades[77]) >= 2 * TILE
    assert shades[51] < 300
    shades = greys(tmp_path / "transforms.png")
    assert shades[255 - 51] >= 3 * TILE  # inverted
    assert shades[51] >= 9 * TILE  # the originals twice, and flipped


def test_nothing_augmented_and_no_transform_are_pictures_too(tmp_path, base, real, make_params):
    section = make_params({"augment.policy": []}).augment
    table, images = augment.transformed_examples(real, section, unchecked([]), seed=0)
    assert len(table) == len(images) == 0
    draw_augmented(base, empty_delta(base), table, images, tmp_path)
    for name in ("preview.png", "transforms.png"):
        assert Image.open(tmp_path / name).size[0] > 100
