"""Tables as detect_noise leaves them, with nothing found, and a policy: tests write in what they need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from stages.curation.policy import KindPolicy, Policy
from stages.dataset.issue_kinds import KINDS, OTHER_KINDS, flag_column, score_column

KEEP = KindPolicy("keep", 0.5, "keep")
# Label errors alone are acted on, and no class is protected.
POLICY = Policy(
    kinds=dict.fromkeys(KINDS, KEEP) | {"label_error": KindPolicy("relabel", 0.8, "drop")},
    relabel_agreement=0.6,
    reweight_to=0.5,
    min_per_class=0,
    max_lost_per_class=1.0,
    rare_below=0.0,
    rare_confidence=0.9,
)


def with_kinds(**kinds: KindPolicy) -> Policy:
    """`POLICY` with others for some kinds."""
    return replace(POLICY, kinds={**POLICY.kinds, **kinds})


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
    for kind in OTHER_KINDS:
        table[score_column(kind)] = 0.9
        table[flag_column(kind)] = False
    table["near_duplicate_set"] = -1
    table["underperforming_group"] = -1
    table["neighbors"] = [[] for _ in range(len(table))]
    return table.reset_index(drop=True)
