"""Tables as detect_noise leaves them, with nothing found: tests write in what they need."""

from __future__ import annotations

import numpy as np
import pandas as pd

KINDS = ("outlier", "near_duplicate", "non_iid", "underperforming_group", "dark", "light", "blurry",
         "low_information", "odd_size", "odd_aspect_ratio")  # fmt: skip


def clean_issues(samples: pd.DataFrame) -> pd.DataFrame:
    """A row a sample of `samples` (`sample_id`, `split`, `label`), in the same order; no issue at all."""
    table = pd.DataFrame(
        {
            "sample_id": samples["sample_id"],
            "split": samples["split"],
            "given_label": samples["label"],
            "suggested_label": samples["label"],
            "suggested_score": 0.1,
            "suggested_agreement": 1.0,
            "label_score": 0.8,
            "is_label_issue": False,
        }
    )
    table.loc[table["given_label"].isna(), "label_score"] = np.nan
    for kind in KINDS:
        table[f"{kind}_score"] = 0.9
        table[f"is_{kind}_issue"] = False
    table["near_duplicate_set"] = -1
    table["underperforming_group"] = -1
    table["neighbors"] = [[] for _ in range(len(table))]
    return table.reset_index(drop=True)
