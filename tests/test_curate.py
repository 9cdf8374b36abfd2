import json

import numpy as np
import pandas as pd
import pytest
from issue_table import clean_issues
from ruamel.yaml import YAML

from stages import curate, report
from stages.dataset.base import Dataset, read_ledger, split_hash, split_view, write_dataset
from stages.dataset.files import new_folder, write_table
from stages.dataset.issue_kinds import KINDS


def detect(workspace, base: Dataset, truth: pd.Series) -> None:
    """Leave the workspace as detect_noise does; samples 0 to 4 are surely b, the others what they are."""
    indices = truth.map({"a": 0, "b": 1, "c": 2}).to_numpy()
    probs = np.full((len(indices), 3), 0.02, np.float32)
    probs[np.arange(len(indices)), indices] = 0.96
    probs[:5] = [0.02, 0.96, 0.02]
    issues = clean_issues(base.samples)
    issues["label_score"] = np.where(base.samples["label"].notna(), 0.96, np.nan)
    wrong = (base.samples.index < 5) & base.samples["label"].notna()
    issues.loc[wrong, ["is_label_issue", "label_score"]] = [True, 0.02]
    issues.loc[:4, ["suggested_label", "suggested_score"]] = ["b", 0.96]
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, base)
    with new_folder(workspace / "data/noise") as folder:
        write_table(folder / "issues.parquet", issues)
        np.save(folder / "pred_probs.npy", probs)


@pytest.fixture
def detected(tiny_dataset: Dataset, workspace) -> Dataset:
    """A workspace with samples 0 to 4 surely mislabelled."""
    detect(workspace, tiny_dataset, tiny_dataset.samples["label"])
    return tiny_dataset


@pytest.fixture
def piled(tiny_dataset: Dataset, partly_labelled: Dataset, conflicts, workspace) -> Dataset:
    """A workspace with samples 0 to 3 unlabelled, 0 of them for conflicting labels, and 4 mislabelled."""
    detect(workspace, partly_labelled, tiny_dataset.samples["label"])
    write_table(workspace / "data/ingested/conflicts.parquet", conflicts)
    return partly_labelled


def configure(workspace, **changes: object) -> None:
    """Change the section `curate` of params.yaml."""
    path, yaml = workspace / "params.yaml", YAML()
    params = yaml.load(path)
    params["curate"].update(changes)
    yaml.dump(params, path)


def add_review(workspace, *rows: str) -> None:
    with (workspace / "data/reviews.csv").open("a") as file:
        file.write("\n".join(rows) + "\n")


def test_the_ledger_has_a_row_a_sample_and_says_what_was_done(detected: Dataset, workspace, capsys):
    curate.main([])
    ledger = read_ledger()
    assert ledger["sample_id"].tolist() == detected.samples["sample_id"].tolist()
    assert ledger.loc[:4, "action"].tolist() == ["relabel"] * 5
    assert "5 relabel" in capsys.readouterr().out
    summary = json.loads((workspace / "reports/curate/summary.json").read_text())
    assert summary["actions"]["relabel"] == 5
    assert summary["kinds"] == {"label_error": {"relabel": 5}}
    assert summary["rare_classes"] == []
    reasons = pd.read_csv(workspace / "reports/curate/reasons.csv", dtype=str, keep_default_na=False)
    assert reasons.to_numpy().tolist() == [["train", "label_error", "", "relabel", "a", "5"]]
    report.main(["curate"])
    assert (workspace / "reports/pages/curate/changes.png").stat().st_size > 1000
    assert split_view(detected, "train", ledger).class_counts.tolist() == [25, 25, 10]


