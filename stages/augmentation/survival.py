"""Check whether labels survive a policy: the share of images that a model still recognises after it.

The model has not seen the images' originals, so that it goes by what makes their class. Only images that it
recognises untransformed are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.augmentation.copying import transformed
from stages.augmentation.transforms import POLICY_KEY, Part, Policy, parts, without
from stages.dataset.base import View
from stages.dataset.ids import derived_id, sample_seed
from stages.errors import WinnowError

Destroying = Literal["leave_out", "warn", "stop"]
WHOLE = "policy"
ALL = -1  # classes, in place of the index of one
_COLUMNS = ["transform", "tried", "recognised", "recognised_before", "survival", "worst_class"]
_COLUMNS += ["worst_survival", "decision", "key"]
_IMAGES = 500  # tried, of all classes together
_FEW = 10  # recognised images from which their share says something
_NAMED = 3  # transforms of which the least survives
_CHANCE = 0.05  # of condemning a transform that does no harm


class HeldOut(Protocol):
    """Models that did not see the images they are asked about; `judge.Judge` is one."""

    def held_out(self) -> NDArray[np.float32]:
        """Predict the real images, N×K."""

    def of_copies(self, images: NDArray[np.uint8], parents: NDArray[np.int64]) -> NDArray[np.float32]:
        """Predict changed real images, M×K, by models that did not see their parents."""


@dataclass(frozen=True)
class Survival:
    """Counts of images that the model recognises before and after a transform, or a policy.

    Attributes
    ----------
    before : int64, K; images of each class that the model recognises untransformed; none of classes
        that get no copies
    after : int64, K; how many of those it still recognises
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]

    @property
    def share(self) -> float:
        """Return the share over all classes that get copies, 0 to 1; NaN where none was recognised before."""
        return float(self.after.sum() / self.before.sum()) if self.before.any() else float("nan")

    @property
    def of_class(self) -> NDArray[np.float64]:
        """Return the share of each class, K; NaN where too few were recognised to say anything."""
        return np.where(self.before >= _FEW, self.after / np.maximum(self.before, 1), np.nan)

    def destroyed(self, min_recognised: float) -> list[int]:
        """Return the classes of which less than `min_recognised` survives: indices, `ALL` for all together.

        Less means less beyond chance: the exact upper bound (Clopper and Pearson 1934) is below it,
        at an error of .05 over all that is looked at (Bonferroni).
        """
        groups = {ALL: (int(self.before.sum()), int(self.after.sum()))}
        groups |= dict(enumerate(zip(self.before.tolist(), self.after.tolist(), strict=True)))
        groups = {group: counts for group, counts in groups.items() if counts[0] >= _FEW}
        return [
            group
            for group, (before, after) in groups.items()
            if upper_bound(after, before, _CHANCE / len(groups)) < min_recognised
        ]


@dataclass(frozen=True)
class PolicyVerdict:
    """The policy to use, and what was found about its transforms.

    Attributes
    ----------
    policy : to make the copies with
    table : a row a transform and one, `policy`, for all together that were not left out. Columns
        `transform` (name), `tried` (images), `recognised` and `recognised_before` (after and before
        it), `survival` (share, 0 to 1), `worst_class` and `worst_survival` (empty where too few of a
        class were recognised), `decision` (`kept`, `left_out` or `warned`), `key` (where it stands)
    warnings : a sentence on each transform that destroys its class, or on why none could be checked
    notes : sentences on classes of which it could not be told by themselves
    """

    policy: Policy
    table: pd.DataFrame
    warnings: list[str]
    notes: list[str]

    @property
    def share(self) -> float | None:
        """Return the survival under all transforms that were not left out; None where there is none."""
        whole = self.table.loc[self.table["transform"] == WHOLE, "survival"].dropna()
        return float(whole.iloc[0]) if len(whole) else None


def unchecked(policy: Policy, why: str = "", destroying: Destroying = "warn") -> PolicyVerdict:
    """Return the verdict where nothing was tried; `why` is the reason, empty where nothing had to be.

    Raises
    ------
    WinnowError
        Where there is a reason, and `destroying` is `stop`.
    """
    return PolicyVerdict(
        policy, pd.DataFrame(columns=_COLUMNS), _cannot_say(why, destroying) if why else [], []
    )


