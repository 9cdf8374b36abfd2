from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.reporting import curation
from stages.reporting.curation import change_gallery, class_balance

HOSTILE = ["$\\frac{", "a\nb", "\x1b[31mred", "<b>", "x" * 300, "猫", ""]


def make_changes(names, *, seed=0):
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"class": names, "given": random.integers(10, 200, len(names))})
    table["relabel"], table["reweight"], table["drop"] = table["given"] // 5, 1, table["given"] // 9
    table["keep"] = table["given"] - table[["relabel", "reweight", "drop"]].sum(axis=1)
    table["curated"] = table["keep"] + table["reweight"] + random.integers(0, 9, len(names))
    return table


def make_ledger(actions, split="train"):
    count = len(actions)
    columns = {
        "sample_id": [f"{i:016x}" for i in range(count)],
        "split": split,
        "given_label": "cat",
        "label": ["dog" if action == "relabel" else "cat" for action in actions],
        "action": actions,
        "score": np.linspace(1, 0, count),
    }
    return pd.DataFrame(columns)


def size(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


def colours(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in np.unique(pixels, axis=0).tolist()}


@pytest.mark.parametrize("count", [1, 40, 41, 1000])
def test_balance_of_few_and_many_classes(tmp_path, count):
    changes = make_changes([f"class number {i}" for i in range(count)])
    class_balance(changes, tmp_path / "a.png")
    width, height = size(tmp_path / "a.png")
    assert width < 1300
    assert height < 1300


def test_same_bytes_whatever_the_order_of_the_classes(tmp_path):
    changes = make_changes(list("abc"))
    class_balance(changes, tmp_path / "a.png")
    class_balance(changes.iloc[::-1], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_only_what_happened_has_a_colour(tmp_path):
    changes = make_changes(["cat", "dog"])
    class_balance(changes, tmp_path / "all.png")
    marks = {curation._GAINED, curation._RELABELLED, curation._DROPPED}
    assert marks <= colours(tmp_path / "all.png")
    untouched = changes.assign(relabel=0, drop=0, reweight=0, keep=changes["given"], curated=changes["given"])
    class_balance(untouched, tmp_path / "none.png")
    assert colours(tmp_path / "none.png").isdisjoint(marks)


def test_a_class_may_be_left_empty(tmp_path):
    for count in (2, 60):
        changes = make_changes([f"c{i}" for i in range(count)])
        changes.loc[0, ["keep", "reweight", "relabel", "curated"]] = 0
        changes.loc[0, "drop"] = changes.loc[0, "given"]
        class_balance(changes, tmp_path / f"{count}.png")
        assert size(tmp_path / f"{count}.png")
    assert curation._ratio(pd.Series([12, 0])) == "12 : 0"
    assert curation._ratio(pd.Series([12, 5])) == "2.4 : 1"


def test_no_training_images_is_said(tmp_path):
    class_balance(make_changes([]), tmp_path / "a.png")
    assert size(tmp_path / "a.png")[1] < 100


def test_gallery_of_changes(tmp_path):
    images = np.zeros((8, 8, 8, 3), np.uint8)
    some = make_ledger(["keep", "drop", "relabel", "keep"])
    change_gallery(some, images, np.arange(4), tmp_path / "some.png")
    change_gallery(some, images, np.arange(4), tmp_path / "again.png")
    change_gallery(make_ledger(["drop"] * 4, "test"), images, np.arange(4), tmp_path / "test.png")
    change_gallery(make_ledger([]), images, np.arange(0), tmp_path / "none.png")
    read = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert read["some"] == read["again"]
    assert read["test"] == read["none"] != read["some"]


def test_gallery_shows_no_more_than_asked(tmp_path):
    images, ledger = np.zeros((60, 8, 8, 1), np.uint8), make_ledger(["drop"] * 60)
    change_gallery(ledger, images, np.arange(60), tmp_path / "few.png", most=8)
    change_gallery(ledger, images, np.arange(60), tmp_path / "many.png", most=40)
    assert size(tmp_path / "many.png")[1] > 4 * size(tmp_path / "few.png")[1]


def test_hostile_names_are_drawn_as_they_are(tmp_path):
    count = len(HOSTILE)
    ledger = make_ledger(["drop", "relabel"] * count).assign(given_label=[*HOSTILE, *HOSTILE])
    ledger["label"] = [*HOSTILE[::-1], *HOSTILE[::-1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_balance(make_changes(HOSTILE), tmp_path / "a.png")
        change_gallery(ledger, np.zeros((1, 8, 8, 1), np.uint8), np.zeros(2 * count, int), tmp_path / "b.png")
    assert size(tmp_path / "a.png")
    assert size(tmp_path / "b.png")


def test_a_sample_without_a_given_label(tmp_path):
    ledger = make_ledger(["relabel"]).assign(given_label=None)
    change_gallery(ledger, np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, int), tmp_path / "a.png")
    assert size(tmp_path / "a.png")
