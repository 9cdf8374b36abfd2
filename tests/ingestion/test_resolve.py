"""From what was found to samples, as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from item_rows import Row, frozen_of, items_of, pairs_of

from stages.dataset.ids import SPLITS, hex_ids
from stages.images.near_duplicates import Pairs
from stages.ingestion.items import NO_LABEL, TEST, UNLABELED, VAL, Items
from stages.ingestion.leakage import NEAR_COLUMNS
from stages.ingestion.resolve import Resolved, resolve

Leaked = Literal["leave_out", "keep"]
Alike = Sequence[tuple[int, int]]


def finder(rows: Sequence[Row], alike: Alike) -> Callable[[Items], Pairs]:
    """Finds pairs of images by the pixels of each (by default its id), as the scan's thumbnails would."""

    def find(images: Items) -> Pairs:
        chosen = [rows[place] for place in images.place.tolist()]
        place = {row.id if row.pixels is None else row.pixels: number for number, row in enumerate(chosen)}
        there = {
            tuple(sorted((place[a], place[b]))) for a, b in alike if a in place and b in place and a != b
        }
        return pairs_of(*sorted(there))

    return find


def resolved(
    rows: Sequence[Row],
    frozen: dict[int, str] | None = None,
    alike: Alike | None = (),
    leaked: Leaked = "leave_out",
    shares: tuple[float, float] = (0.1, 0.2),
) -> Resolved:
    return resolve(
        items_of(rows),
        frozen_of(frozen or {}),
        None if alike is None else finder(rows, alike),
        val_share=shares[0],
        test_share=shares[1],
        leaked=leaked,
    )


def splits(rows: Sequence[Row], result: Resolved) -> dict[int, str]:
    return {
        rows[p].id: SPLITS[s]
        for p, s in zip(result.samples.place.tolist(), result.samples.split.tolist(), strict=True)
    }


def groups(rows: Sequence[Row], result: Resolved) -> dict[int, int]:
    return {
        rows[p].id: g
        for p, g in zip(result.samples.place.tolist(), result.samples.group.tolist(), strict=True)
    }


def of_two_classes(count: int, start: int = 1) -> list[Row]:
    return [Row(number, "ab"[number % 2]) for number in range(start, start + count)]


def test_a_plain_source_is_dealt() -> None:
    rows = of_two_classes(40)
    result = resolved(rows)
    assert Counter(splits(rows, result).values()) == {"train": 28, "val": 4, "test": 8}
    assert result.samples.place.tolist() == list(range(40))
    assert result.samples.group.tolist() == list(range(1, 41))
    assert (result.quarantine, result.warnings) == ([], [])
    assert list(result.near_duplicates.columns) == NEAR_COLUMNS
    assert set(result.facts.values()) == {0}


def test_near_duplicates_share_a_split_and_a_group() -> None:
    rows = of_two_classes(40)
    result = resolved(rows, alike=[(2, 4), (4, 8), (30, 31)])
    there, together = splits(rows, result), groups(rows, result)
    assert there[2] == there[4] == there[8]
    assert there[30] == there[31]
    assert [together[number] for number in (2, 4, 8, 30, 31, 32)] == [2, 2, 2, 30, 30, 32]
    table = result.near_duplicates
    assert table["set"].tolist() == [0, 0, 0, 1, 1]
    assert set(table["outcome"]) == {"grouped"}
    assert (result.facts["near_duplicates"], result.facts["near_duplicate_sets"]) == (5, 2)


def test_near_duplicates_are_not_looked_for_unless_asked() -> None:
    result = resolved(of_two_classes(40), alike=None)
    assert list(result.near_duplicates.columns) == NEAR_COLUMNS
    typed = resolved(of_two_classes(40), alike=[(1, 2)]).near_duplicates
    assert result.near_duplicates.dtypes.tolist() == typed.dtypes.tolist()
    assert (len(result.near_duplicates), len(typed)) == (0, 2)


def test_a_group_is_one_across_copies_and_classes() -> None:
    rows = [*of_two_classes(40), Row(91, "a", group=7), Row(92, "b", group=7), Row(93, "a", group=8)]
    rows += [Row(94, "b", pixels=92, group=8)]  # a copy of 92: its two groups are one
    result = resolved(rows)
    together, there = groups(rows, result), splits(rows, result)
    assert together[91] == together[92] == together[93] == 91
    assert there[91] == there[92] == there[93]
    assert result.facts["groups"] == 2


def test_a_leak_in_a_ready_made_split_is_left_out_and_named() -> None:
    rows = [Row(1, "a", "test"), Row(2, "b", "test"), Row(3, "a", "val"), Row(4, "b", "val")]
    rows += [Row(number, "ab"[number % 2], "train") for number in range(5, 11)]
    result = resolved(rows, alike=[(1, 7)])
    assert result.brought == {"train", "val", "test"}
    assert 7 not in splits(rows, result)
    assert [(row.path, row.reason, row.detail) for row in result.quarantine] == [
        ("7.png", "leakage", "a near-duplicate of 1.png in test")
    ]
    assert result.near_duplicates["outcome"].tolist() == ["kept", "left_out"]
    assert result.near_duplicates["split"].tolist() == ["test", "train"]
    assert result.warnings == [
        "1 near-duplicate pairs straddle splits that are given: the images that leak are left out"
    ]
    kept = resolved(rows, alike=[(1, 7)], leaked="keep")
    assert splits(rows, kept)[7] == "train"
    assert kept.near_duplicates["outcome"].tolist() == ["kept", "kept"]
    assert "are kept" in kept.warnings[0]


