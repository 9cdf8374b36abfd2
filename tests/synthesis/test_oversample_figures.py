import numpy as np
import pytest
from PIL import Image

from stages.dataset import View
from stages.synthesis.gate.class_quality import ClassQuality
from stages.synthesis.oversample_figures import save_progress, save_refused, save_samples
from stages.synthesis.synthetic import GANRecord, Refused, Synthetic


def block(count, value):
    return np.full((count, 8, 8, 1), value, np.uint8)


TILE = 32 * 32 * 0.75  # pixels of an image in a picture, which is scaled down a little, at least


def greys(path):
    """How many pixels of each grey a picture has."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    alike = pixels[(pixels == pixels[:, :1]).all(1), 0]
    return np.bincount(alike, minlength=256)


@pytest.fixture
def real():
    images = np.concatenate([block(3, 51), block(2, 77)])
    names = np.array([str(i) for i in range(5)], object)
    return View(images, np.array([0, 0, 0, 1, 1]), np.ones(5, np.float32), names, ["a", "b $x$"])


def synthetic(real, *, images=0, refused=()):
    quality = {name: ClassQuality(3, 3, 0, method="gan") for name in real.classes}
    labels, parents = np.ones(images, np.int64), np.full(images, 3)
    return Synthetic(block(images, 151), labels, parents, ["gan"] * images, quality, refused=list(refused))


def test_samples_stand_between_real_and_nearest_real_images(tmp_path, real):
    save_samples(tmp_path / "samples.png", real, synthetic(real, images=2))
    found = greys(tmp_path / "samples.png")
    assert found[151] >= 2 * TILE
    assert found[77] >= 4 * TILE  # two real images, and twice the nearest
    assert found[51] < 300  # the class that gained none has no line


def test_without_samples_there_is_still_a_picture(tmp_path, real):
    save_samples(tmp_path / "samples.png", real, synthetic(real))
    assert Image.open(tmp_path / "samples.png").size[0] > 100


def test_refused_ones_stand_by_class_and_check(tmp_path, real):
    refused = [Refused(0, "stray", block(9, 201), np.zeros(9, np.int64))]
    save_refused(tmp_path / "refused.png", real, synthetic(real, refused=refused))
    found = greys(tmp_path / "refused.png")
    assert found[201] >= 8 * TILE
    assert found[201] / found[51] == pytest.approx(8 / 11, rel=0.05)  # three real and eight nearest ones
    save_refused(tmp_path / "none.png", real, synthetic(real))
    assert not (tmp_path / "none.png").exists()


def test_progress_is_a_picture_a_step(tmp_path, real):
    samples = {5: np.stack([block(4, 61), block(4, 131)]), 1000: np.stack([block(4, 62), block(4, 132)])}
    record = GANRecord(real.classes, 1000, 1000, 8, progress=samples)
    save_progress(tmp_path / "progress", record)
    assert sorted(path.name for path in (tmp_path / "progress").iterdir()) == [
        "step_000005.png",
        "step_001000.png",
    ]
    found = greys(tmp_path / "progress/step_000005.png")
    assert min(found[61], found[131]) >= 4 * TILE
