from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from stages import errors
from stages.reporting import figures
from stages.reporting.figures import Line, save_montage

HOSTILE = ["$\\frac{", "a\nb", "\x1b[31mred", "<b>", "x" * 300, "猫", ""]


def grid(images, titles, path, *, heading="", **look):
    figures.gallery([figures.Section(heading, images, titles)], path, **look)


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 16, 3), (16, 16), (9, 30, 3), (400, 300, 3)])
def test_grid_shows_each_image_with_its_proportions(tmp_path, shape):
    bright = np.full(shape, 200, np.uint8)
    grid([bright, bright], ["", ""], tmp_path / "grid.png", columns=1, cell=60)
    shown = pixels(tmp_path / "grid.png")
    scale = 60 / max(shape[:2])
    area = round(shape[0] * scale) * round(shape[1] * scale)
    assert (shown == 200).all(axis=2).sum() == pytest.approx(2 * area, rel=0.02)


def test_grid_places_rows_by_columns(tmp_path):
    images = np.zeros((7, 8, 8, 1), np.uint8)
    sizes = {}
    for columns in (2, 7, 100):
        grid(images, [""] * 7, tmp_path / "grid.png", columns=columns, cell=40)
        sizes[columns] = pixels(tmp_path / "grid.png").shape[:2]
    assert sizes[2][0] > 3 * 40 > sizes[7][0]
    assert sizes[7] == sizes[100]
    assert sizes[7][1] > 7 * 40


def test_long_titles_get_more_lines_and_titles_change_the_picture(tmp_path):
    image = [np.zeros((8, 8, 1), np.uint8)]
    heights, shown = [], []
    for title in ("", "cat", "dog", "airplane → automobile, and more"):
        grid(image, [title], tmp_path / "grid.png")
        shown.append((tmp_path / "grid.png").read_bytes())
        heights.append(pixels(tmp_path / "grid.png").shape[0])
    assert heights[0] < heights[1] == heights[2] < heights[3]
    assert shown[1] != shown[2]


def test_an_empty_grid_is_still_a_picture(tmp_path):
    grid([], [], tmp_path / "grid.png", empty="no label errors")
    assert pixels(tmp_path / "grid.png").size


def test_sections_stand_below_one_another_and_empty_ones_are_left_out(tmp_path):
    image = np.zeros((1, 8, 8, 1), np.uint8)
    one, two = figures.Section("one", image, ["a"]), figures.Section("two", image, ["b"])
    heights = {}
    for name, sections in {
        "one": [one],
        "two": [one, two],
        "gap": [one, figures.Section("", [], []), two],
    }.items():
        figures.gallery(sections, tmp_path / f"{name}.png")
        heights[name] = pixels(tmp_path / f"{name}.png").shape[0]
    assert heights["two"] == 2 * heights["one"]
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "gap.png").read_bytes()


def test_what_belongs_together_stands_closer(tmp_path):
    section = figures.Section("", np.zeros((4, 8, 8, 1), np.uint8), [""] * 4)
    figures.gallery([section], tmp_path / "pairs.png", together=2, cell=40)
    dark = np.flatnonzero((pixels(tmp_path / "pairs.png") == 0).all(axis=2).any(axis=0))
    first, second, third = np.diff(dark)[np.diff(dark) > 1]
    assert first == third < second


def test_a_change_shows_both_names_however_long():
    assert figures.change_title("cat", "dog") == "cat → dog"
    before, after = figures.change_title("x" * 300, "y" * 300).split("\n")
    assert before.startswith("xxx")
    assert after.startswith("→ yyy")
    assert max(len(before), len(after)) < 30


def test_as_many_titles_as_images():
    with pytest.raises(ValueError, match="2 images but 1 titles"):
        figures.Section("", np.zeros((2, 8, 8, 1), np.uint8), ["a"])