def test_an_unlabeled_image_does_not_come_near_what_was_dealt_to_test() -> None:
    rows = [*of_two_classes(40), Row(99, None), Row(98, None)]
    tested, trained = (
        min(i for i, split in splits(rows, resolved(rows)).items() if split == name)
        for name in ("test", "train")
    )
    result = resolved(rows, alike=[(tested, 99), (trained, 98)])
    there = splits(rows, result)
    assert there[tested] == "test"
    assert 99 not in there
    assert there[98] == "unlabeled"
    assert result.samples.label[result.samples.split == UNLABELED].tolist() == [NO_LABEL]
    assert resolved(rows, alike=[(tested, 99)], leaked="keep").facts["left_out"] == 0


def test_a_new_image_between_two_frozen_splits_is_left_out() -> None:
    rows = of_two_classes(20)
    frozen = {number: "test" if number < 5 else "train" for number in range(1, 20)}
    result = resolved(rows, frozen, alike=[(1, 20), (6, 20)])
    assert [(row.path, row.reason) for row in result.quarantine] == [("20.png", "bridges_splits")]
    assert "1.png in test and 6.png in train" in result.quarantine[0].detail
    assert result.near_duplicates["split"].isna().tolist() == [False, False, True]
    assert any("tied to images of two splits" in line for line in result.warnings)


def test_what_is_left_out_neither_counts_nor_ties() -> None:
    rows = [Row(number) for number in range(1, 41)]
    bridges = range(3, 23)
    alike = [(a, b) for a in (1, 2) for b in bridges] + [(2, 30)]
    result = resolved(rows, {1: "test", 2: "train"}, alike)
    there, together = splits(rows, result), groups(rows, result)
    assert Counter(there.values()) == {"train": 14, "val": 2, "test": 4}  # of the 20 that are left
    assert (there[30], together[30], together[1]) == ("train", 2, 1)


def test_frozen_images_that_straddle_stay_and_are_warned_of() -> None:
    rows = of_two_classes(4)
    frozen = {1: "test", 2: "train", 3: "train", 4: "val"}
    result = resolved(rows, frozen, alike=[(1, 2)])
    assert splits(rows, result) == frozen
    assert any("as they are frozen" in line for line in result.warnings)
    assert result.facts["near_duplicate_sets_in_several_splits"] == 1


def test_what_is_told_of_splits_and_labels() -> None:
    rows = [*of_two_classes(20), Row(50, None, "test"), Row(51, "a", "unlabeled"), Row(52, "a", "val")]
    rows += [Row(60, "a", pixels=1000), Row(61, "b", pixels=1000), Row(62, "a", pixels=2)]
    result = resolved(rows, {1: "train", 52: "test", 1234: "val"})
    told = "\n".join(result.warnings)
    assert "1 rows of the frozen splits are for samples that are not in the source" in told
    assert "1 rows of the frozen splits name another split" in told
    assert "1 files that the source puts in validation or test have no label" in told
    assert "1 files have a label, but the source calls them unlabeled" in told
    assert "1 images stand under several labels" in told
    assert len(result.warnings) == 5
    assert result.facts["splits_frozen"] == result.facts["splits_frozen_absent"] == 1
    assert (result.facts["conflicts"], result.facts["duplicates"]) == (1, 1)


def test_a_group_of_nearly_everything_is_odd() -> None:
    rows = [Row(number, "ab"[number % 2], group=1 + (number > 30)) for number in range(1, 60)]
    assert any("30 of 59 images must stay together" in line for line in resolved(rows).warnings)


def test_nothing_found() -> None:
    assert len(resolved([]).samples) == 0


# --- whatever is found -------------------------------------------------------------------------


@st.composite
def sources(draw: st.DrawFn) -> list[Row]:
    """Files of few images and groups, so that they meet; equal ids have equal pixels."""
    pixels_of = draw(st.lists(st.integers(0, 14), min_size=30, max_size=30))
    files = st.builds(
        lambda number, label, split, group: Row(number, label, split, group, 100 + pixels_of[number]),
        st.integers(0, 29),
        st.sampled_from(["a", "b", "c", "a", "b", "c", None]),
        st.sampled_from([None, None, None, "train", "val", "test", "unlabeled"]),
        st.sampled_from([0, 0, 0, 1, 2, 3]),
    )
    rows = draw(st.lists(files, min_size=1, max_size=30))
    return [Row(r.id, r.label, r.split, r.group, r.pixels, f"f{i}") for i, r in enumerate(rows)]


