import numpy as np
import pandas as pd
import pytest

from stages.dataset.base import Dataset
from stages.dataset.files import read_table, write_table
from stages.dataset.issue_kinds import EMBEDDING_KINDS, KINDS, OTHER_KINDS, flag_column, score_column
from stages.errors import WinnowError
from stages.noise.image_checks import IMAGE_CHECKS
from stages.noise.issues import ISSUE_COLUMNS, find_issues

CLASSES = ["a", "b", "c"]


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
    issues = find_issues(
        samples, probs.astype(np.float32), embeddings, ["a", "b", "c"], rule="auto", neighbors=5
    ).issues
    return issues, tiny_dataset


def test_there_is_a_row_a_sample_in_order(judged):
    issues, dataset = judged
    assert list(issues.columns) == ISSUE_COLUMNS
    assert issues["sample_id"].tolist() == dataset.samples["sample_id"].tolist()
    for kind in OTHER_KINDS:
        assert issues[f"{kind}_score"].dtype == np.float64
        assert issues[f"is_{kind}_issue"].dtype == bool
        assert issues[f"{kind}_score"].dropna().between(0, 1).all()
    sure = [
        "suggested_label",
        "suggested_score",
        "suggested_agreement",
        "outlier_score",
        "near_duplicate_score",
    ]
    assert issues[sure].notna().all().all()
    assert issues[["near_duplicate_set", "underperforming_group"]].dtypes.eq(np.int64).all()


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
    issues = find_issues(
        tiny_dataset.samples, probs, embeddings, ["a", "b", "c"], rule="auto", neighbors=5
    ).issues
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
    issues = find_issues(
        tiny_dataset.samples, probs, embeddings, ["a", "b", "c"], rule="auto", neighbors=5, judged=judged
    ).issues
    assert np.flatnonzero(issues["is_label_issue"]).tolist() == [2, 3]


@pytest.mark.parametrize("rule", ["auto", "margin", "both"])
def test_a_class_that_no_model_could_know_changes_nothing_for_the_others(rule: str):
    """All of class 9 is of one group: whoever judged it had never seen it, and never says it."""
    rng = np.random.default_rng(0)
    classes = [str(digit) for digit in range(10)]
    true = np.arange(1000) % 10
    points = rng.normal(0, 1, (1000, 10))
    points[np.arange(1000), true] += 3.0
    points[true == 9, 9] -= 9.0
    probs = np.exp(3.0 * points)
    probs = (probs / probs.sum(1, keepdims=True)).astype(np.float32)
    given = np.where(rng.random(1000) < 0.15, rng.integers(0, 9, 1000), true)
    given[true == 9] = 9
    names = [f"{number:016x}" for number in range(1000)]
    samples = pd.DataFrame({"sample_id": names, "split": "train", "label": [classes[i] for i in given]})
    samples = samples.assign(source=names, width=8, height=8)
    known = given != 9
    found = find_issues(samples, probs, points, classes, rule=rule, neighbors=5, judged=known)
    alone = find_issues(
        samples[known].reset_index(drop=True), probs[known], points[known], classes, rule=rule, neighbors=5
    )
    flags = found.issues["is_label_issue"].to_numpy()
    assert found.checks["label_error"] == "on"
    assert 50 < flags.sum() < 250
    assert not flags[~known].any()
    assert flags[known].tolist() == alone.issues["is_label_issue"].tolist()


def test_of_two_classes_one_that_no_model_could_know_leaves_nothing_to_judge(tiny_dataset: Dataset):
    two = _part(
        tiny_dataset, [row for row, label in enumerate(tiny_dataset.samples["label"]) if label != "c"]
    )
    probs, embeddings = _answers(two, ["a", "b"])
    unknown = ((two.samples["split"] == "train") & (two.samples["label"] == "b")).to_numpy()
    probs[unknown] = [0.99, 0.01]
    found = find_issues(two.samples, probs, embeddings, ["a", "b"], rule="auto", neighbors=5, judged=~unknown)
    assert "one class only" in found.checks["label_error"]
    assert found.checks["underperforming_group"] == found.checks["label_error"]
    assert found.checks["outlier"] == "on"
    assert not found.issues["is_label_issue"].any()
    assert found.issues["label_score"].notna().all()


