"""Plant known problems in training and validation, so that the pipeline can be scored.

Every choice follows from the seed and a sample's id alone, not from the order of files; and a
choice is nested: with more noise the labels that were wrong stay wrong, with a higher limit the
images that were kept stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stages.dataset.base import TRUTH_COLUMNS
from stages.errors import WinnowError
from stages.ingestion.splits import hash_order

_TRUTH_DTYPES = {
    "sample_id": "str",
    "split": "str",
    "true_label": "str",
    "given_label": "str",
    "removed": "bool",
}


@dataclass(frozen=True)
class Planted:
    """Samples with planted problems, and the truth about them.

    Attributes
    ----------
    samples : the rows that are left, `label` being the given one
    truth : `TRUTH_COLUMNS` for every training and validation row there was; `given_label` is null
        where the row was taken away
    """

    samples: pd.DataFrame
    truth: pd.DataFrame


def no_truth() -> pd.DataFrame:
    """Return the truth where nothing was planted: no rows, the same columns and dtypes."""
    return pd.DataFrame({name: pd.Series(dtype=_TRUTH_DTYPES[name]) for name in TRUTH_COLUMNS})


def plant(
    samples: pd.DataFrame,
    classes: Sequence[str],
    *,
    seed: int,
    label_noise: float,
    imbalance: float,
    max_per_class: int | None,
) -> Planted:
    """Plant a long tail, scarcity and label noise in train and val; test stays clean.

    Classes are ranked by the seed. The class of rank k of K keeps `max_per_class *
    imbalance**(-k / (K - 1))` training images, at least 1 and at most what it has (the exponential
    long tail of Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
    section 5.1); of its validation images it keeps the same share. Then exactly
    `round(label_noise * n)` labels of each of the two splits are replaced by another class, each
    as likely as the next (symmetric noise: Patrini et al., "Making Deep Neural Networks Robust to
    Label Noise", CVPR 2017).

    Parameters
    ----------
    samples : `sample_id`, `split`, `label`, and whatever else
    classes : class names, at least 2
    seed : of all choices
    label_noise : share of wrong labels, 0 to 1
    imbalance : commonest to rarest class, at least 1
    max_per_class : training images of the commonest class; None for as many as there are

    Raises
    ------
    WinnowError
        Where noise leaves a class without a training image that bears its name.
    """
    removed = _removed(samples, classes, seed, imbalance, max_per_class)
    left = samples[~samples["sample_id"].isin(removed)]
    wrong = {
        sample_id: label
        for split in ("train", "val")
        for sample_id, label in _wrong_labels(
            left[left["split"] == split], classes, seed, label_noise
        ).items()
    }
    given = [wrong.get(key, label) for key, label in zip(left["sample_id"], left["label"], strict=True)]
    planted = left.assign(label=given)
    for name in classes:
        if not ((planted["split"] == "train") & (planted["label"] == name)).any():
            raise WinnowError(
                f"simulate leaves no training image labelled {name!r}: "
                "lower simulate.label_noise or simulate.imbalance, or raise simulate.max_per_class"
            )
    touched = samples[samples["split"].isin(["train", "val"])]
    truth = pd.DataFrame(
        {
            "sample_id": touched["sample_id"],
            "split": touched["split"],
            "true_label": touched["label"],
            "given_label": touched["sample_id"].map(planted.set_index("sample_id")["label"]),
            "removed": touched["sample_id"].isin(removed),
        }
    )
    return Planted(planted, truth.astype(_TRUTH_DTYPES).sort_values("sample_id", ignore_index=True))


def _removed(
    samples: pd.DataFrame, classes: Sequence[str], seed: int, imbalance: float, max_per_class: int | None
) -> set[str]:
    """Choose the ids that the long tail takes away."""
    ids = {
        (split, name): rows["sample_id"].tolist()
        for (split, name), rows in samples.groupby(["split", "label"])
        if split in ("train", "val")
    }
    head = max_per_class or max(len(ids.get(("train", name), [])) for name in classes)
    removed: set[str] = set()
    for rank, name in enumerate(hash_order(classes, f"{seed}/class")):
        train, val = ids.get(("train", name), []), ids.get(("val", name), [])
        wanted = head * imbalance ** (-rank / max(len(classes) - 1, 1))
        keep = min(max(round(wanted), 1), len(train))
        keep_val = max(round(len(val) * keep / max(len(train), 1)), 1)
        removed.update(hash_order(train, f"{seed}/keep")[keep:])
        removed.update(hash_order(val, f"{seed}/keep")[keep_val:])
    return removed


def _wrong_labels(
    rows: pd.DataFrame, classes: Sequence[str], seed: int, label_noise: float
) -> dict[str, str]:
    """Choose ids, and a wrong label for each."""
    labels = dict(zip(rows["sample_id"], rows["label"], strict=True))
    chosen = hash_order(labels, f"{seed}/noise")[: round(label_noise * len(labels))]
    return {
        sample_id: _wrong_class(labels[sample_id], classes, f"{seed}/{sample_id}") for sample_id in chosen
    }


def _wrong_class(label: str, classes: Sequence[str], key: str) -> str:
    others = [name for name in classes if name != label]
    digest = hashlib.sha256(f"{key}/other".encode()).digest()
    return others[int.from_bytes(digest[:8], "little") % len(others)]
