"""Small samples and ledgers for tests that compare versions of the dataset."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stages.dataset.base import LEDGER_COLUMNS, SAMPLE_COLUMNS


def samples_of(rows: dict[str, str], weight: dict[str, float] | None = None) -> pd.DataFrame:
    """`{"a1": "train cat"}`: a sample a row; without a second word it has no label."""
    words = [row.split(" ", 1) for row in rows.values()]
    table = pd.DataFrame(
        {
            "sample_id": list(rows),
            "row": range(len(rows)),
            "split": [word[0] for word in words],
            "label": [word[1] if len(word) > 1 else None for word in words],
            "source": [f"{name}.png" for name in rows],
            "width": 8,
            "height": 8,
            "group": list(rows),
            "weight": [(weight or {}).get(name, 1.0) for name in rows],
        },
        columns=SAMPLE_COLUMNS,
    )
    return table.astype({"sample_id": "str", "split": "str", "label": "str", "source": "str"})


def ledger_of(samples: pd.DataFrame, **decisions: tuple) -> pd.DataFrame:
    """All is kept but what is named: `a1=("relabel", "dog", "label_error", "policy")`.

    The second word is the label of a `relabel`, and the weight of a `reweight`.
    """
    table = samples[["sample_id", "split", "label"]].assign(
        given_label=samples["label"], action="keep", weight=1.0, score=0.5, reason="", decided_by="policy"
    )
    table = table.set_index("sample_id")
    for name, (action, value, reason, decider) in decisions.items():
        table.loc[name, ["action", "reason", "decided_by"]] = [action, reason, decider]
        if action == "relabel":
            table.loc[name, "label"] = value
            if table.loc[name, "split"] == "unlabeled":
                table.loc[name, "split"] = "train"
        table.loc[name, "weight"] = {"drop": 0.0, "reweight": value}.get(action, 1.0)
    return table.reset_index()[LEDGER_COLUMNS]


def write_version(root: Path, samples: pd.DataFrame, ledger: pd.DataFrame | None = None) -> Path:
    """The two tables where a checkout has them, and an `images.npy` that nobody may read."""
    (root / "data/ingested").mkdir(parents=True, exist_ok=True)
    (root / "data/ingested/images.npy").write_bytes(b"not to be read")
    samples.to_parquet(root / "data/ingested/samples.parquet", index=False)
    if ledger is not None:
        (root / "data/curated").mkdir(exist_ok=True)
        ledger.to_parquet(root / "data/curated/ledger.parquet", index=False)
    return root
