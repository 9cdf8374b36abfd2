"""Count what curation, augmentation and synthesis did to the training split."""

from __future__ import annotations

import pandas as pd

ACTIONS = {"keep": "kept", "drop": "dropped", "relabel": "relabelled", "reweight": "reweighted"}


def treatments_by_class(
    ledger: pd.DataFrame, augmented: pd.DataFrame, synthetic: pd.DataFrame, classes: list[str]
) -> pd.DataFrame:
    """A row a class, of the training split.

    Parameters
    ----------
    ledger : `LEDGER_COLUMNS`, every split
    augmented, synthetic : the tables of the deltas (`label` and `method` are used)
    classes : names in index order

    Returns
    -------
    `class`; `given`, `dropped`, `relabelled` (to another class) and `reweighted` count the images
    that were given this label; `gained` those that another label was taken from, or that had none
    before a reviewer gave them this one; `real` is what curation left (given - dropped - relabelled
    + gained); `augmented` and `synthesised` were added to it, the latter by `synthesised_by`
    (methods with their counts, empty where there is none).
    """
    training = ledger[ledger["split"] == "train"]
    used = training[training["action"] != "drop"]
    moved = used[used["label"] != used["given_label"]]

    def count(labels: pd.Series) -> pd.Series:
        return labels.value_counts().reindex(classes, fill_value=0).astype("int64")

    def given_label_of(action: str) -> pd.Series:
        return training.loc[training["action"] == action, "given_label"]

    columns = {
        "given": count(training["given_label"]),
        "dropped": count(given_label_of("drop")),
        "relabelled": count(moved["given_label"]),
        "reweighted": count(given_label_of("reweight")),
        "gained": count(moved["label"]),
        "real": count(used["label"]),
        "augmented": count(augmented["label"]),
        "synthesised": count(synthetic["label"]),
    }
    table = pd.DataFrame(columns).rename_axis("class").reset_index()
    table["synthesised_by"] = [
        ", ".join(f"{method} {n}" for method, n in _methods(synthetic[synthetic["label"] == name]).items())
        for name in classes
    ]
    return table


def sample_counts(
    ledger: pd.DataFrame, augmented: pd.DataFrame, synthetic: pd.DataFrame
) -> dict[str, object]:
    """Images of the training split by what was decided about them, and of the deltas by method.

    Where there are unlabelled samples, `unlabeled` counts those that are left, and `labelled` those
    that reviewers gave a label: they are trained on besides the ingested ones.
    """
    training = ledger["split"] == "train"
    labelled = training & ledger["given_label"].isna()
    unlabeled = ledger["split"] == "unlabeled"
    actions = ledger.loc[training & ~labelled, "action"].value_counts()
    counts: dict[str, object] = {"ingested": int(actions.sum())}
    counts |= {name: int(actions.get(action, 0)) for action, name in ACTIONS.items()}
    if labelled.any() or unlabeled.any():
        counts |= {"unlabeled": int(unlabeled.sum()), "labelled": int(labelled.sum())}
    counts |= {"augmented": len(augmented), "synthesised": len(synthetic)}
    return counts | {"synthesised_by": _methods(synthetic)}


def _methods(delta: pd.DataFrame) -> dict[str, int]:
    """Images of a delta by method, in the order of the names."""
    counts = delta["method"].value_counts()
    return {str(name): int(counts[name]) for name in sorted(counts.index)}
