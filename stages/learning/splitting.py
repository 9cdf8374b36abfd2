"""Split samples into stratified folds that keep groups together, for cross-validation and ensembles."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stages.dataset.base import View
from stages.errors import WinnowError

_SMALL = 0.1  # of a fold
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def split_folds(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
    folds: int,
    seed: int,
    *,
    named: str = "folds",
) -> list[Fold]:
    """Return for each fold the samples to train on and those left out, in ascending order.

    Where groups are small, samples by themselves are dealt by StratifiedKFold, and only those that
    share one by StratifiedGroupKFold, which takes seconds for some ten thousand groups. Where all
    are by themselves it is as without groups. A fold that the groups leave empty is not returned.

    Parameters
    ----------
    labels : N, indices of classes
    groups : N, a number a group; None where no two samples belong together
    folds : k
    seed : of the order in which samples are dealt
    named : what messages call `folds`

    Raises
    ------
    WinnowError
        Where no class has as many images as there are folds, or there are fewer groups.
    """
    largest = _largest_class(labels)
    if largest < folds:
        raise WinnowError(
            f"{named} = {folds}, but the commonest class has {largest} training "
            f"image{'' if largest == 1 else 's'}: lower it (2 at least), or bring more images"
        )
    numbers = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    if count < folds:
        raise WinnowError(
            f"{named} = {folds}, but the training images form {count} "
            f"group{'' if count == 1 else 's'}, which are not separated: lower it (2 at least), or "
            "bring images of more groups"
        )
    fold = _deal(labels, numbers, folds, seed % 2**32)
    parts = [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(folds)]
    return [part for part in parts if len(part[1])]


def _deal(labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Deal each sample to a fold."""
    sizes = np.bincount(groups)
    alone = (sizes == 1)[groups]
    # A large group unbalances its fold unless the rest is dealt with it in view.
    small = alone.all() or sizes.max() * folds <= _SMALL * len(labels)
    if not small or _largest_class(labels[alone]) < folds:
        alone = np.zeros_like(alone)
    together = ~alone
    fold = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A class with fewer images than folds is missing from some folds: that is what it is.
        warnings.filterwarnings("ignore", message="The least populated class")
        if alone.any():
            splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
            fold[alone] = _folds_of(splitter.split(labels[alone], labels[alone]), int(alone.sum()))
        shared = np.unique(groups[together], return_inverse=True)[1]
        if _largest_class(labels[together]) >= folds and shared.max() + 1 >= folds:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            parts = splitter.split(labels[together], labels[together], shared)
            fold[together] = _folds_of(parts, len(shared))
        else:  # too few for scikit-learn, and for stratification to mean anything
            fold[together] = np.random.default_rng(seed).permutation(folds)[shared % folds]
    return fold


def _folds_of(parts: Iterable[Fold], count: int) -> NDArray[np.int64]:
    fold = np.empty(count, np.int64)
    for number, (_, outside) in enumerate(parts):
        fold[outside] = number
    return fold


def _largest_class(labels: NDArray[np.int64]) -> int:
    return int(np.bincount(labels).max(initial=0))


@dataclass(frozen=True)
class Share:
    """What one member of an ensemble trains on; its images are copied when they are asked for.

    Attributes
    ----------
    data : the training view of all members
    rows : int64; what of it the member learns from; None: all
    left_out : int64; the real samples that were left out, for a score; None where none were
    """

    data: View
    rows: NDArray[np.int64] | None = None
    left_out: NDArray[np.int64] | None = None

    @property
    def inside(self) -> View:
        """Return the member's training view."""
        return self.data if self.rows is None else self.data.take(self.rows)

    @property
    def outside(self) -> View | None:
        """Return the real samples that the member has not seen."""
        return None if self.left_out is None else self.data.take(self.left_out)


def fold_shares(
    data: View,
    groups: NDArray[np.object_],
    made: NDArray[np.bool_],
    folds: int,
    seed: int,
    *,
    named: str = "folds",
) -> list[Share]:
    """Make a share for each fold of the real samples; copies of a left-out sample are left out with it.

    What a generator learnt from a left-out sample is still in the images that it made of others: with
    `gan` samples the scores are a little too good.

    Parameters
    ----------
    data : the training view, real samples and made ones
    groups : N, what must not be separated; a made sample's group is its parent's
    made : bool, N; which samples are made ones
    folds : how many; fewer come back where the groups leave a fold empty
    seed : of the folds
    named : what messages call `folds`

    Raises
    ------
    WinnowError
        Where no class has as many real images as there are folds, or there are fewer groups.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    real = np.flatnonzero(~made)
    shares = []
    for _, outside in split_folds(data.labels[real], numbers[real], folds, seed, named=named):
        left_out = real[outside]
        inside = np.flatnonzero(~np.isin(numbers, numbers[left_out]))
        shares.append(Share(data, inside, left_out))
    return shares


def mean_history(histories: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """Average the rows of several members' histories."""
    return [
        {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for rows in zip(*histories, strict=True)
    ]
