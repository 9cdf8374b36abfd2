from __future__ import annotations

import numpy as np
import pytest

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.splitting import Share, fold_shares, mean_history, split_folds

REAL = 40
MADE = np.arange(REAL + 20) >= REAL
LABELS = np.repeat([0, 1, 2], [30, 20, 10])


@pytest.fixture
def data() -> View:
    """40 real samples of two classes, and 20 made of the first 20, each a number that its pixels hold."""
    count = REAL + 20
    return View(
        images=np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1),
        labels=np.concatenate([np.arange(REAL) % 2, np.arange(20) % 2]).astype(np.int64),
        weights=np.arange(count, dtype=np.float32),
        sample_ids=np.array([f"{number:016x}" for number in range(count)], object),
        classes=["a", "b"],
    )


def groups_of(*together: tuple[int, ...]) -> np.ndarray:
    """Every real sample by itself but for the given ones; made samples with their parents."""
    groups = np.array([f"{number:016x}" for number in [*range(REAL), *range(20)]], object)
    for members in together:
        groups[np.isin(groups, groups[list(members)])] = groups[members[0]]
    return groups


def numbers(view: View) -> set[int]:
    return set(view.images.ravel().tolist())


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_out_is_seen_nowhere_in_the_members_training(data, seed):
    groups = groups_of((0, 5, 30), (8, 9))
    shares = fold_shares(data, groups, MADE, 4, seed)
    assert len(shares) == 4
    scored = [number for share in shares for number in numbers(share.outside)]
    assert sorted(scored) == list(range(REAL))
    for share in shares:
        inside, outside = numbers(share.inside), numbers(share.outside)
        assert not set(groups[list(inside)]) & set(groups[list(outside)])
        # all others are trained on: real ones, and made ones whose parents are
        assert inside == {
            number for number in range(REAL + 20) if groups[number] not in set(groups[list(outside)])
        }
        assert share.inside.weights.tolist() == sorted(inside)


def test_members_do_not_hold_copies_of_the_images(data):
    assert all(share.data is data for share in fold_shares(data, groups_of(), MADE, 4, 0))
    assert Share(data).inside is data
    assert Share(data).outside is None


def test_the_folds_follow_from_the_seed(data):
    one, same, other = (
        [sorted(numbers(share.outside)) for share in fold_shares(data, groups_of(), MADE, 4, seed)]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_more_folds_than_images_of_a_class_are_refused(data):
    with pytest.raises(WinnowError, match=r"train\.ensemble\.members = 21, but the commonest class has 20"):
        fold_shares(data, groups_of(), MADE, 21, 0, named="train.ensemble.members")


def test_a_history_is_the_mean_of_the_members():
    rows = [{"epoch": 1.0, "val_accuracy": 0.5}, {"epoch": 2.0, "val_accuracy": 0.75}]
    other = [{"epoch": 1.0, "val_accuracy": 1.0}, {"epoch": 2.0, "val_accuracy": 0.25}]
    assert mean_history([rows]) == rows
    assert mean_history([rows, other]) == [
        {"epoch": 1.0, "val_accuracy": 0.75},
        {"epoch": 2.0, "val_accuracy": 0.5},
    ]


def grouped(*members: list[int], count: int = 60) -> np.ndarray:
    """Every sample by itself, but for the members named."""
    groups = np.arange(count)
    for rows in members:
        groups[rows] = rows[0]
    return groups


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "members",
    [
        [],
        [[30, 31]],  # fewer than scikit-learn's splitter takes
        [list(range(12)), [20, 40, 59], [30, 31]],
        [[row, row + 1] for row in range(0, 30, 2)],
        [[row, row + 1] for row in range(0, 60, 2)],  # none is by itself
        [[row, row + 1] for row in range(0, 56, 2)],  # too few are
    ],
)
def test_a_group_is_never_on_both_sides_of_a_fold(members: list[list[int]], seed: int):
    groups = grouped(*members)
    parts = split_folds(LABELS, groups, 3, seed)
    assert sorted(np.concatenate([outside for _, outside in parts])) == list(range(60))
    for inside, outside in parts:
        assert not set(groups[inside]) & set(groups[outside])
        assert sorted([*inside, *outside]) == list(range(60))
        # stratified all the same: a third of 30, 20 and 10, give or take what the groups demand
        np.testing.assert_allclose(np.bincount(LABELS[outside], minlength=3), [10, 7, 3], atol=3)


def test_groups_of_one_are_as_no_groups():
    for plain, same in zip(
        split_folds(LABELS, None, 4, 1), split_folds(LABELS, np.arange(60), 4, 1), strict=True
    ):
        np.testing.assert_array_equal(plain[0], same[0])
        np.testing.assert_array_equal(plain[1], same[1])


def test_the_seed_decides():
    groups = grouped([0, 1], [2, 3], [40, 41])
    one, same, other = (split_folds(LABELS, groups, 3, seed) for seed in (1, 1, 2**32 + 2))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def test_a_class_rarer_than_the_folds_is_missing_from_some():
    labels = np.r_[np.zeros(20, np.int64), [1, 1]]
    parts = split_folds(labels, None, 5, 0)
    assert len(parts) == 5
    assert sorted(int((labels[outside] == 1).sum()) for _, outside in parts) == [0, 0, 0, 1, 1]


def test_a_fold_that_the_groups_leave_empty_is_left_out():
    groups = np.repeat([0, 1, 2, 3], [30, 28, 1, 1])
    parts = split_folds(np.zeros(60, np.int64), groups, 4, 0)
    assert all(len(outside) for _, outside in parts)
    assert sorted(np.concatenate([outside for _, outside in parts])) == list(range(60))


def test_fewer_images_than_folds_is_said():
    with pytest.raises(WinnowError, match=r"folds = 5.*has 3 training images"):
        split_folds(np.array([0, 0, 0, 1]), None, 5, 0)
    with pytest.raises(WinnowError, match="has 0 training images"):
        split_folds(np.zeros(0, np.int64), None, 2, 0)


def test_fewer_groups_than_folds_is_said():
    with pytest.raises(WinnowError, match=r"train\.ensemble\.members = 3.* form 2 groups.*lower it"):
        split_folds(LABELS, np.repeat([0, 1], 30), 3, 0, named="train.ensemble.members")
    with pytest.raises(WinnowError, match="form 1 group, which"):
        split_folds(LABELS, np.zeros(60, np.int64), 3, 0)
