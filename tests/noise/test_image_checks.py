import numpy as np
import pytest

from stages.dataset.issue_kinds import PIXEL_KINDS
from stages.errors import WinnowError
from stages.noise.image_checks import IMAGE_CHECKS, image_issues, pixel_properties


def _photos(count: int, side: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(20, 220, (count, side, side, channels)).astype(np.uint8)


def _squares(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = np.full(len(images), images.shape[1])
    return side, side


@pytest.mark.parametrize(("side", "channels"), [(16, 1), (16, 3), (80, 3), (80, 1)])
def test_properties_are_those_of_cleanvision(side: int, channels: int):
    from cleanvision.issue_managers.image_property import (
        BlurrinessProperty,
        BrightnessProperty,
        EntropyProperty,
    )
    from PIL.Image import fromarray

    images = _photos(4, side, channels)
    ours = pixel_properties(images, PIXEL_KINDS)
    for row, image in enumerate(images):
        picture = fromarray(image[:, :, 0] if channels == 1 else image)
        theirs = {}
        for judge in (BrightnessProperty("dark"), EntropyProperty(), BlurrinessProperty()):
            theirs |= judge.calculate(picture)
        for name, values in ours.items():
            assert values[row] == pytest.approx(theirs[name], rel=1e-9)


def test_each_defect_is_found_by_its_check():
    images = _photos(30)
    images[1] //= 12
    images[2] = 255 - images[2] // 40
    images[3] = 128
    images[4] = np.linspace(90, 110, 32).astype(np.uint8)[None, :, None]
    table, report = image_issues(images, *_squares(images))
    assert np.flatnonzero(table["is_dark_issue"]).tolist() == [1]
    assert np.flatnonzero(table["is_light_issue"]).tolist() == [2]
    assert 3 in np.flatnonzero(table["is_low_information_issue"])
    assert 4 in np.flatnonzero(table["is_blurry_issue"])
    assert table["dark_score"].idxmin() == 1
    assert [report[name] for name in PIXEL_KINDS] == ["on"] * 4
    scores = table[[f"{name}_score" for name in PIXEL_KINDS]]
    assert ((scores >= 0) & (scores <= 1)).all().all()


def test_odd_sizes_and_shapes_are_those_of_the_files():
    width, height = np.full(40, 100) + np.arange(40) % 7, np.full(40, 80)
    width[5], height[5] = 2000, 1600
    width[6], height[6] = 400, 20
    table, report = image_issues(None, width, height)
    assert np.flatnonzero(table["is_odd_size_issue"]).tolist() == [5]
    assert np.flatnonzero(table["is_odd_aspect_ratio_issue"]).tolist() == [6]
    assert table["odd_aspect_ratio_score"][6] == pytest.approx(0.05)
    assert report["odd_size"] == report["odd_aspect_ratio"] == "on"
    assert report["dark"] == "no pixels were given"


def test_what_most_images_are_is_no_issue_of_single_ones():
    scans = np.full((20, 32, 32, 1), 255, np.uint8)
    scans[:, 10:12, 10:12] = _photos(20, 2, 1)
    table, report = image_issues(scans, *_squares(scans))
    assert report["light"].startswith("100%")
    assert not table["is_light_issue"].any()
    assert table["light_score"].isna().all()
    assert report["dark"] == "on"


def test_what_the_shape_of_the_data_rules_out_is_off():
    small = _photos(10, 16)
    _, report = image_issues(small, *_squares(small))
    assert "16 pixels" in report["blurry"]
    assert report["odd_size"] == "all images are 16×16 pixels"
    assert report["odd_aspect_ratio"] == "all images are of one shape"


def test_checks_that_are_named_are_made_whatever_they_find():
    slopes = np.tile(np.linspace(245, 252, 16).astype(np.uint8)[None, None, :, None], (20, 16, 1, 1))
    table, report = image_issues(slopes, *_squares(slopes), ["light", "blurry", "odd_size"])
    assert table["is_light_issue"].all()
    assert table["blurry_score"].notna().all()
    assert (table["odd_size_score"] == 1.0).all()
    assert report == {
        name: "on" if name in ("light", "blurry", "odd_size") else "not asked for" for name in IMAGE_CHECKS
    }
    assert not table["is_low_information_issue"].any()


def test_no_checks_at_all_give_a_table_without_answers():
    table, report = image_issues(_photos(3), np.full(3, 32), np.full(3, 32), [])
    assert table.filter(like="_score").isna().all().all()
    assert set(report.values()) == {"not asked for"}


def test_images_of_one_size_in_any_number_of_batches_are_judged_alike(monkeypatch):
    images = _photos(9, 32, 1)
    whole, _ = image_issues(images, *_squares(images))
    monkeypatch.setattr("stages.noise.image_checks._BATCH_PIXELS", 2 * 32 * 32)
    parts, _ = image_issues(images, *_squares(images))
    assert whole.equals(parts)


@pytest.mark.parametrize("checks", ["dim", ["dark", "dim"]])
def test_unknown_checks_are_refused(checks: str | list[str]):
    with pytest.raises(WinnowError, match="unknown image check 'dim'"):
        image_issues(None, np.ones(2, int), np.ones(2, int), checks)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 8, 8, 1), np.float32)])
def test_what_is_no_image_is_refused(images: np.ndarray):
    with pytest.raises(WinnowError, match="uint8"):
        image_issues(images, np.full(2, 8), np.full(2, 8))