def test_a_reviewer_outranks_and_a_corrected_test_split_is_another_one(detected: Dataset, workspace, capsys):
    test_row = detected.samples.index[detected.samples["split"] == "test"][0]
    add_review(
        workspace,
        f"{detected.samples.loc[0, 'sample_id']},keep,,r,2026-01-01,fine",
        f"{detected.samples.loc[test_row, 'sample_id']},relabel,c,r,2026-01-01,",
        f"{'f' * 16},drop,,r,2026-01-01,",
    )
    curate.main([])
    ledger = read_ledger()
    assert ledger.loc[0, ["action", "decided_by", "label"]].tolist() == ["keep", "reviewer", "a"]
    err = capsys.readouterr().err
    assert "1 of 3 reviews" in err
    assert f"({'f' * 16});" in err
    assert split_hash(detected, "test", ledger) != split_hash(detected, "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nonsense", "line 2: 1 fields"),
        (f"{'a' * 16},relabel,zebra,r,2026-01-01,", "line 2: unknown class 'zebra'"),
    ],
)
def test_bad_reviews_end_in_one_line_and_leave_the_last_ledger(detected, workspace, capsys, row, message):
    curate.main([])
    before = (workspace / "data/curated/ledger.parquet").read_bytes()
    add_review(workspace, row)
    with pytest.raises(SystemExit) as error:
        curate.main([])
    assert error.value.code == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert message in err[0]
    assert (workspace / "data/curated/ledger.parquet").read_bytes() == before


def test_reviews_that_empty_a_class_are_refused(detected: Dataset, workspace, capsys):
    train = detected.samples[(detected.samples["split"] == "train") & (detected.samples["label"] == "c")]
    add_review(workspace, *(f"{sample_id},drop,,r,2026-01-01," for sample_id in train["sample_id"]))
    with pytest.raises(SystemExit):
        curate.main([])
    assert "no training image of c" in capsys.readouterr().err


def test_unlabelled_samples_are_counted_and_conflicts_wait_for_review(piled: Dataset, workspace, capsys):
    curate.main([])
    ledger = read_ledger()
    assert ledger["sample_id"].tolist() == piled.samples["sample_id"].tolist()
    assert ledger.loc[:3, "split"].tolist() == ["unlabeled"] * 4
    assert ledger.loc[:1, "reason"].tolist() == ["conflicting_labels: a, c; for review", "unlabeled"]
    summary = json.loads((workspace / "reports/curate/summary.json").read_text())
    assert summary["unlabeled"] == {"unlabeled": 4, "labelled": 0, "dropped": 0}
    assert summary["conflicting_labels"] == 1
    assert sum(summary["actions"].values()) == 56
    queue = pd.read_csv(workspace / "reports/curate/review_queue.csv", dtype=str)
    assert queue["sample_id"].tolist() == piled.samples["sample_id"][[0, 4]].tolist()
    assert queue.loc[0, ["split", "reason"]].tolist() == ["unlabeled", "conflicting_labels: a, c; for review"]
    assert queue["suggested_label"].tolist() == ["a", "b"]  # b is likelier, but nobody claimed it
    assert "unlabeled: 4 samples" in capsys.readouterr().out
    assert split_view(piled, "train", ledger).class_counts.tolist() == [25, 21, 10]


def test_what_reviewers_label_is_trained_on_from_then_on(piled: Dataset, workspace, capsys):
    first, second, third, fourth = piled.samples["sample_id"][:4]
    add_review(
        workspace,
        f"{first},relabel,c,r,2026-01-01,",
        f"{second},relabel,b,r,2026-01-01,",
        f"{third},drop,,r,2026-01-01,",
        f"{fourth},keep,,r,2026-01-01,",
    )
    curate.main([])
    ledger = read_ledger()
    view = split_view(piled, "train", ledger)
    assert view.class_counts.tolist() == [25, 22, 11]
    labels = dict(zip(view.sample_ids, view.labels, strict=True))
    assert (labels[first], labels[second]) == (2, 1)
    assert not {third, fourth} & set(labels)
    assert split_hash(piled, "test", ledger) == split_hash(piled, "test")
    queue = pd.read_csv(workspace / "reports/curate/review_queue.csv")
    assert first not in set(queue["sample_id"])
    assert "gave 2 a label and dropped 1" in capsys.readouterr().out
    report.main(["curate"])
    assert (workspace / "reports/pages/curate/changes.png").stat().st_size > 1000


