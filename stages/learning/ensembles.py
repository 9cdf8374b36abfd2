"""Ensembles over seeds or folds: what each member trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.learning.splitting import split_folds


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
        """The member's training view."""
        return self.data if self.rows is None else self.data.take(self.rows)

    @property
    def outside(self) -> View | None:
        """The real samples that it has not seen."""
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
    """A share for each fold of the real samples; what was made of a left-out sample is left out with it.

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
    """The rows of several members' histories, each figure the mean over the members."""
    return [
        {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for rows in zip(*histories, strict=True)
    ]