alikes = st.lists(st.tuples(st.integers(100, 114), st.integers(100, 114)), max_size=8)
freezes = st.dictionaries(st.integers(0, 29), st.sampled_from(["train", "val", "test"]), max_size=10)
leaks: st.SearchStrategy[Leaked] = st.sampled_from(["leave_out", "keep"])


def contents(rows: Sequence[Row], result: Resolved) -> Any:
    """What does not depend on which of equal files came first."""
    ids = hex_ids(np.array([rows[position].id for position in result.samples.place.tolist()], np.uint64))
    near = result.near_duplicates.drop(columns="source")
    return (
        list(
            zip(
                ids,
                result.samples.label.tolist(),
                result.samples.split.tolist(),
                result.samples.group.tolist(),
                strict=True,
            )
        ),
        Counter(result.duplicates[["sample_id", "kept_id"]].itertuples(index=False, name=None)),
        Counter(row.reason for row in result.quarantine),
        near.astype(str).to_numpy().tolist(),
        result.conflicts.to_numpy().tolist(),
        result.facts,
        result.warnings,
    )


@settings(max_examples=40, deadline=None)
@given(sources(), freezes, alikes, leaks)
def test_every_file_ends_in_one_table(
    rows: list[Row], frozen: dict[int, str], alike: Alike, leaked: Leaked
) -> None:
    result = resolved(rows, frozen, alike, leaked)
    kept = [f"f{position}" for position in result.samples.place.tolist()]
    gone = [*result.duplicates["source"], *(row.path for row in result.quarantine)]
    assert Counter(kept + gone) == Counter(row.source for row in rows)
    ids = [rows[position].id for position in result.samples.place.tolist()]
    assert ids == sorted(set(ids))
    assert ((result.samples.label == NO_LABEL) == (result.samples.split == UNLABELED)).all()
    assert ((result.samples.split >= 0) & (result.samples.split <= UNLABELED)).all()


@settings(max_examples=40, deadline=None)
@given(sources(), freezes, alikes, leaks, st.randoms(use_true_random=False))
def test_the_order_of_files_does_not_matter(
    rows: list[Row], frozen: dict[int, str], alike: Alike, leaked: Leaked, random: Any
) -> None:
    shuffled = random.sample(rows, len(rows))
    assert contents(shuffled, resolved(shuffled, frozen, alike, leaked)) == contents(
        rows, resolved(rows, frozen, alike, leaked)
    )


@settings(max_examples=40, deadline=None)
@given(sources(), freezes, alikes)
def test_nothing_straddles_splits_but_what_was_frozen_so(
    rows: list[Row], frozen: dict[int, str], alike: Alike
) -> None:
    result = resolved(rows, frozen, alike)
    there = {
        rows[position].pixels: split
        for position, split in zip(result.samples.place.tolist(), result.samples.split.tolist(), strict=True)
    }
    if len(set(frozen.values())) < 2:
        for number in set(result.samples.group.tolist()):
            inside = set(result.samples.split[result.samples.group == number].tolist())
            assert len(inside) == 1 or not inside & {VAL, TEST}
    tied = [{a, b} for a, b in alike]
    for group in (1, 2, 3):
        tied.append({row.pixels for row in rows if row.group == group})
    for members in tied:
        found = {there[pixels] for pixels in members if pixels in there}
        if found & {VAL, TEST}:
            frozen_so = {frozen[row.id] for row in rows if row.pixels in members and row.id in frozen}
            assert len(found) == 1 or len(frozen_so) > 1


@settings(max_examples=40, deadline=None)
@given(sources(), sources(), alikes, alikes)
def test_old_samples_stay_whatever_is_added(
    rows: list[Row], more: list[Row], alike: Alike, more_alike: Alike
) -> None:
    """Added files may be copies of old ones, but contradict no label and bring no splits."""
    old = [Row(r.id, r.label, None, r.group, r.pixels, r.source) for r in rows]
    first = resolved(old, {}, alike)
    frozen = {number: split for number, split in splits(old, first).items() if split != "unlabeled"}
    label_of = {row.pixels: row.label for row in reversed(old)}
    added = [
        Row(r.id + 50, label_of.get(r.pixels, f"new{r.pixels}"), None, r.group, r.pixels, f"new{i}")
        for i, r in enumerate(more)
    ]
    both = [*old, *added]
    second = splits(both, resolved(both, frozen, [*alike, *more_alike]))
    assert {number: second.get(number) for number in frozen} == frozen


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 99))
def test_single_images_are_stratified_also_beside_frozen_ones(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [f"c{label}" for label, count in enumerate(counts) for _ in range(count)]
    rows = [Row(number, label) for number, label in enumerate(labels)]
    first = [row for row in rows if rng.random() < 0.5]
    frozen = splits(first, resolved(first, shares=(0.15, 0.25)))
    there = splits(rows, resolved(rows, frozen, shares=(0.15, 0.25)))
    for label, count in enumerate(counts):
        share = Counter(there[row.id] for row in rows if row.label == f"c{label}")
        assert share["train"] >= 1
        assert share["test"] == pytest.approx(0.25 * count, abs=1)
        assert share["val"] == pytest.approx(0.15 * count, abs=1)
