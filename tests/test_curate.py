import json

import numpy as np
import pytest

from stages import curate
from stages.dataset import (
    Dataset,
    new_folder,
    read_ledger,
    split_hash,
    split_view,
    write_dataset,
    write_table,
)
from stages.noise.issues import build_issues


@pytest.fixture
def detected(tiny_dataset: Dataset, workspace) -> Dataset:
    """A workspace as detect_noise leaves it, with samples 0 to 4 surely mislabelled."""
    truth = tiny_dataset.samples["label"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
    probs = np.full((len(truth), 3), 0.02, np.float32)
    probs[np.arange(len(truth)), truth] = 0.96
    probs[:5] = [0.02, 0.96, 0.02]
    embeddings = np.random.default_rng(0).normal(size=(len(truth), 8)).astype(np.float32)
    issues = build_issues(
        tiny_dataset.samples, probs, embeddings, tiny_dataset.classes, rule="auto", neighbors=5
    )
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    with new_folder(workspace / "data/noise") as folder:
        write_table(folder / "issues.parquet", issues)
    return tiny_dataset


def add_review(workspace, *rows: str) -> None:
    with (workspace / "data/reviews.csv").open("a") as file:
        file.write("\n".join(rows) + "\n")


def test_the_ledger_has_a_row_a_sample_and_says_what_was_done(detected: Dataset, workspace, capsys):
    curate.main([])
    ledger = read_ledger()
    assert ledger["sample_id"].tolist() == detected.samples["sample_id"].tolist()
    assert ledger.loc[:4, "action"].tolist() == ["relabel"] * 5
    assert "5 relabel" in capsys.readouterr().out
    assert json.loads((workspace / "reports/curate/summary.json").read_text())["actions"]["relabel"] == 5
    assert (workspace / "reports/curate/changes.png").stat().st_size > 1000
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
    assert "1 of 3 reviews" in capsys.readouterr().err
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
