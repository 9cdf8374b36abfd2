from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.noise.transition import estimated_transition, transition_table
from stages.reporting import noise
from stages.reporting.noise import (
    finding_gallery,
    label_issue_gallery,
    near_duplicate_gallery,
    near_duplicate_pairs,
    outlier_gallery,
    transition_heat_map,
)

GALLERIES = [label_issue_gallery, near_duplicate_gallery, outlier_gallery, finding_gallery]
HOSTILE = ["$\\frac{", "a\nb", "\x1b[31mred", "<b>", "x" * 300, "猫", ""]


def make_issues(count=12, *, flagged=(), sets=None, split="train", labels=None, near=None):
    """A table of issues in which the rows `flagged` have every kind of them."""
    is_issue = np.isin(np.arange(count), list(flagged))
    ids = [f"{i:016x}" for i in range(count)]
    columns = {
        "sample_id": ids,
        "split": split,
        "given_label": labels or ["cat"] * count,
        "suggested_label": "dog",
        "suggested_score": 0.9,
        "label_score": np.linspace(1, 0, count),
        "is_label_issue": is_issue,
        "outlier_score": np.linspace(1, 0, count),
        "is_outlier_issue": is_issue,
        "near_duplicate_score": np.linspace(0, 1, count),
        "near_duplicate_set": [-1] * count if sets is None else sets,
        "dark_score": np.linspace(1, 0, count),
        "is_dark_issue": is_issue,
        "blurry_score": np.nan,
        "is_blurry_issue": False,
        "neighbors": [[ids[j] for j in (near or {}).get(i, [])] for i in range(count)],
    }
    return pd.DataFrame(columns)


def make_images(count=12):
    """Every image of one shade of its own."""
    shades = (10 + 5 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (count, 8, 8, 1)).copy()