@pytest.mark.parametrize("kind", EMBEDDING_KINDS)
def test_a_check_that_datalab_fails_at_is_off_and_the_others_are_on(tiny_dataset, monkeypatch, kind: str):
    from cleanlab.datalab.internal.issue_manager_factory import REGISTRY
    from cleanlab.datalab.internal.task import Task

    def fail(*args: object, **options: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr(REGISTRY[Task.CLASSIFICATION][kind], "find_issues", fail)
    found = find_issues(tiny_dataset.samples, *_answers(tiny_dataset), CLASSES, rule="margin", neighbors=5)
    off = [name for name in EMBEDDING_KINDS if found.checks[name] != "on"]
    assert off == [kind]
    assert found.issues[score_column(kind)].isna().all()
    assert not found.issues[flag_column(kind)].any()
    assert list(found.issues.columns) == ISSUE_COLUMNS
    evidence = {"near_duplicate": "near_duplicate_set", "underperforming_group": "underperforming_group"}
    if kind in evidence:
        assert (found.issues[evidence[kind]] == -1).all()


def _answers(dataset: Dataset, classes: list[str] = CLASSES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right about every label (0 where there is none), and embeddings to match."""
    rng = np.random.default_rng(seed)
    truth = np.maximum(pd.Index(classes).get_indexer(dataset.samples["label"]), 0)
    probs = np.full((len(truth), len(classes)), 0.1 / (len(classes) - 1))
    probs[np.arange(len(truth)), truth] = 0.9
    centres = 6.0 * np.eye(max(8, len(classes)))[truth]
    return probs.astype(np.float32), (centres + rng.normal(0, 0.5, centres.shape)).astype(np.float32)


def _part(dataset: Dataset, rows: list[int]) -> Dataset:
    return Dataset(dataset.images[rows], dataset.samples.iloc[rows].reset_index(drop=True), dataset.classes)


def test_neighbours_are_named_nearest_first(judged):
    issues, dataset = judged
    assert issues["neighbors"].map(len).eq(5).all()
    assert issues.loc[20, "neighbors"][0] == dataset.samples.loc[21, "sample_id"]
    assert not any(own in named for own, named in zip(issues["sample_id"], issues["neighbors"], strict=True))


def test_the_table_survives_parquet_with_its_lists(judged, tmp_path):
    issues, _ = judged
    write_table(tmp_path / "issues.parquet", issues)
    again = read_table(tmp_path / "issues.parquet")
    assert list(again.columns) == ISSUE_COLUMNS
    assert [list(names) for names in again["neighbors"]] == issues["neighbors"].tolist()


def test_without_votes_one_model_agrees_with_itself(judged):
    issues, _ = judged
    assert set(issues.loc[[0, 5], "suggested_agreement"]) == {1.0}
    assert (
        issues.loc[~issues["is_label_issue"] & issues["given_label"].notna(), "suggested_agreement"]
        .eq(0)
        .all()
    )


def test_agreement_is_the_share_of_votes_for_the_suggestion(tiny_dataset: Dataset):
    probs, embeddings = _answers(tiny_dataset)
    votes = np.tile(np.array([0.25, 0.5, 0.25], np.float32), (len(probs), 1))
    issues = find_issues(
        tiny_dataset.samples, probs, embeddings, CLASSES, rule="margin", neighbors=5, agreement=votes
    ).issues
    assert issues["suggested_agreement"].tolist() == [
        0.5 if name == "b" else 0.25 for name in issues["suggested_label"]
    ]


def test_what_was_looked_for_is_reported(tiny_dataset: Dataset):
    found = find_issues(
        tiny_dataset.samples,
        *_answers(tiny_dataset),
        CLASSES,
        rule="margin",
        neighbors=5,
        images=tiny_dataset.images,
    )
    assert list(found.checks) == list(KINDS)
    on = {kind for kind, said in found.checks.items() if said == "on"}
    assert {"label_error", "outlier", "near_duplicate", "non_iid", "underperforming_group", "dark"} <= on
    assert found.checks["odd_size"] == "all images are 16×16 pixels"
    for kind in OTHER_KINDS:
        if kind != "underperforming_group":
            assert found.issues[f"{kind}_score"].notna().all() == (kind in on)
    assert 0.0 <= found.non_iid <= 1.0


def test_the_same_call_gives_the_same_table(tiny_dataset: Dataset):
    tables = [
        find_issues(
            tiny_dataset.samples, *_answers(tiny_dataset), CLASSES, rule="margin", neighbors=5, seed=4
        ).issues
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_groups_are_of_judged_training_samples_with_a_label(partly_labelled: Dataset):
    probs, embeddings = _answers(partly_labelled)
    judged = np.ones(len(probs), bool)
    judged[10] = False
    issues = find_issues(
        partly_labelled.samples, probs, embeddings, CLASSES, rule="margin", neighbors=5, judged=judged
    ).issues
    answered = issues["underperforming_group_score"].notna().to_numpy()
    training = (partly_labelled.samples["split"] == "train").to_numpy()
    assert (answered == (training & judged)).all()


def test_named_image_checks_alone_are_made(tiny_dataset: Dataset):
    found = find_issues(
        tiny_dataset.samples,
        *_answers(tiny_dataset),
        CLASSES,
        rule="margin",
        neighbors=5,
        images=tiny_dataset.images,
        checks=["blurry"],
    )
    assert [name for name in IMAGE_CHECKS if found.checks[name] == "on"] == ["blurry"]
    assert found.checks["outlier"] == "on"


def test_embeddings_that_are_all_alike_switch_their_checks_off(tiny_dataset: Dataset):
    probs, embeddings = _answers(tiny_dataset)
    found = find_issues(
        tiny_dataset.samples, probs, np.ones_like(embeddings), CLASSES, rule="margin", neighbors=5
    )
    for kind in ("outlier", "near_duplicate", "non_iid", "underperforming_group"):
        assert "all embeddings are alike" in found.checks[kind]
        assert not found.issues[f"is_{kind}_issue"].any()
        assert found.issues[f"{kind}_score"].isna().all()
    assert found.checks["label_error"] == "on"
    assert found.non_iid is None


def test_a_model_that_guesses_judges_no_groups(tiny_dataset: Dataset):
    probs, embeddings = _answers(tiny_dataset)
    uniform = np.full_like(probs, 1 / 3)
    found = find_issues(tiny_dataset.samples, uniform, embeddings, CLASSES, rule="margin", neighbors=5)
    assert found.checks["label_error"] == found.checks["underperforming_group"] != "on"
    assert found.checks["outlier"] == "on"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_samples_than_neighbours(tiny_dataset: Dataset, count: int):
    few = _part(tiny_dataset, [0, 30, 50, 1][:count])
    found = find_issues(few.samples, *_answers(few), CLASSES, rule="margin", neighbors=10, images=few.images)
    assert found.issues["neighbors"].map(len).eq(count - 1).all()
    assert found.checks["non_iid"] != "on"
    assert found.checks["underperforming_group"] != "on"
    assert not found.issues[["is_label_issue", "is_non_iid_issue"]].any().any()


def test_data_of_one_class_has_no_wrong_labels(tiny_dataset: Dataset):
    one = _part(tiny_dataset, list(range(30)))
    found = find_issues(one.samples, *_answers(one), CLASSES, rule="margin", neighbors=5)
    assert not found.issues["is_label_issue"].any()
    assert "one class only" in found.checks["label_error"]
    assert found.issues["outlier_score"].notna().all()


def test_a_hundred_classes_some_of_them_without_a_sample(tiny_dataset: Dataset):
    classes = [f"{i:02}" for i in range(100)]
    samples = tiny_dataset.samples.copy()
    samples["label"] = [classes[40 + i % 20] for i in range(len(samples))]
    dataset = Dataset(tiny_dataset.images, samples, tiny_dataset.classes)
    probs, embeddings = _answers(dataset, classes)
    samples.loc[3, "label"] = "99"
    found = find_issues(samples, probs, embeddings, classes, rule="margin", neighbors=5)
    assert np.flatnonzero(found.issues["is_label_issue"]).tolist() == [3]
    assert found.issues.loc[3, "suggested_label"] == "43"
    assert found.checks["underperforming_group"] == "on"


def test_equal_images_are_judged(tiny_dataset: Dataset):
    same = np.broadcast_to(tiny_dataset.images[:1], tiny_dataset.images.shape)
    found = find_issues(
        tiny_dataset.samples, *_answers(tiny_dataset), CLASSES, rule="margin", neighbors=5, images=same
    )
    assert found.issues["dark_score"].nunique() == 1


@pytest.mark.parametrize("name", ["pred_probs", "embeddings", "judged", "agreement", "images"])
def test_lengths_that_differ_are_refused(tiny_dataset: Dataset, name: str):
    probs, embeddings = _answers(tiny_dataset)
    arrays = {
        "pred_probs": probs,
        "embeddings": embeddings,
        "judged": np.ones(len(probs), bool),
        "agreement": probs,
        "images": tiny_dataset.images,
    }
    arrays[name] = arrays[name][:-1]
    with pytest.raises(WinnowError, match=f"{name} has 104 rows"):
        find_issues(tiny_dataset.samples, classes=CLASSES, rule="margin", neighbors=5, **arrays)


@pytest.mark.parametrize("name", ["pred_probs", "embeddings"])
def test_numbers_that_are_none_are_refused(tiny_dataset: Dataset, name: str):
    probs, embeddings = _answers(tiny_dataset)
    (probs if name == "pred_probs" else embeddings)[0, 0] = np.nan
    with pytest.raises(WinnowError, match=f"{name} hold"):
        find_issues(tiny_dataset.samples, probs, embeddings, CLASSES, rule="margin", neighbors=5)
