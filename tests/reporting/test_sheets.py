from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from stages.reporting import sheets


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def flat(value, shape=(8, 8, 1)):
    return np.full(shape, value, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_thumbnail_keeps_its_pixels_and_a_large_one_is_reduced(channels):
    image = np.random.default_rng(0).integers(0, 255, (9, 9, channels)).astype(np.uint8)
    assert (pixels(sheets.thumbnail_png(image, 9)) == np.broadcast_to(image, (9, 9, 3))).all()
    assert pixels(sheets.thumbnail_png(np.repeat(image, 20, axis=0), 60)).shape == (60, 3, 3)


def test_a_sheet_has_a_row_for_each_title_and_no_more_columns_than_asked_for():
    sheet = pixels(sheets.image_rows([("a", [flat(200)] * 5), ("b", [flat(90)])], columns=3, cell=40))
    assert (sheet == 200).all(axis=2).sum() == 3 * 40 * 40
    assert (sheet == 90).all(axis=2).sum() == 40 * 40
    where_200, where_90 = (np.flatnonzero((sheet == value).all(axis=2).any(axis=1)) for value in (200, 90))
    assert where_200.max() < where_90.min()


@pytest.mark.parametrize(
    "title", ["", "<script>", "a\nb\x1b", "猫", "a very long name of a class " * 9, "x" * 300]
)
def test_any_title_is_drawn_beside_its_images(title):
    sheet = pixels(sheets.image_rows([(title, [flat(200)])]))
    assert (sheet == 200).all(axis=2).sum() == 64 * 64
    beside = sheet[:, :144]
    assert (beside < 128).any() == bool(title)


def test_an_empty_sheet_is_still_a_picture():
    assert (pixels(sheets.image_rows([], empty="nothing")) < 200).any()


def blue(chart):
    """Where bins are drawn: bluer than lines and letters."""
    return chart[:, :, 2].astype(int) - chart[:, :, 0] > 32


def test_sizes_are_drawn_where_they_belong_and_darker_where_there_are_more():
    width, height, count = (np.array(c) for c in ([64, 1024], [1024, 64], [1, 1000]))
    chart = pixels(sheets.size_map(width, height, count, 32))
    rows, columns = np.nonzero(blue(chart))
    upper, right = rows < rows.mean(), columns > columns.mean()
    assert (upper != right).all()  # narrow and tall is at the upper left, wide and flat at the lower right
    tones = {tuple(chart[r, c]) for r, c in zip(rows[right], columns[right], strict=True)}
    others = {tuple(chart[r, c]) for r, c in zip(rows[upper], columns[upper], strict=True)}
    assert max(sum(map(int, tone)) for tone in tones) < min(sum(map(int, tone)) for tone in others)


@pytest.mark.parametrize("sides", [[1], [8], [1, 2**27], [32]])
def test_any_size_has_a_place_in_the_chart(sides):
    one = np.array(sides)
    chart = pixels(sheets.size_map(one, one, np.ones_like(one), 32))
    assert chart.shape == (840, 1120, 3)
    rows, columns = np.nonzero(blue(chart))
    assert len(rows) > 0
    assert rows.min() >= 60 and rows.max() <= 740
    assert columns.min() >= 110 and columns.max() <= 1080


def test_no_sizes_at_all():
    none = np.array([], np.int64)
    assert not blue(pixels(sheets.size_map(none, none, none, 32))).any()


def test_same_input_same_bytes():
    one = np.array([5, 7])
    assert sheets.size_map(one, one, one, 16) == sheets.size_map(one, one, one, 16)
    rows = [("a", [flat(3)])]
    assert sheets.image_rows(rows) == sheets.image_rows(rows)