def shades(path):
    """The shades of `make_images` in reading order, for large enough patches."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    found = []
    for row in pixels[:, :, 0].tolist():
        line = [value for value in dict.fromkeys(row) if value < 10 + 5 * 12 and row.count(value) >= 80]
        found += [value for value in line if value not in found]
    return [(value - 10) // 5 for value in found]


def draw(write, issues, path, **options):
    write(issues, make_images(len(issues)), np.arange(len(issues)), path, **options)
    return path


@pytest.mark.parametrize("write", GALLERIES)
def test_nothing_found_is_a_picture_that_says_so(tmp_path, write):
    nothing = draw(write, make_issues(), tmp_path / "nothing.png").read_bytes()
    empty = draw(write, make_issues(0), tmp_path / "empty.png").read_bytes()
    assert nothing == empty
    assert nothing.startswith(b"\x89PNG")


@pytest.mark.parametrize("write", GALLERIES)
def test_same_bytes_twice(tmp_path, write):
    issues = make_issues(flagged=(1, 2, 5), sets=[-1, 0, 0, 1, -1, 1] + [-1] * 6)
    first, second = (draw(write, issues, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert first != draw(write, make_issues(), tmp_path / "none.png").read_bytes()


@pytest.mark.parametrize("write", [label_issue_gallery, outlier_gallery, finding_gallery])
def test_the_worst_come_first_and_no_more_than_asked(tmp_path, write):
    issues = make_issues(flagged=(1, 4, 7, 9))
    assert shades(draw(write, issues, tmp_path / "all.png")) == [9, 7, 4, 1]
    assert shades(draw(write, issues, tmp_path / "two.png", most=2)) == [9, 7]


def test_training_labels_come_before_those_of_other_splits(tmp_path):
    issues = make_issues(flagged=(1, 4, 7, 9), split=["test", "train"] * 6)
    assert shades(draw(label_issue_gallery, issues, tmp_path / "a.png")) == [9, 7, 1, 4]


def test_images_are_found_by_their_row(tmp_path):
    issues = make_issues(flagged=(0, 1))
    outlier_gallery(issues, make_images(), np.arange(12)[::-1], tmp_path / "a.png")
    assert shades(tmp_path / "a.png") == [10, 11]
    with pytest.raises(ValueError, match="12 issues but 3 rows"):
        outlier_gallery(issues, make_images(), np.arange(3), tmp_path / "b.png")


def test_a_check_without_columns_is_left_out(tmp_path):
    issues = make_issues(flagged=(3,)).drop(columns=["dark_score", "is_dark_issue"])
    assert shades(draw(finding_gallery, issues, tmp_path / "a.png")) == []


def test_pairs_under_two_labels_come_first(tmp_path):
    labels = ["cat"] * 6 + ["dog", "cat"] + ["cat"] * 4
    issues = make_issues(sets=[0, 0, -1, 1, 1, -1, 2, 2] + [-1] * 4, labels=labels)
    assert shades(draw(near_duplicate_gallery, issues, tmp_path / "a.png")) == [6, 7, 0, 1, 3, 4]
    assert shades(draw(near_duplicate_gallery, issues, tmp_path / "b.png", most=2)) == [6, 7, 0, 1]


def test_the_pair_of_a_set_are_neighbours_and_differ_where_some_do():
    labels = ["cat", "cat", "cat", "dog"]
    # 0 - 1 - 2 - 3 is a chain: 0 and 3 are of one set, but not near to one another.
    near = {0: [1], 1: [0, 2], 2: [1, 3], 3: [2]}
    pairs = near_duplicate_pairs(make_issues(4, sets=[5, 5, 5, 5], labels=labels, near=near))
    assert pairs[["first", "second"]].to_numpy().tolist() == [[2, 3]]
    assert pairs["labels_differ"].tolist() == [True]


def test_pairs_across_splits_come_before_the_nearest():
    split = ["train", "train", "train", "test"]
    pairs = near_duplicate_pairs(make_issues(4, sets=[0, 0, 1, 1], split=split))
    assert pairs["first"].tolist() == [2, 0]
    assert pairs["splits_differ"].tolist() == [True, False]


def test_a_missing_label_contradicts_none_and_neighbours_may_be_missing():
    issues = make_issues(2, sets=[0, 0], labels=["cat", None]).drop(columns="neighbors")
    assert near_duplicate_pairs(issues)["labels_differ"].tolist() == [False]


def test_transition_counts_suspects_as_what_they_are_suggested_to_be():
    classes = ["cat", "dog", "owl"]
    labels = ["cat"] * 4 + ["dog"] * 4 + ["cat", None]
    issues = make_issues(10, flagged=(0, 8), labels=labels, split=["train"] * 8 + ["test", "unlabeled"])
    transition = estimated_transition(issues, classes)
    np.testing.assert_allclose(transition, [[1, 0, 0], [0.2, 0.8, 0], [np.nan] * 3])
    table = transition_table(transition, classes)
    assert table.to_numpy().tolist() == [["cat", "cat", 1.0], ["dog", "cat", 0.2], ["dog", "dog", 0.8]]


@pytest.mark.parametrize("count", [2, 10, 100])
def test_heat_map_of_few_and_many_classes(tmp_path, count):
    transition = np.full((count, count), 0.2 / max(count - 1, 1)) + np.eye(count) * 0.8
    transition[-1] = np.nan
    names = [f"class number {i}" for i in range(count)]
    transition_heat_map(transition, names, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width < 1500
        assert picture.height < 1000


def test_heat_map_of_many_classes_shows_those_that_are_mixed_up():
    off = np.zeros((100, 100))
    off[70, 3], off[3, 99] = 0.5, 0.2
    shown = noise._most_mixed_up(off).tolist()
    assert len(shown) == noise._MOST_CLASSES
    assert {3, 70, 99} < set(shown)
    assert shown == sorted(shown)


def test_the_same_heat_map_has_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        transition_heat_map(np.array([[0.9, 0.1], [0.2, 0.8]]), ["cat", "dog"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_suspects_there_is_nothing_to_mix_up(tmp_path):
    transition_heat_map(np.eye(3), list("abc"), tmp_path / "a.png")
    transition_heat_map(np.full((2, 2), np.nan), list("ab"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_hostile_names_are_drawn_as_they_are(tmp_path):
    count = len(HOSTILE)
    issues = make_issues(count, flagged=range(count), sets=[0] * count, labels=HOSTILE)
    issues["suggested_label"] = HOSTILE[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, write in enumerate(GALLERIES):
            draw(write, issues, tmp_path / f"{number}.png")
        transition_heat_map(estimated_transition(issues, HOSTILE), HOSTILE, tmp_path / "t.png")
    assert len(list(tmp_path.glob("*.png"))) == 5