def test_hostile_names_are_drawn_as_they_are(tmp_path):
    count = len(HOSTILE)
    images = np.zeros((count, 8, 8, 1), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid(images, HOSTILE, tmp_path / "a.png", heading="$x_{")
        figures.confusion_matrices({"$m_{": np.eye(count, dtype=int)}, HOSTILE, tmp_path / "b.png")
        figures.class_bars(
            {"$s_{": np.full(count, np.nan)}, HOSTILE, tmp_path / "c.png", y_label="recall", top=1
        )
    for name in "abc":
        assert pixels(tmp_path / f"{name}.png").size


@pytest.mark.parametrize("classes", [1, 10, 20, 100])
def test_charts_of_few_and_many_classes(tmp_path, classes):
    names = [f"class number {i}" for i in range(classes)]
    matrix = np.random.default_rng(0).integers(0, 9, (classes, classes))
    figures.confusion_matrices({"one": matrix, "two": matrix}, names, tmp_path / "confusion.png")
    figures.class_bars({"one": np.linspace(0, 1, classes)}, names, tmp_path / "b.png", y_label="y", top=1)
    height, width, _ = pixels(tmp_path / "confusion.png").shape
    assert width > height
    assert width < 2000
    assert pixels(tmp_path / "b.png").size


def test_curves_and_reliability(tmp_path):
    x = np.arange(5.0)
    figures.curves({"loss": {"a": (x, x), "b": (x, x**2)}, "accuracy": {"a": (x, x)}}, tmp_path / "two.png")
    figures.curves({"loss": {"a": (x, x)}}, tmp_path / "one.png")
    assert pixels(tmp_path / "two.png").shape[1] > 1.8 * pixels(tmp_path / "one.png").shape[1]
    figures.curves({}, tmp_path / "none.png")
    assert pixels(tmp_path / "none.png").size
    nothing = np.array([np.nan, np.nan])
    bins = {"a": (np.array([0.3, np.nan]), np.array([1.0, np.nan]), np.array([4, 0]))}
    bins["empty"] = (nothing, nothing, np.array([0, 0]))
    figures.reliability_diagrams(bins, tmp_path / "reliability.png")
    assert pixels(tmp_path / "reliability.png").size


def test_same_input_gives_the_same_bytes_whatever_the_users_settings(tmp_path):
    import matplotlib

    image = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    written = []
    for settings in ({}, {"font.size": 20, "savefig.dpi": 300, "figure.facecolor": "black"}):
        with matplotlib.rc_context(settings):
            grid(image, ["a", "b", "c"], tmp_path / "grid.png")
            figures.class_bars({"s": np.ones(3)}, list("abc"), tmp_path / "bars.png", y_label="y", top=1)
        written.append([(tmp_path / name).read_bytes() for name in ("grid.png", "bars.png")])
    assert written[0] == written[1]


def test_shorten():
    assert errors.shorten("abc", 3) == "abc"
    assert errors.shorten("abcd", 3) == "ab…"
    assert "\x1b" not in errors.shorten("\x1b[31m", 9)


def drawn(png):
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.size) == ("PNG", (1120, 840))
        return np.asarray(picture.convert("RGB"))


def blue(chart):
    """Where squares are drawn: bluer than lines and letters."""
    return chart[:, :, 2].astype(int) - chart[:, :, 0] > 32


def test_sizes_are_drawn_where_they_belong_and_darker_where_there_are_more():
    width, height, count = (np.array(c) for c in ([64, 1024], [1024, 64], [1, 1000]))
    chart = drawn(figures.size_map(width, height, count, 32))
    rows, columns = np.nonzero(blue(chart))
    upper, right = rows < rows.mean(), columns > columns.mean()
    assert (upper != right).all()  # narrow and tall is at the upper left, wide and flat at the lower right
    few, many = (np.median(chart[rows[side], columns[side]].sum(axis=1)) for side in (upper, right))
    assert many < few - 100


@pytest.mark.parametrize("sides", [[1], [8], [1, 2**27], [32]])
def test_any_size_has_a_place_in_the_chart(sides):
    one = np.array(sides)
    square = blue(drawn(figures.size_map(one, one, np.ones_like(one), 32)))
    assert square.sum() > 20
    assert not (square[0].any() or square[-1].any() or square[:, 0].any() or square[:, -1].any())


def test_no_sizes_at_all_and_the_same_bytes_for_the_same_sizes():
    none, one = np.array([], np.int64), np.array([5, 7])
    assert not blue(drawn(figures.size_map(none, none, none, 32))).any()
    assert figures.size_map(one, one, one, 16) == figures.size_map(one, one, one, 16)


@pytest.mark.parametrize("title", ["", "<script>", "a\nb\x1b", "猫", "$x_{", "a long name of a class " * 9])
def test_any_name_is_drawn_beside_its_images(tmp_path, title):
    images = np.full((5, 8, 8, 1), 200, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_montage(
            tmp_path / "a.png", "t", [Line(title, [images]), Line("b", [images[:1] // 2])], [3], [""]
        )
    sheet = pixels(tmp_path / "a.png")
    assert (sheet == 200).all(axis=2).sum() == 3 * 32 * 32  # no more than the columns asked for
    light, dark = (np.flatnonzero((sheet == grey).all(axis=2).any(axis=1)) for grey in (200, 100))
    assert light.max() < dark.min()
    assert (sheet[light.min() : light.max(), :144] < 128).any() == bool(title)


def test_a_montage_shows_the_images_and_repeats_its_bytes(tmp_path):
    red = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((1, 8, 8, 1), 77, np.uint8)
    for name in ("a", "b"):
        lines = [Line("one $ of $ them", [red, grey])]
        save_montage(tmp_path / f"{name}.png", "title", lines, [3, 2], ["left", "right"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    shown = pixels(tmp_path / "a.png").reshape(-1, 3)
    assert (shown == [255, 0, 0]).all(1).sum() == 2 * 32 * 32
    assert (shown == [77, 77, 77]).all(1).sum() == 32 * 32


def test_an_empty_one_is_still_a_picture(tmp_path):
    save_montage(tmp_path / "empty.png", "Nothing was made", [], [3], ["left"])
    assert Image.open(tmp_path / "empty.png").size[0] > 100