def test_a_disputed_sample_returns_to_the_split_it_was_frozen_in(
    piled: Dataset, workspace, conflicts, capsys
):
    write_table(workspace / "data/ingested/conflicts.parquet", conflicts.assign(split="test"))
    name = piled.samples["sample_id"][0]
    add_review(workspace, f"{name},relabel,c,r,2026-01-01,")
    curate.main([])
    ledger = read_ledger()
    assert name in split_view(piled, "test", ledger).sample_ids
    assert name not in split_view(piled, "train", ledger).sample_ids
    assert "gave 1 a label and dropped 0" in capsys.readouterr().out


def test_a_decision_follows_the_pixels_to_the_copy_that_is_kept(detected: Dataset, workspace, capsys):
    first, second = detected.samples["sample_id"][:2]
    copies = {"0" * 16: first, "1" * 16: second}
    with new_folder(workspace / "reports/ingest") as folder:
        table = pd.DataFrame({"sample_id": copies.keys(), "kept_id": copies.values()})
        write_table(folder / "duplicates.parquet", table)
    add_review(
        workspace,
        f"{'0' * 16},drop,,r,2026-01-01,blurred",
        f"{'1' * 16},drop,,r,2026-01-01,",
        f"{second},keep,,r,2026-01-02,",
    )
    curate.main([])
    ledger = read_ledger()
    assert ledger.loc[:1, "action"].tolist() == ["drop", "keep"]
    assert ledger.loc[:2, "decided_by"].tolist() == ["reviewer", "reviewer", "policy"]
    assert ledger.loc[0, "reason"] == "blurred"
    assert "warning" not in capsys.readouterr().err
    summary = json.loads((workspace / "reports/curate/summary.json").read_text())
    assert (summary["reviews"], summary["reviews_of_unknown_samples"]) == (2, 0)


def test_the_warning_names_three_of_many_unknown_samples(detected: Dataset, workspace, capsys):
    add_review(workspace, *(f"{number:016x},drop,,r,2026-01-01," for number in range(5)))
    curate.main([])
    err = capsys.readouterr().err
    assert f"({0:016x}, {1:016x}, {2:016x} and 2 more)" in err
    assert f"{3:016x}" not in err


@pytest.mark.parametrize("what", ["fewer", "others", "order", "classes"])
def test_noise_of_another_base_is_one_line(detected: Dataset, workspace, capsys, what):
    path = workspace / "data/noise/issues.parquet"
    issues = pd.read_parquet(path)
    if what == "fewer":
        issues = issues[:-1]
    elif what == "others":
        issues.loc[0, "sample_id"] = "f" * 16
    elif what == "order":
        issues = issues[::-1]
    else:
        np.save(path.with_name("pred_probs.npy"), np.zeros((len(issues), 2), np.float32))
    write_table(path, issues)
    with pytest.raises(SystemExit) as error:
        curate.main([])
    assert error.value.code == 2
    err = capsys.readouterr().err.strip()
    assert err == "curate: data/noise is of other data than data/ingested: run `dvc repro`"
    assert not (workspace / "data/curated").exists()


def test_reviewers_can_bring_a_class_its_first_training_images(piled: Dataset, workspace):
    """All of class c that is for training lies in the pile of the unlabelled."""
    samples = piled.samples.copy()
    rare = (samples["split"] == "train") & (samples["label"] == "c")
    samples.loc[rare, ["split", "label"]] = ["unlabeled", None]
    base = Dataset(piled.images, samples, piled.classes)
    detect(workspace, base, piled.samples["label"].fillna("a"))
    with pytest.raises(SystemExit):
        curate.main([])
    add_review(workspace, f"{samples.loc[rare, 'sample_id'].iloc[0]},relabel,c,r,2026-01-01,")
    curate.main([])
    assert split_view(base, "train", read_ledger()).class_counts[2] == 1


