"""The rows of the dataset: which classes are usable, in which order samples stand, what is planted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.errors import WinnowError
from stages.ids import SPLITS, hex_ids
from stages.reading.found import NO_LABEL, SPLIT_CODE, Found
from stages.samples.resolve import Resolved
from stages.samples.simulate import Planted, no_truth
from stages.sources.base import LEFT_OUT, Quarantined

_NAMED = 3  # classes that a warning names before it counts


@dataclass(frozen=True)
class Samples:
    """A row for every sample of the dataset, in the order of its images; M rows.

    Attributes
    ----------
    position : int64, index into the columns of `found`
    label : int32, index into `classes`, `found.NO_LABEL` for none
    split : int8, index into `ids.SPLITS`
    group : uint64, smallest id of what must not be separated
    classes : class names in index order, each with a training image
    found : what the scan found
    """

    position: NDArray[np.int64]
    label: NDArray[np.int32]
    split: NDArray[np.int8]
    group: NDArray[np.uint64]
    classes: list[str]
    found: Found

    def __len__(self) -> int:
        return len(self.position)

    @property
    def sample_id(self) -> NDArray[np.uint64]:
        """Ids as numbers."""
        return self.found.sample_id[self.position]

    def at(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Samples:
        """Some of the rows, in the order asked for."""
        return replace(
            self,
            position=self.position[rows],
            label=self.label[rows],
            split=self.split[rows],
            group=self.group[rows],
        )

    def counts(self) -> pd.DataFrame:
        """Samples of each class and split: `class`, `split`, `count`; unlabeled ones not among them."""
        splits = SPLITS[:3]
        table = np.zeros((len(self.classes), len(splits)), np.int64)
        labelled = self.label != NO_LABEL
        np.add.at(table, (self.label[labelled], self.split[labelled]), 1)
        return pd.DataFrame(
            {
                "class": np.repeat(np.asarray(self.classes, dtype=object), len(splits)),
                "split": list(splits) * len(self.classes),
                "count": table.ravel(),
            }
        )


def refuse_too_many(
    quarantine: Sequence[Quarantined], files: int, most: float, source: str, hint: str = ""
) -> None:
    """Raise a WinnowError where more than a share `most` of the files is unusable.

    Sound files that are left out for the company they keep (`base.LEFT_OUT`) do not count. `hint` is
    what to look at where files cannot be found.
    """
    bad = [row for row in quarantine if row.reason not in LEFT_OUT]
    if not bad or (len(bad) < files and len(bad) <= most * files):
        return
    reasons = Counter(row.reason for row in bad)
    commonest, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    first = min((row for row in bad if row.reason == commonest), key=lambda row: row.path)
    example = f"most often {commonest} ({count}), such as {first.path}: {first.detail}"
    example += hint if commonest == "unreadable" else ""
    if len(bad) == files:
        raise WinnowError(f"ingest.source {source}: none of its {files} files can be used; {example}")
    raise WinnowError(
        f"ingest.source {source}: {len(bad)} of {files} files cannot be used, {example}; "
        f"repair or remove them, or raise ingest.max_quarantine above {most:g}"
    )


def assemble(
    found: Found,
    resolved: Resolved,
    plant: Callable[[pd.DataFrame, Sequence[str]], Planted] | None,
    source: str,
) -> tuple[Samples, pd.DataFrame, list[str]]:
    """Settle classes, plant problems where that is asked for, and put the rows in order.

    Parameters
    ----------
    found : what the scan found
    resolved : which of it becomes samples, see `resolve.resolve`
    plant : takes `sample_id`, `split` and `label` of the labelled samples, and the class names; see
        `simulate.plant`. None plants nothing
    source : named in errors

    Returns
    -------
    The samples, the truth about what was planted (`dataset.TRUTH_COLUMNS`; no rows where nothing
    was), and warnings, a line each.

    Raises
    ------
    WinnowError
        Where fewer than two classes are left, one has no training image, or nothing is left to test.
    """
    samples = Samples(
        resolved.position, resolved.label, resolved.split, resolved.group, list(found.classes), found
    )
    samples, warnings = _usable_classes(samples, source)
    truth = no_truth()
    if plant is not None:
        samples, truth = _planted(samples, plant)
    return samples.at(_order(samples)), truth, warnings


def _order(samples: Samples) -> NDArray[np.int64]:
    """Rows by class, then id, so that neither names nor order of files move a pixel.

    It is the given label's class: in the order of the true ones a planted error would stick out.
    Unlabeled samples come last.
    """
    rank = np.where(samples.label == NO_LABEL, np.int32(len(samples.classes)), samples.label)
    return np.lexsort((samples.sample_id, rank))


def _usable_classes(samples: Samples, source: str) -> tuple[Samples, list[str]]:
    """The classes that have images, and warnings of those that have none or one."""
    labelled = samples.label[samples.label != NO_LABEL]
    images = np.bincount(labelled, minlength=len(samples.classes))
    left = np.flatnonzero(images)
    names = samples.classes
    if len(left) < 2:
        what = f"images of one class only ({names[left[0]]})" if len(left) else "no labelled image"
        raise WinnowError(
            f"ingest.source {source} has {what}: a classifier needs two classes; give each a folder "
            "of its own, or a label in the manifest"
        )
    training = samples.split == SPLIT_CODE["train"]
    trained = np.bincount(samples.label[training], minlength=len(names))
    untrained = left[trained[left] == 0]
    if len(untrained):
        first = untrained[0]
        others = f" (and {len(untrained) - 1} more classes)" if len(untrained) > 1 else ""
        raise WinnowError(
            f"class {names[first]!r} has {images[first]} images in {source}, but none of them in "
            f"training{others}: add one, or move one there (train in the source, or data/splits.csv)"
        )
    if not (samples.split == SPLIT_CODE["test"]).any():
        raise WinnowError(
            f"ingest.source {source}: no image is left for the test split, since no class has two images "
            "or groups that could be apart; add images, look at the group column, or bring a test split"
        )
    weighs = np.bincount(
        samples.label[training], samples.found.weight[samples.position[training]], minlength=len(names)
    )
    if not weighs.any():
        raise WinnowError(
            f"ingest.source {source}: every training image has weight 0; look at the column of weights, or "
            "set ingest.columns.weight to null"
        )
    codes = np.full(len(names) + 1, NO_LABEL, np.int32)
    codes[left] = np.arange(len(left))  # the last entry stays NO_LABEL, which is index -1
    warnings = [
        f"{_classes([names[i] for i in np.flatnonzero(images == 0)])} no usable image: left out",
        f"{_classes([names[i] for i in np.flatnonzero(images == 1)])} one image: trained on, never tested",
    ]
    weightless = [names[i] for i in left[weighs[left] == 0]]
    told = [line for line, count in zip(warnings, (0, 1), strict=True) if (images == count).any()]
    if weightless:
        told.append(f"{_classes(weightless)} weight 0 in training: nothing is learnt of it")
    if not (samples.split == SPLIT_CODE["val"]).any():
        told.append("no image is left for the validation split: nothing can be tuned or stopped early on it")
    kept = replace(samples, label=codes[samples.label], classes=[names[i] for i in left])
    return kept, told


def _classes(names: Sequence[str]) -> str:
    """`class 'a' has`, or `12 classes ('a', 'b', 'c', …) have`."""
    if len(names) == 1:
        return f"class {names[0]!r} has"
    shown = ", ".join(repr(name) for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{len(names)} classes ({shown}) have"


def _planted(
    samples: Samples, plant: Callable[[pd.DataFrame, Sequence[str]], Planted]
) -> tuple[Samples, pd.DataFrame]:
    """Problems planted among the labelled samples; the others stay as they are."""
    labelled = np.flatnonzero(samples.label != NO_LABEL)
    names = np.asarray(samples.classes, dtype=object)
    table = pd.DataFrame(
        {
            "sample_id": hex_ids(samples.sample_id[labelled]),
            "split": np.asarray(SPLITS, dtype=object)[samples.split[labelled]],
            "label": names[samples.label[labelled]],
        },
        index=labelled,
    )
    planted = plant(table, samples.classes)
    rows = planted.samples.index.to_numpy()
    label = samples.label.copy()
    label[rows] = pd.Index(samples.classes).get_indexer(planted.samples["label"])
    keep = np.sort(np.concatenate([rows, np.flatnonzero(samples.label == NO_LABEL)]))
    return replace(samples, label=label).at(keep), planted.truth
