import numpy as np
import pandas as pd
import pytest

from stages.dataset import Dataset
from stages.noise.issues import ISSUE_COLUMNS, build_issues


@pytest.fixture
def judged(tiny_dataset: Dataset) -> tuple[pd.DataFrame, Dataset]:
    """One wrong label in train and in test, one outlier, one pair of near-duplicates; row 5 unlabelled."""
    rng = np.random.default_rng(0)
    samples = tiny_dataset.samples.copy()
    truth = samples["label"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    probs = np.full((len(samples), 3), 0.05)
    probs[np.arange(len(samples)), truth] = 0.9
    samples.loc[0, "label"] = "b"
    last_test = samples.index[samples["split"] == "test"][-1]
    samples.loc[last_test, "label"] = "a"
    samples.loc[5, ["split", "label"]] = ["unlabeled", None]
    centres = 6.0 * np.eye(8)[truth]  # directions: Datalab compares by cosine
    embeddings = (centres + rng.normal(0, 0.5, centres.shape)).astype(np.float32)
    embeddings[10] = -6.0 * np.eye(8)[7]
    embeddings[21] = embeddings[20] + 1e-4
    issues = build_issues(
        samples, probs.astype(np.float32), embeddings, ["a", "b", "c"], rule="auto", neighbors=5
    )
    return issues, tiny_dataset


def test_there_is_a_row_a_sample_in_order(judged):
    issues, dataset = judged
    assert list(issues.columns) == ISSUE_COLUMNS
    assert issues["sample_id"].tolist() == dataset.samples["sample_id"].tolist()
    assert (
        not issues.drop(columns=["given_label", "suggested_label", "suggested_score", "label_score"])
        .isna()
        .any()
        .any()
    )


def test_wrong_labels_are_found_in_every_split_with_a_suggestion(judged):
    issues, _ = judged
    wrong = issues[issues["is_label_issue"]]
    assert wrong["split"].tolist() == ["train", "test"]
    assert wrong["suggested_label"].tolist() == ["a", "c"]
    assert (wrong["suggested_score"] > 0.85).all()
    assert (wrong["label_score"] < 0.1).all()


def test_outliers_and_near_duplicates_are_found_by_their_neighbours(judged):
    issues, _ = judged
    assert issues.loc[10, "is_outlier_issue"]
    assert issues["outlier_score"].idxmin() == 10
    flagged = issues["is_near_duplicate_issue"]
    assert flagged[[20, 21]].all()
    assert flagged.sum() <= 6
    assert issues.loc[20, "near_duplicate_set"] == issues.loc[21, "near_duplicate_set"] >= 0
    assert ((issues["near_duplicate_set"] >= 0) == flagged).all()


def test_unlabelled_samples_have_no_label_to_be_wrong(judged):
    issues, _ = judged
    assert pd.isna(issues.loc[5, "given_label"])
    assert np.isnan(issues.loc[5, "label_score"])
    assert not issues.loc[5, "is_label_issue"]
    assert np.isfinite(issues.loc[5, "outlier_score"])


def test_a_model_that_guesses_calls_no_label_wrong(tiny_dataset: Dataset):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), len(tiny_dataset.samples)).astype(np.float32)
    embeddings = rng.normal(size=(len(probs), 8)).astype(np.float32)
    issues = build_issues(tiny_dataset.samples, probs, embeddings, ["a", "b", "c"], rule="auto", neighbors=5)
    assert not issues["is_label_issue"].any()
    assert issues["label_score"].notna().all()


def test_unlabelled_samples_are_suggested_the_likeliest_class(judged):
    issues, _ = judged
    assert issues.loc[5, "suggested_label"] == "a"
    assert issues.loc[5, "suggested_score"] == pytest.approx(0.9)


def test_labels_that_no_model_could_know_are_not_called_wrong(tiny_dataset: Dataset):
    labels = tiny_dataset.samples["label"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    probs = np.full((len(labels), 3), 0.05, np.float32)
    probs[np.arange(len(labels)), labels] = 0.9
    probs[:4] = [0.05, 0.9, 0.05]
    judged = np.ones(len(labels), bool)
    judged[:2] = False
    embeddings = np.random.default_rng(0).normal(size=(len(labels), 8)).astype(np.float32)
    issues = build_issues(
        tiny_dataset.samples, probs, embeddings, ["a", "b", "c"], rule="auto", neighbors=5, judged=judged
    )
    assert np.flatnonzero(issues["is_label_issue"]).tolist() == [2, 3]