def upper_bound(successes: int, trials: int, chance: float) -> float:
    """Return the exact one-sided upper bound of a share, at an error of `chance`."""
    from scipy.stats import beta

    return 1.0 if successes >= trials else float(beta.ppf(1.0 - chance, successes + 1, trials - successes))


def check_survival(
    real: View,
    policy: Policy,
    judge: HeldOut,
    *,
    copied: NDArray[np.bool_],
    min_recognised: float,
    destroying: Destroying,
    seed: int,
    key: str = POLICY_KEY,
) -> PolicyVerdict:
    """Try each transform of a policy alone and always, then all together as they will be used.

    Parameters
    ----------
    real : the images that the judge was cross-fitted on
    policy : a valid one
    judge : of the real images
    copied : bool, K; classes that copies are to be made of; images of the others are not tried
    min_recognised : share under which a transform destroys its class
    destroying : what is done about it: `leave_out` leaves it out of the policy, `warn` says so,
        `stop` raises, also where too few images are recognised to say. Where only all transforms
        together do too much, `leave_out` leaves out the one of which the least survives, then the
        next.
    seed : of the choice of images and of the transforms
    key : of the policy, for messages

    Raises
    ------
    WinnowError
        Where `destroying` is `stop` and labels do not survive; the message names the transform's key.
    """
    trial = _Trial(real, judge, copied, min_recognised, seed, key)
    too_few = _cannot_say(trial.too_few(), destroying) if trial.too_few() else []
    singles = parts(policy, key)
    found = {part.key: trial.measure(part.alone, part.key) for part in singles}
    condemned = {place for place, survival in found.items() if trial.destroyed(survival)}
    warnings = [
        f"{trial.words(p.key, p.name, found[p.key])}{_CONSEQUENCE[destroying].format(p.name)}"
        for p in singles
        if p.key in condemned
    ]
    left_out = set(condemned) if destroying == "leave_out" else set()
    used, whole = without(policy, left_out, key), None
    while used and not (warnings and destroying == "stop"):
        whole = trial.measure(used, WHOLE)
        if not trial.destroyed(whole):
            break
        order = [p for p in singles if p.key not in left_out]
        order.sort(key=lambda part: (found[part.key].share, part.key))
        warnings.append(
            f"{trial.words(key, 'all of it', whole)}; worst by themselves: {_alone(order, found)}"
            f"{_CONSEQUENCE[destroying].format(order[0].name)}"
        )
        if destroying != "leave_out":
            break
        left_out.add(order[0].key)
        used = without(policy, left_out, key)
    if warnings and destroying == "stop":
        raise WinnowError(f"{warnings[0]}; leave it out or make it milder, or change augment.destroying")
    rows = [
        trial.row(p.name, p.key, found[p.key], _decision(p.key in left_out, p.key in condemned))
        for p in singles
    ]
    if used and whole is not None:
        rows.append(trial.row(WHOLE, key, whole, _decision(False, trial.destroyed(whole))))
    return PolicyVerdict(used, pd.DataFrame(rows, columns=_COLUMNS), too_few + warnings, trial.unjudged())


# What follows for a transform.
_CONSEQUENCE = {"leave_out": "; left out: {}", "warn": "; kept all the same", "stop": ""}


def _alone(order: Sequence[Part], found: Mapping[str, Survival]) -> str:
    """List the first transforms, each with what survives it by itself."""
    return ", ".join(f"{part.name} ({found[part.key].share:.0%})" for part in order[:_NAMED])


def _cannot_say(why: str, destroying: Destroying) -> list[str]:
    """Warn that labels may not survive; a WinnowError where that must not pass."""
    warning = f"whether labels survive could not be checked: {why}"
    if destroying == "stop":
        raise WinnowError(
            f"augment.destroying = 'stop', and {warning}; set augment.min_recognised to 0, which switches "
            "the check off, or augment.destroying to warn"
        )
    return [f"{warning}; every transform is kept"]


