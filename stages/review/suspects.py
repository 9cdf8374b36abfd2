"""Order what people should look at, and gather what speaks for and against each sample.

Suspects are what `detect_noise` found; labels in conflict and missing labels come from the source.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.curation.ledger import frozen_splits, suggest_claimed
from stages.curation.policy import check_kinds
from stages.dataset.base import CONFLICT_COLUMNS, Dataset
from stages.dataset.issue_kinds import NAMES, OTHER_KINDS, flag_column, score_column
from stages.dataset.issue_kinds import Kind as IssueKind
from stages.errors import WinnowError

Kind = Literal[IssueKind, "conflict", "unlabeled"]
KINDS: dict[Kind, str] = {
    "label_error": NAMES["label_error"].capitalize(),
    "conflict": "Conflicting labels",
    **{kind: NAMES[kind].capitalize() for kind in OTHER_KINDS},
    "unlabeled": "Unlabelled",
}
# Of unlabelled samples the surest suggestion first: one key confirms it, and where labels are few,
# typical samples teach a model more than doubtful ones (Hacohen et al., arXiv 2202.02794).
_ORDER: dict[Kind, dict[str, bool]] = {  # columns, and whether low comes first; else by the kind's score
    "conflict": {"suggested_score": False, "sample_id": True},
    "near_duplicate": {"near_duplicate_set": True, "near_duplicate_score": True, "sample_id": True},
    "unlabeled": {"suggested_score": False, "sample_id": True},
}


@dataclass(frozen=True)
class Sample:
    """A sample with everything that is known about it, as a page shows it.

    Attributes
    ----------
    given : class name; None for an unlabelled sample
    suggested : the likeliest other class; of an unlabelled sample, the likeliest; of labels in
        conflict, the likeliest of the claimed ones
    label_score, suggested_score : probabilities of the two, 0 to 1
    claims : for labels in conflict, each claimed label with the files that claim it
    label_brings_to : split that an unlabelled sample moves to with a label; else empty
    outlier_score : 0 to 1, low is unlike the others
    kinds : what it is suspected of
    duplicate_set : number of its set of near-duplicates, -1 for none
    action, label, reason, decided_by : the ledger's columns; empty where `curate` has not run on it
    """

    sample_id: str
    split: str
    source: str
    width: int
    height: int
    given: str | None
    suggested: str | None
    label_score: float | None
    suggested_score: float | None
    outlier_score: float
    kinds: tuple[Kind, ...]
    duplicate_set: int
    action: str = ""
    label: str = ""
    reason: str = ""
    decided_by: str = ""
    claims: tuple[tuple[str, tuple[str, ...]], ...] = ()
    label_brings_to: str = ""


class Evidence:
    """The ingested samples with issues, embeddings and, where there is one, the ledger.

    Parameters
    ----------
    base : the ingested dataset
    issues : as `noise.issues.find_issues` makes them, a row a sample of `base`
    embeddings : float, N×D, in the order of `base`
    ledger : `dataset.LEDGER_COLUMNS`, or None
    conflicts : `dataset.CONFLICT_COLUMNS`, or None
    pred_probs : float, N×K, in the order of `base`; None: conflicts come without a suggestion

    Raises
    ------
    WinnowError
        Where issues, embeddings or probabilities are of other samples than `base`, or of an older
        version.
    """

    def __init__(
        self,
        base: Dataset,
        issues: pd.DataFrame,
        embeddings: NDArray[np.floating],
        ledger: pd.DataFrame | None = None,
        conflicts: pd.DataFrame | None = None,
        pred_probs: NDArray[np.floating] | None = None,
    ) -> None:
        same = len(issues) == len(embeddings) == len(base.samples)
        if pred_probs is not None:
            same &= pred_probs.shape == (len(base.samples), len(base.classes))
        if not same or not np.array_equal(issues["sample_id"], base.samples["sample_id"]):
            raise WinnowError(
                "data/noise was made from other samples than data/ingested holds: run `dvc repro`"
            )
        check_kinds(issues)
        if conflicts is None:
            conflicts = pd.DataFrame(columns=CONFLICT_COLUMNS)
        self.base = base
        self.classes = base.classes
        self._claims = _claims(conflicts)
        self._frozen = frozen_splits(conflicts)
        conflicting = issues["sample_id"].isin(self._claims.keys()).to_numpy()
        unlabeled = (base.samples["split"] == "unlabeled").to_numpy()
        issues = suggest_claimed(issues.reset_index(drop=True), conflicts, pred_probs, base.classes)
        self._issues = issues.assign(
            is_conflict_issue=conflicting, is_unlabeled_issue=unlabeled & ~conflicting
        )
        self._embeddings = embeddings
        self._ledger = None if ledger is None else ledger.set_index("sample_id")
        self._position = {str(name): at for at, name in enumerate(issues["sample_id"])}
        self._orders = {kind: self._ordered(kind) for kind in KINDS}
        self._queues: dict[tuple[str, str, str], tuple[str, ...]] = {}

    def _ordered(self, kind: Kind) -> pd.DataFrame:
        suspects = self._issues[self._issues[flag_column(kind)].to_numpy(bool)]
        order = _ORDER.get(kind, {score_column(kind): True, "sample_id": True})
        by, ascending = list(order), list(order.values())
        # An unlabelled sample is filed under what it probably is: so a rare class can be looked for.
        filed = suspects["given_label"].where(suspects["given_label"].notna(), suspects["suggested_label"])
        ordered = suspects.assign(filed=filed).sort_values(by, ascending=ascending)
        return ordered[["sample_id", "split", "filed"]]

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._position

    def queue(self, kind: Kind, split: str = "", given: str = "") -> tuple[str, ...]:
        """Return the ids of one kind, the worst first; of one split or class where named.

        The class is the given label's, or the suggested one's where there is none.
        """
        key = (kind, split, given)
        if key not in self._queues:
            rows = self._orders[kind]
            if split:
                rows = rows[rows["split"] == split]
            if given:
                rows = rows[rows["filed"] == given]
            self._queues[key] = tuple(map(str, rows["sample_id"]))
        return self._queues[key]

    def sample(self, sample_id: str) -> Sample:
        """Return everything known about a sample; a KeyError for an unknown id."""
        at = self._position[sample_id]
        issue: dict[str, Any] = self._issues.iloc[at].to_dict()
        source = self.base.samples.iloc[at]
        decided: dict[str, str] = {}
        if self._ledger is not None and sample_id in self._ledger.index:
            entry = self._ledger.loc[sample_id]
            decided = {name: _text(entry[name]) or "" for name in ("action", "label", "reason", "decided_by")}
        return Sample(
            sample_id=sample_id,
            split=str(issue["split"]),
            source=str(source["source"]),
            width=int(source["width"]),
            height=int(source["height"]),
            given=_text(issue["given_label"]),
            suggested=_text(issue["suggested_label"]),
            label_score=_number(issue["label_score"]),
            suggested_score=_number(issue["suggested_score"]),
            outlier_score=float(issue["outlier_score"]),
            kinds=tuple(kind for kind in KINDS if issue[flag_column(kind)]),
            duplicate_set=int(issue["near_duplicate_set"]),
            claims=self._claims.get(sample_id, ()),
            label_brings_to=self._frozen.get(sample_id, "train") if issue["split"] == "unlabeled" else "",
            **decided,
        )

    def neighbours(self, sample_id: str, count: int = 3) -> list[tuple[Sample, float]]:
        """Find the nearest other samples of any split by cosine of the embeddings, -1 to 1, nearest first."""
        at = self._position[sample_id]
        cosines = self._embeddings @ np.asarray(self._embeddings[at]) / (self._norms * self._norms[at])
        cosines[at] = -np.inf
        count = min(count, len(cosines) - 1)
        nearest = np.argpartition(-cosines, count)[:count] if count else np.zeros(0, np.int64)
        nearest = nearest[np.argsort(-cosines[nearest], kind="stable")]
        return [(self.sample(self._name(place)), float(cosines[place])) for place in nearest]

    def near_duplicates(self, sample_id: str, most: int = 6) -> list[Sample]:
        """Return the other members of its set of near-duplicates, in the order of the base."""
        number = self._issues["near_duplicate_set"].iat[self._position[sample_id]]
        if number < 0:
            return []
        members = np.flatnonzero(self._issues["near_duplicate_set"].to_numpy() == number)
        names = [self._name(place) for place in members]
        return [self.sample(name) for name in names if name != sample_id][:most]

    def png(self, sample_id: str) -> bytes:
        """Return the image as ingested, grey or RGB, as a PNG file."""
        from PIL import Image

        row = int(self.base.samples["row"].iat[self._position[sample_id]])
        pixels = np.ascontiguousarray(self.base.images[row])
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
        return buffer.getvalue()

    def _name(self, place: np.integer) -> str:
        return str(self._issues["sample_id"].iat[int(place)])

    @cached_property
    def _norms(self) -> NDArray[np.floating]:
        norms: NDArray[np.floating] = np.linalg.norm(self._embeddings, axis=1)
        return np.maximum(norms, np.finfo(np.float32).tiny ** 0.5)


def _claims(conflicts: pd.DataFrame) -> dict[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    """Return by sample each claimed label in order of its name, with the files that claim it."""
    files: dict[str, dict[str, list[str]]] = {}
    rows = conflicts[["sample_id", "label", "source"]].itertuples(index=False, name=None)
    for sample_id, label, source in rows:
        files.setdefault(str(sample_id), {}).setdefault(str(label), []).append(str(source))
    return {
        sample_id: tuple((label, tuple(sorted(claimed[label]))) for label in sorted(claimed))
        for sample_id, claimed in files.items()
    }


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
