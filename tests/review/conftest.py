"""What detect_noise might have found in the tiny dataset."""

import numpy as np
import pandas as pd
import pytest
from issue_table import clean_issues

from stages.dataset.base import Dataset


@pytest.fixture
def issues(tiny_dataset: Dataset) -> pd.DataFrame:
    samples = tiny_dataset.samples
    table = clean_issues(samples)
    table["suggested_label"] = samples["label"].map({"a": "b", "b": "c", "c": "a"})
    table.loc[[5, 40, 62, 80], "is_label_issue"] = True
    table.loc[[5, 40, 62, 80], "label_score"] = [0.3, 0.1, 0.2, 0.05]
    table.loc[[7], ["is_outlier_issue", "outlier_score"]] = [True, 0.01]
    table.loc[[8, 33, 70], "is_near_duplicate_issue"] = True
    table.loc[[8, 33, 70], "near_duplicate_set"] = [1, 0, 1]
    return table


@pytest.fixture
def pile(issues: pd.DataFrame) -> pd.DataFrame:
    """The issues with samples 0 to 3 unlabelled; 2 is the surest, then 1 and 3, which are alike sure."""
    issues.loc[:3, ["split", "given_label"]] = ["unlabeled", None]
    issues.loc[:3, "label_score"] = np.nan
    issues.loc[:3, "suggested_label"] = ["c", "a", "b", "a"]
    issues.loc[:3, "suggested_score"] = [0.5, 0.6, 0.9, 0.6]
    return issues


@pytest.fixture
def embeddings(tiny_dataset: Dataset) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(tiny_dataset.samples), 4)).astype(np.float32)
