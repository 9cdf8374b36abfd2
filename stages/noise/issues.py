"""Find what is wrong with each sample: its label, its neighbourhood, the image itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import label_indices
from stages.dataset.issue_kinds import EMBEDDING_KINDS, KINDS, OTHER_KINDS, flag_column, score_column
from stages.errors import WinnowError
from stages.noise.image_checks import ON, Checks, image_issues
from stages.noise.labels import better_than_chance, find_label_errors, suggest_labels
from stages.noise.neighbourhood import (
    all_alike,
    nearest_neighbours,
    neighbours_of,
    order_issues,
    outliers_and_duplicates,
    underperforming_groups,
)

ISSUE_COLUMNS = [
    "sample_id",
    "split",
    "given_label",
    "suggested_label",
    "suggested_score",
    "suggested_agreement",
    "label_score",
    "is_label_issue",
    *[column(kind) for kind in OTHER_KINDS for column in (score_column, flag_column)],
    "near_duplicate_set",
    "underperforming_group",
    "neighbors",
]
_EVIDENCE = 5  # nearest samples that are named
_FEWEST = 20  # labelled training images under which there are no groups among them


@dataclass(frozen=True)
class Findings:
    """The issues, and for each check whether it was made.

    Attributes
    ----------
    issues : `ISSUE_COLUMNS`, a row a sample
    checks : for each of `issue_kinds.KINDS`: "on", or why it is off
    non_iid : p-value of the order of the files saying nothing of the images; None where that could
        not be judged
    """

    issues: pd.DataFrame
    checks: dict[str, str]
    non_iid: float | None


def find_issues(
    samples: pd.DataFrame,
    pred_probs: NDArray[np.float32],
    embeddings: NDArray[np.float32],
    classes: list[str],
    *,
    rule: str,
    neighbors: int,
    judged: NDArray[np.bool_] | None = None,
    agreement: NDArray[np.float32] | None = None,
    images: NDArray[np.uint8] | None = None,
    checks: Checks = "auto",
    seed: int = 0,
) -> Findings:
    """Judge every sample.

    Parameters
    ----------
    samples : `dataset.SAMPLE_COLUMNS`
    pred_probs, embeddings : N×K and N×D, in the order of `samples`
    rule : see `find_label_errors`; each split is judged by itself, since probabilities outside the
        training split are means over models and are more confident
    neighbors : k of the nearest-neighbour graph
    judged : bool, N, in the order of `samples`; where False the models could not know the given
        label, and it is not called wrong (`folds.OutOfSample.train_judged`)
    agreement : float32, N×K; share of the ensemble's members whose likeliest class it is. None
        where there is one: it agrees with itself.
    images : uint8, N×H×W×C, in the order of `samples`; None: they are not looked at
    checks : "auto", or names of `image_checks.IMAGE_CHECKS`; see `image_checks.image_issues`
    seed : of groups, and of the test for order

    Returns
    -------
    `Findings`. Its `issues` are in the order of `samples`. Scores lie between 0 and 1, and low is
    bad, as in cleanlab; they are NaN, and flags False, where a check is off or has no answer; `checks`
    says so also of one that Datalab fails at:

    - `label_score` is the probability of the given label, `suggested_score` that of the suggested
      one (the likeliest other), `suggested_agreement` the share of members that say so (0 to 1). An
      unlabelled sample is suggested the likeliest class; its `given_label` and `label_score` are
      null, and it is no label issue. Where the model is no better than guessing at the training
      labels (`better_than_chance`), no label is called wrong.
    - `outlier` and `near_duplicate`: over all splits; `near_duplicate_set` numbers the sets, -1 for
      none. Where all embeddings are alike, the model tells nothing apart, and they are off.
    - `non_iid`: the order of the files within a class; see `neighbourhood.order_issues`.
    - `underperforming_group`: of labelled training samples only, as policies act on these alone and
      probabilities elsewhere do not compare; the column of that name numbers the groups with an
      issue, -1 for none. Samples that are not `judged` are left out.
    - `dark` to `odd_aspect_ratio`: see `image_checks.image_issues`.
    - `neighbors`: ids of the (up to 5) nearest other samples, nearest first.

    Raises
    ------
    WinnowError
        Where lengths differ, or numbers are NaN or infinite, and as `find_label_errors` and
        `image_issues` do.
    """
    _refuse_unequal(samples, pred_probs, embeddings, judged, agreement, images)
    report: dict[str, str] = dict.fromkeys(KINDS, ON)
    known = np.ones(len(samples), bool) if judged is None else judged
    reason = _why_not_judged(samples, pred_probs, classes, known)
    if reason:
        report |= {"label_error": reason, "underperforming_group": reason}
        known = np.zeros(len(samples), bool)
    table = _label_issues(samples, pred_probs, classes, rule, known)
    table["suggested_agreement"] = _agreement(table["suggested_label"], pred_probs, agreement, classes)
    graph = nearest_neighbours(embeddings, neighbors, seed)
    table["neighbors"] = samples["sample_id"].to_numpy(object)[neighbours_of(graph, _EVIDENCE)].tolist()
    for kind in EMBEDDING_KINDS:
        table[score_column(kind)], table[flag_column(kind)] = np.nan, False
    for evidence in ("near_duplicate_set", "underperforming_group"):
        table[evidence] = np.full(len(table), -1, np.int64)
    if all_alike(embeddings):
        p_value = None
        report |= dict.fromkeys(EMBEDDING_KINDS, "all embeddings are alike: the model tells no images apart")
    else:
        _fill(table, outliers_and_duplicates(graph))
        named = samples.assign(label=table["given_label"].fillna(table["suggested_label"]).to_numpy())
        order_table, p_value = order_issues(named, graph, classes, seed)
        _fill(table, order_table)
        if p_value is None:
            report["non_iid"] = "too few images, or too much alike, to judge their order"
        if report["underperforming_group"] == ON:
            report["underperforming_group"] = _groups(table, pred_probs, embeddings, classes, known, seed)
        failed = [kind for kind in EMBEDDING_KINDS if table[score_column(kind)].isna().all()]
        report |= {kind: "cleanlab's Datalab failed at it" for kind in failed if report[kind] == ON}
    sides = samples["width"].to_numpy(np.int64), samples["height"].to_numpy(np.int64)
    odd, image_report = image_issues(images, *sides, checks)
    return Findings(pd.concat([table, odd], axis=1)[ISSUE_COLUMNS], report | image_report, p_value)


def _why_not_judged(
    samples: pd.DataFrame, pred_probs: NDArray[np.float32], classes: list[str], judged: NDArray[np.bool_]
) -> str:
    """Say why the models know too little of the training labels to contradict them; empty if they do not.

    Only labels that could be known are asked about: others would pass for mistakes of the model.
    """
    training = (samples["split"] == "train").to_numpy() & judged
    labels = label_indices(samples.loc[training, "label"], classes)
    if len(np.unique(labels)) < 2:
        return "the models could learn the labels of one class only"
    if better_than_chance(labels, pred_probs[training].astype(np.float64)):
        return ""
    return "the model is no better than guessing at the training labels"


def _label_issues(
    samples: pd.DataFrame,
    pred_probs: NDArray[np.float32],
    classes: list[str],
    rule: str,
    judged: NDArray[np.bool_],
) -> pd.DataFrame:
    """Judge the labels; those that no model could know are kept from the rule, as sure errors to it."""
    names = np.asarray(classes, dtype=object)
    table = samples[["sample_id", "split"]].reset_index(drop=True)
    table["given_label"] = samples["label"].to_numpy()
    labelled = samples["label"].notna().to_numpy()
    table["suggested_label"] = pd.Series(None, index=table.index, dtype="str")
    table[["suggested_score", "label_score"]] = np.nan
    table["is_label_issue"] = False
    table.loc[~labelled, "suggested_label"] = names[pred_probs[~labelled].argmax(1)]
    table.loc[~labelled, "suggested_score"] = pred_probs[~labelled].max(1).astype(np.float64)
    for split in samples.loc[labelled, "split"].unique():
        where = labelled & (samples["split"] == split).to_numpy()
        labels = label_indices(samples.loc[where, "label"], classes)
        probs = pred_probs[where].astype(np.float64)
        suggested, score = suggest_labels(labels, probs)
        table.loc[where, "suggested_label"] = names[suggested]
        table.loc[where, "suggested_score"] = score
        table.loc[where, "label_score"] = probs[np.arange(len(labels)), labels]
        judgeable = judged[where]
        if judgeable.any():
            wrong = find_label_errors(labels[judgeable], probs[judgeable], rule)
            table.loc[np.flatnonzero(where)[judgeable], "is_label_issue"] = wrong
    return table


def _agreement(
    suggested: pd.Series,
    pred_probs: NDArray[np.float32],
    agreement: NDArray[np.float32] | None,
    classes: list[str],
) -> NDArray[np.float64]:
    index = label_indices(suggested, classes)
    if agreement is None:
        return (pred_probs.argmax(1) == index).astype(np.float64)
    return agreement[np.arange(len(index)), index].astype(np.float64)


def _groups(
    table: pd.DataFrame,
    pred_probs: NDArray[np.float32],
    embeddings: NDArray[np.float32],
    classes: list[str],
    judged: NDArray[np.bool_],
    seed: int,
) -> str:
    """Fill in the underperforming groups; return "on", or why there are none to be found."""
    trained = ((table["split"] == "train") & table["given_label"].notna()).to_numpy() & judged
    if trained.sum() < _FEWEST:
        return f"fewer than {_FEWEST} training images to form groups"
    labels = label_indices(table.loc[trained, "given_label"], classes)
    groups = underperforming_groups(embeddings[trained], labels, pred_probs[trained], seed)
    _fill(table, groups.set_index(np.flatnonzero(trained)))
    return ON


def _fill(table: pd.DataFrame, source: pd.DataFrame) -> None:
    """Write the columns of `source` into the rows of `table` that it speaks of."""
    for name in source:
        table.loc[source.index, name] = source[name].astype(table[name].dtype)


def _refuse_unequal(samples: pd.DataFrame, *arrays: NDArray[np.generic] | None) -> None:
    names = ("pred_probs", "embeddings", "judged", "agreement", "images")
    for name, array in zip(names, arrays, strict=True):
        if array is not None and len(array) != len(samples):
            raise WinnowError(f"{name} has {len(array)} rows, but there are {len(samples)} samples")