def _decision(left_out: bool, condemned: bool) -> str:
    return "left_out" if left_out else "warned" if condemned else "kept"


class _Trial:
    """Try transforms on a sample of images that the judge recognises untransformed."""

    def __init__(
        self,
        real: View,
        judge: HeldOut,
        copied: NDArray[np.bool_],
        min_recognised: float,
        seed: int,
        key: str,
    ) -> None:
        self.real, self.judge, self.copied = real, judge, copied
        self.min_recognised, self.seed, self.key = min_recognised, seed, key
        drawn = _draw(real.labels, [str(name) for name in real.sample_ids], np.flatnonzero(copied), seed)
        recognised = judge.held_out().argmax(axis=1) == real.labels
        self.tried, self.chosen = len(drawn), drawn[recognised[drawn]]
        self.before = self._count(self.chosen)

    def measure(self, policy: Policy, name: str) -> Survival:
        """Count what the judge recognises after a policy; `name` seeds it."""
        ids = [derived_id(str(sample), name, 0) for sample in self.real.sample_ids[self.chosen]]
        copies = transformed(self.real.images, self.chosen, ids, policy, self.seed, key=self.key)
        answers = self.judge.of_copies(copies, self.chosen).argmax(axis=1)
        return Survival(self.before, self._count(self.chosen[answers == self.real.labels[self.chosen]]))

    def destroyed(self, survival: Survival) -> bool:
        return bool(survival.destroyed(self.min_recognised))

    def words(self, place: str, name: str, survival: Survival) -> str:
        """Describe what is wrong with a transform, by the classes of which too little survives."""
        groups = survival.destroyed(self.min_recognised)
        shares = [f"{survival.share:.0%} of all classes that get copies together"] if ALL in groups else []
        single = [group for group in groups if group != ALL]
        if single:
            worst = min(single, key=lambda label: survival.of_class[label])
            shares.append(f"{survival.of_class[worst]:.0%} of class {self.real.classes[worst]!r}")
        return (
            f"{place}: after {name}, of the images that a model recognised before it recognises "
            f"{' and '.join(shares)}, and augment.min_recognised = {self.min_recognised:g}"
        )

    def too_few(self) -> str:
        """Explain why nothing can be said; empty where something can."""
        recognised = int(self.before.sum())
        if recognised >= _FEW:
            return ""
        return (
            f"of {self.tried} images of the classes that get copies the model recognises {recognised}, too "
            "few to say"
        )

    def unjudged(self) -> list[str]:
        """Name the classes that could not be judged by themselves for want of images."""
        few = [self.real.classes[index] for index in np.flatnonzero(self.copied & (self.before < _FEW))]
        if not few or self.too_few():
            return []
        return [
            f"whether labels survive could not be told for single classes with fewer than {_FEW} recognised "
            f"images: {', '.join(few)}"
        ]

    def row(self, name: str, place: str, survival: Survival, decision: str) -> dict[str, object]:
        """Return a row of the table."""
        shares = survival.of_class
        known = not np.isnan(shares).all()
        return {
            "transform": name,
            "tried": self.tried,
            "recognised": int(survival.after.sum()),
            "recognised_before": int(survival.before.sum()),
            "survival": round(survival.share, 4),
            "worst_class": self.real.classes[int(np.nanargmin(shares))] if known else None,
            "worst_survival": round(float(np.nanmin(shares)), 4) if known else None,
            "decision": decision,
            "key": place,
        }

    def _count(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(self.real.labels[rows], minlength=len(self.real.classes)).astype(np.int64)


def _draw(
    labels: NDArray[np.int64], names: Sequence[str], wanted: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Draw images to try, equally many of each class of `wanted`, whatever the samples' order."""
    order = np.argsort([sample_seed(seed, name) for name in names], kind="stable")
    share = max(1, _IMAGES // max(len(wanted), 1))
    return np.concatenate([order[:0], *(order[labels[order] == label][:share] for label in wanted)])
