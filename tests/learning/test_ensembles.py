from __future__ import annotations

import numpy as np
import pytest

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.ensembles import Share, fold_shares, mean_history

REAL = 40


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


MADE = np.arange(REAL + 20) >= REAL


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
