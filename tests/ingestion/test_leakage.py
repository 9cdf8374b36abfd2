"""What ties between images mean: who joins whom, and who is left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from item_rows import Row, items_of, pairs_of

from stages.dataset.ids import SPLITS, number_of
from stages.ingestion.items import NO_SPLIT, SPLIT_CODE, TEST, TRAIN, UNLABELED, VAL
from stages.ingestion.leakage import Settled, Ties, leave_out_unlabeled, near_table, settle, tie

Leaked = Literal["leave_out", "keep"]


def ties_of(count: int, pairs: Sequence[tuple[int, int]] = (), groups: Sequence[Sequence[int]] = ()) -> Ties:
    member = np.array([image for group in groups for image in group], np.int64)
    names = np.array([number + 1 for number, group in enumerate(groups) for _ in group], np.uint64)
    return tie(count, pairs_of(*pairs), member, names)


def settled(
    splits: Sequence[str | None],
    ties: Ties,
    *,
    trains: Collection[int] = (),
    old: Collection[int] = (),
    brought: Collection[str] = (),
    leaked: Leaked = "leave_out",
) -> Settled:
    index = np.arange(len(splits))
    codes = np.array([NO_SPLIT if name is None else SPLIT_CODE[name] for name in splits], np.int8)
    return settle(codes, np.isin(index, list(trains)), np.isin(index, list(old)), ties, brought, leaked)


def names(result: Settled) -> list[str | None]:
    """The split of each image; `out` where it is left out."""
    known = [None if code == NO_SPLIT else SPLITS[code] for code in result.split.tolist()]
    return ["out" if out else name for out, name in zip(result.left_out.tolist(), known, strict=True)]


def refusals(result: Settled) -> list[tuple[int, str, list[tuple[int, str]], str]]:
    rows = sorted(result.refused, key=lambda row: row.image)
    return [(r.image, r.reason, [(i, SPLITS[s]) for i, s in r.tied_to], r.how) for r in rows]


def test_the_training_copy_of_a_test_image_is_left_out() -> None:
    result = settled(["train", "test", "val", "train"], ties_of(4, [(0, 1), (1, 2)]), brought=["val", "test"])
    assert names(result) == ["out", "test", "out", "train"]
    assert refusals(result) == [
        (0, "leakage", [(1, "test")], "near"),
        (2, "leakage", [(1, "test")], "near"),
    ]
    assert (result.leaking_pairs, result.leaking_groups) == (2, 0)


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    ties = ties_of(5, [(0, 1), (1, 2), (3, 4)])
    result = settled(["train", "val", "test", "train", "val"], ties, brought=["val", "test"])
    assert names(result) == ["out", "out", "test", "out", "val"]
    assert refusals(result) == [
        (0, "leakage", [(2, "test")], "connected"),
        (1, "leakage", [(2, "test")], "near"),
        (3, "leakage", [(4, "val")], "near"),
    ]


def test_a_chain_over_a_new_image_does_not_move_what_is_known() -> None:
    result = settled(["train", None, "test"], ties_of(3, [(0, 1), (1, 2)]), brought=["val", "test"])
    assert names(result) == ["train", "out", "test"]


def test_leaks_are_kept_where_so_asked_but_counted() -> None:
    result = settled(["train", "test"], ties_of(2, [(0, 1)]), brought=["val", "test"], leaked="keep")
    assert names(result) == ["train", "test"]
    assert (result.leaking_pairs, result.refused) == (1, [])


def test_a_group_across_ready_made_splits_leaks() -> None:
    result = settled(["train", "test", "test", "train"], ties_of(4, [], [[0, 1, 2], [3]]), brought=["test"])
    assert names(result) == ["out", "test", "test", "train"]
    assert refusals(result) == [(0, "leakage", [(1, "test")], "grouped")]
    assert (result.leaking_pairs, result.leaking_groups) == (0, 1)


def test_old_samples_stay_and_the_new_one_goes() -> None:
    ties = ties_of(4, [(0, 1), (2, 3)])
    result = settled(["train", "test", "val", "test"], ties, old=[0, 2, 3], brought=["val", "test"])
    assert names(result) == ["train", "out", "val", "test"]
    assert (result.old_ties, result.leaking_pairs) == (1, 1)


def test_new_images_follow_the_ones_they_are_tied_to() -> None:
    ties = ties_of(6, [(0, 1), (1, 2)], [[3, 4]])
    result = settled(["test", None, None, None, None, None], ties, old=[0])
    assert names(result) == ["test", "test", "test", None, None, None]
    assert result.joined.tolist() == [False, True, True, False, False, False]
    assert result.unit.tolist()[3:] == [3, 3, 5]


def test_what_would_bridge_two_splits_is_left_out_as_a_whole() -> None:
    result = settled(["test", None, None, "train", None], ties_of(5, [(0, 1), (1, 2), (2, 3)]), old=[0, 3])
    assert names(result) == ["test", "out", "out", "train", None]
    assert refusals(result) == [
        (1, "bridges_splits", [(0, "test"), (3, "train")], "connected"),
        (2, "bridges_splits", [(0, "test"), (3, "train")], "connected"),
    ]


def test_what_the_source_calls_training_does_not_join_its_test_split() -> None:
    ties = ties_of(4, [(0, 1), (1, 2)])
    result = settled(["test", None, None, None], ties, trains=[1, 2, 3], brought=["train", "test"])
    assert names(result) == ["test", "out", "out", None]
    assert refusals(result) == [
        (1, "leakage", [(0, "test")], "near"),
        (2, "leakage", [(0, "test")], "connected"),
    ]
    assert result.leaking_pairs == 1
    result = settled(["test", None, None, None], ties, trains=[2], brought=["train", "test"])
    assert names(result) == ["test", "out", None, None]
    assert refusals(result) == [(1, "leakage", [(0, "test")], "near")]
    kept = settled(["test", None, None, None], ties, trains=[2], brought=["train", "test"], leaked="keep")
    assert names(kept) == ["test", "test", "train", None]


def test_nothing_is_added_to_a_split_that_the_source_brings() -> None:
    ties = ties_of(3, [(0, 1), (1, 2)])
    result = settled(["test", None, None], ties, brought=["test"])
    assert names(result) == ["test", "out", None]
    assert names(settled(["test", None, None], ties, old=[0])) == ["test", "test", "test"]


def test_freezing_what_came_out_changes_nothing() -> None:
    """A chain that leaks is left out whether its stronger end is brought or frozen."""
    ties = ties_of(4, [(0, 1)], [[1, 2]])
    splits, brought = ["test", "train", "train", "train"], ["train", "val", "test"]
    first = names(settled(splits, ties, brought=brought))
    assert first == ["test", "out", "out", "train"]
    frozen = [row for row, name in enumerate(first) if name != "out"]
    assert names(settled(splits, ties, old=frozen, brought=brought)) == first


def test_where_leaks_are_kept_training_images_still_follow_the_others() -> None:
    ties = ties_of(3, [(0, 2), (1, 2)])
    result = settled(
        ["test", "val", None], ties, trains=[2], old=[1], brought=["train", "test"], leaked="keep"
    )
    assert names(result) == ["test", "val", "val"]


def test_what_the_source_calls_training_joins_splits_that_were_dealt() -> None:
    ties = ties_of(4, [(0, 1), (2, 3)])
    result = settled(["val", None, "test", None], ties, trains=[1, 3], old=[0, 2], brought=["train"])
    assert names(result) == ["val", "val", "test", "test"]


def test_unlabeled_images_keep_away_from_test_and_tie_nobody_else() -> None:
    ties = ties_of(5, [(0, 1), (1, 2), (3, 4)])
    result = settled(["test", "unlabeled", None, "unlabeled", "train"], ties, old=[0])
    assert names(result) == ["test", "unlabeled", None, "unlabeled", "train"]
    result.split[2] = TRAIN
    leave_out_unlabeled(result, ties)
    assert names(result) == ["test", "out", "train", "unlabeled", "train"]
    assert refusals(result) == [(1, "leakage", [(0, "test")], "near")]


def test_a_near_duplicate_is_named_before_a_fellow_of_the_group() -> None:
    result = settled(["test", "test", "train"], ties_of(3, [(1, 2)], [[0, 2]]), brought=["val", "test"])
    assert refusals(result) == [(2, "leakage", [(1, "test")], "near")]


def test_what_became_of_each_near_duplicate() -> None:
    found = [(0, 1), (1, 2), (2, 5), (3, 4), (6, 7)]
    pairs = pairs_of(*found, similarity=[0.9, 0.95, 0.9, 0.8, 0.9])
    ties = tie(9, pairs, np.zeros(0, np.int64), np.zeros(0, np.uint64))
    splits = ["test", None, None, "train", "test", None, "train", "train", None]
    result = settled(splits, ties, old=[0], brought=["val"])
    near = near_table(items_of([Row(number) for number in range(9)]), result, ties, pairs)
    assert [number_of(key) for key in near["sample_id"]] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert near["set"].tolist() == [0, 0, 0, 1, 1, 0, 2, 2]
    assert [number_of(key) for key in near["nearest_id"]] == [1, 2, 1, 4, 3, 2, 7, 6]
    assert near["similarity"][2] == np.float32(0.95)
    assert near["outcome"].tolist() == [
        "grouped", "joined", "joined", "left_out", "kept", "joined", "grouped", "grouped",
    ]  # fmt: skip


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[str | None], list[tuple[int, int]], list[list[int]]]:
    count = draw(st.integers(2, 12))
    image = st.integers(0, count - 1)
    split = st.sampled_from([None, None, "train", "val", "test", "unlabeled"])
    edges = st.lists(st.tuples(image, image).filter(lambda pair: pair[0] != pair[1]), max_size=12)
    groups = st.lists(st.lists(image, min_size=1, max_size=4, unique=True), max_size=3)
    return draw(st.lists(split, min_size=count, max_size=count)), draw(edges), draw(groups)


@settings(max_examples=100, deadline=None)
@given(
    problem=problems(),
    marks=st.sets(st.integers(0, 11)),
    brought=st.sampled_from([(), ("train", "test"), ("train", "val"), ("train", "val", "test")]),
    seed=st.integers(0, 99),
)
def test_no_tie_straddles_splits(
    problem: tuple[list[str | None], list[tuple[int, int]], list[list[int]]],
    marks: set[int],
    brought: tuple[str, ...],
    seed: int,
) -> None:
    splits, pairs, groups = problem
    ties = ties_of(len(splits), pairs, groups)
    old = [i for i in marks if i < len(splits) and splits[i] in ("train", "val", "test")]
    trains = [] if len(brought) == 3 else [i for i in marks if i < len(splits) and splits[i] is None]
    result = settled(splits, ties, trains=trains, old=old, brought=brought)
    # Units go to random splits that the source does not bring; `deal` does no other.
    options = [code for code in (TRAIN, VAL, TEST) if code == TRAIN or SPLITS[code] not in brought]
    of_unit = np.random.default_rng(seed).choice(options, len(splits))
    result.split = np.where(result.split == NO_SPLIT, of_unit[result.unit], result.split).astype(np.int8)
    leave_out_unlabeled(result, ties)

    assert not result.left_out[old].any()
    assert len({row.image for row in result.refused}) == len(result.refused) == result.left_out.sum()
    for i, name in enumerate(splits):
        assert name is None or SPLITS[result.split[i]] == name
    for i in trains:
        assert result.left_out[i] or SPLITS[result.split[i]] not in set(brought) - {"train"}
    for members in [*pairs, *groups]:
        left = [i for i in members if not result.left_out[i]]
        there = {int(result.split[i]) for i in left}
        if there & {VAL, TEST} and len(there) > 1:
            of_old = {int(result.split[i]) for i in left if i in old}
            assert len(of_old) > 1  # frozen so
            assert of_old == there
            assert UNLABELED not in there