def test_policies_come_from_params(detected: Dataset, workspace, make_params):
    policy = curate.read_policy(make_params({"curate.blurry.action": "drop"}).curate)
    assert set(policy.kinds) == set(KINDS)
    assert policy.kinds["blurry"].action == "drop"
    configure(workspace, label_error={"action": "keep", "confidence": 0.8, "otherwise": "drop"})
    curate.main([])
    assert read_ledger()["action"].unique().tolist() == ["keep"]


def test_what_a_protection_keeps_comes_first_in_the_queue(piled: Dataset, workspace, capsys):
    """Class c has 10 training images to 26 and 20: rare below three quarters of the median."""
    path = workspace / "data/noise/issues.parquet"
    issues = pd.read_parquet(path)
    rare = issues.index[(issues["split"] == "train") & (issues["given_label"] == "c")][:2]
    columns = ["is_label_issue", "label_score", "suggested_label", "suggested_score"]
    issues.loc[rare[0], columns] = [True, 0.3, "a", 0.6]
    issues.loc[rare[1], ["is_outlier_issue", "outlier_score"]] = [True, 0.4]
    write_table(path, issues)
    configure(workspace, rare_below=0.75, outlier={"action": "drop", "confidence": 0.5, "otherwise": "keep"})
    curate.main([])
    ledger = read_ledger()
    assert ledger.loc[rare, "action"].tolist() == ["keep", "keep"]
    assert ledger.loc[rare, "reason"].tolist() == [
        "label_error, but the class is rare: for review",
        "outlier, but the class is rare: for review",
    ]
    queue = pd.read_csv(workspace / "reports/curate/review_queue.csv", dtype=str)
    assert queue["sample_id"].tolist() == piled.samples["sample_id"][[*rare, 0, 4]].tolist()
    summary = json.loads((workspace / "reports/curate/summary.json").read_text())
    assert summary["protection"] == {"rare_class": 2, "max_lost_per_class": 0, "min_per_class": 0}
    assert summary["rare_classes"] == ["c"]
    assert "kept for review: 2, because the class is rare" in capsys.readouterr().out


def test_suspects_outside_training_are_reported_and_left(detected: Dataset, workspace):
    path = workspace / "data/noise/issues.parquet"
    issues = pd.read_parquet(path)
    row = issues.index[issues["split"] == "test"][0]
    issues.loc[row, ["is_label_issue", "label_score", "suggested_label"]] = [True, 0.0, "c"]
    write_table(path, issues)
    curate.main([])
    ledger = read_ledger()
    assert split_hash(detected, "test", ledger) == split_hash(detected, "test")
    queue = pd.read_csv(workspace / "reports/curate/review_queue.csv", dtype=str)
    assert queue.loc[0, ["sample_id", "action", "reason"]].tolist() == [
        issues.loc[row, "sample_id"],
        "keep",
        "label_error: outside training, for review",
    ]
    summary = json.loads((workspace / "reports/curate/summary.json").read_text())
    assert summary["outside_training"] == {"test": 1}


def test_issues_of_an_older_version_are_one_line(detected: Dataset, workspace, capsys):
    path = workspace / "data/noise/issues.parquet"
    write_table(path, pd.read_parquet(path).drop(columns="is_dark_issue"))
    with pytest.raises(SystemExit):
        curate.main([])
    assert capsys.readouterr().err.strip() == (
        "curate: data/noise/issues.parquet is an older version's, without dark: run `dvc repro`"
    )
    assert not (workspace / "data/curated").exists()


def test_the_same_inputs_give_the_same_bytes(detected: Dataset, workspace):
    def written() -> dict[str, bytes]:
        curate.main([])
        folders = (workspace / "data/curated", workspace / "reports/curate")
        return {path.name: path.read_bytes() for folder in folders for path in folder.iterdir()}

    assert written() == written()
