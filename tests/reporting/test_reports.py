from __future__ import annotations

import json

import pandas as pd
import pytest

from stages.dataset.base import LEDGER_COLUMNS
from stages.reporting import reports as module
from stages.reporting.reports import (
    fallbacks,
    histories,
    read_story,
    sample_counts,
    treatments_by_class,
    verdict,
)


def test_reads_what_the_stages_wrote(reports):
    story = read_story(reports)
    assert story.metrics["test_images"] == 40
    assert story.level == "95 %"
    assert story.table("evaluate/treatments.csv")["class"].tolist()[1] == "NA"
    assert story.table("evaluate/treatments.csv")["given"].sum() == 5
    assert story.table("ingest/quarantine.parquet")["reason"].tolist() == ["not_an_image"]
    assert set(story.summaries) == {"ingest"}
    assert [row["class"] for row in story.quality][1] == "NA"


def test_class_names_stay_text(reports):
    path = reports / "ingest/class_counts.csv"
    path.write_text("class,split,count\n007,train,3\n1.0,train,4\n", "utf-8")
    table = read_story(reports).table("ingest/class_counts.csv")
    assert table["class"].tolist() == ["007", "1.0"]
    assert table["count"].sum() == 7


def test_pictures_are_pngs_of_known_stages(reports):
    (reports / "private").mkdir()
    (reports / "private/a.png").write_bytes((reports / "detect_noise/label_errors.png").read_bytes())
    pictures = read_story(reports).pictures
    assert [(picture.stage, picture.name) for picture in pictures] == [("detect_noise", "label_errors.png")]
    assert pictures[0].data == (reports / "detect_noise/label_errors.png").read_bytes()


def test_a_picture_too_large_for_a_page_is_named_without_its_bytes(reports, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_PICTURE", 100)
    pictures = read_story(reports).pictures
    assert [(picture.name, picture.data) for picture in pictures] == [("label_errors.png", b"")]


def test_evaluates_own_files_may_lie_elsewhere(reports, tmp_path):
    partial = tmp_path / "evaluate.partial"
    (reports / "evaluate").rename(partial)
    assert read_story(reports).metrics == {}
    assert read_story(reports, partial).metrics["test_images"] == 40


def test_nothing_written_and_nonsense_written_are_left_out(tmp_path):
    empty = read_story(tmp_path / "nowhere")
    assert (empty.metrics, empty.tables, empty.quality, empty.pictures) == ({}, {}, [], [])
    assert empty.table("evaluate/per_class.csv").empty
    (tmp_path / "ingest").mkdir()
    (tmp_path / "synthesize").mkdir()
    (tmp_path / "ingest/summary.json").write_text("{", "utf-8")
    (tmp_path / "ingest/quarantine.parquet").write_bytes(b"PAR1 not")
    (tmp_path / "ingest/class_counts.csv").write_text("", "utf-8")
    (tmp_path / "synthesize/quality.json").write_text('{"classes": [1, null]}', "utf-8")
    nonsense = read_story(tmp_path)
    assert (nonsense.summaries, nonsense.tables, nonsense.quality) == ({}, {}, [])


def test_fallbacks_in_words(reports):
    classes = {"a": {"decision": "accepted"}, "b": {"decision": "fallback", "reason": "too few"}, "c": None}
    path = reports / "synthesize/quality.json"
    path.write_text(json.dumps({"method": "smote", "classes": classes}), "utf-8")
    story = read_story(reports)
    assert fallbacks(story) == [("b", "too few")]
    assert story.synthesis == {"method": "smote"}


def test_of_the_generators_progress_only_the_last_picture_is_read(made):
    names = [picture.name for picture in read_story(made).pictures if picture.stage == "synthesize"]
    assert names == ["refused.png", "samples.png", "progress/step_000800.png"]
    late = made / "synthesize/progress/step_1000000.png"
    (made / "synthesize/progress/step_000080.png").rename(late)
    assert read_story(made).pictures[-1].name == "progress/step_1000000.png"


@pytest.mark.parametrize(
    ("metric", "low", "high", "said"),
    [
        ("macro_f1", 0.01, 0.05, "better"),
        ("macro_f1", -0.05, -0.01, "worse"),
        ("macro_f1", -0.01, 0.05, "not shown to help"),
        ("macro_f1", 0.0, 0.05, "not shown to help"),
        ("expected_calibration_error", -0.05, -0.01, "better"),
        ("expected_calibration_error", 0.01, 0.05, "worse"),
        ("expected_calibration_error", -0.01, 0.0, "not shown to help"),
    ],
)
def test_verdict(metric, low, high, said):
    assert verdict(metric, {"value": (low + high) / 2, "low": low, "high": high}) == said


def test_histories(reports):
    models, gan = histories(reports)
    assert set(models) == {"baseline"}
    assert models["baseline"]["train_loss"].tolist() == [1.0, 0.5]
    assert models["baseline"]["val_loss"].isna().all()
    assert gan.empty


@pytest.fixture
def ledger():
    rows = [
        ("train", "a", "a", "keep"),
        ("train", "a", "a", "keep"),
        ("train", "a", "b", "relabel"),
        ("train", "b", "b", "drop"),
        ("train", "b", "b", "reweight"),
        ("val", "c", "a", "relabel"),  # a reviewer's: no treatment of the training split
        ("test", "c", "c", "drop"),
    ]
    table = pd.DataFrame(rows, columns=["split", "given_label", "label", "action"])
    return table.reindex(columns=LEDGER_COLUMNS)


def delta(*rows):
    return pd.DataFrame(rows, columns=["label", "method"])


def test_a_row_a_class_that_adds_up(ledger):
    augmented, synthetic = delta(("b", "albumentations")), delta(("b", "random"), ("b", "gan"), ("b", "gan"))
    table = treatments_by_class(ledger, augmented, synthetic, ["a", "b", "c"]).set_index("class")
    assert table.loc["a"].tolist() == [3, 0, 1, 0, 0, 2, 0, 0, ""]
    assert table.loc["b"].tolist() == [2, 1, 0, 1, 1, 2, 1, 3, "gan 2, random 1"]
    assert table.loc["c"].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, ""]
    real = table["given"] - table["dropped"] - table["relabelled"] + table["gained"]
    assert real.tolist() == table["real"].tolist()


def test_totals_are_of_the_training_split(ledger):
    counts = sample_counts(ledger, delta(("b", "albumentations")), delta(("b", "smote"), ("a", "gan")))
    assert counts == {
        "ingested": 5,
        "kept": 2,
        "dropped": 1,
        "relabelled": 1,
        "reweighted": 1,
        "augmented": 1,
        "synthesised": 2,
        "synthesised_by": {"gan": 1, "smote": 1},
    }


def test_empty_deltas(ledger):
    counts = sample_counts(ledger, delta(), delta())
    assert (counts["augmented"], counts["synthesised"], counts["synthesised_by"]) == (0, 0, {})
    table = treatments_by_class(ledger, delta(), delta(), ["a", "b", "c"])
    assert table[["augmented", "synthesised"]].to_numpy().sum() == 0


def test_samples_that_reviewers_labelled_are_gained_and_counted_apart(ledger):
    rows = [
        ("train", None, "b", "relabel"),
        ("unlabeled", None, None, "keep"),
        ("unlabeled", None, None, "drop"),
    ]
    more = pd.DataFrame(rows, columns=["split", "given_label", "label", "action"])
    together = pd.concat([ledger, more.reindex(columns=LEDGER_COLUMNS)], ignore_index=True)
    table = treatments_by_class(together, delta(), delta(), ["a", "b", "c"]).set_index("class")
    assert table.loc["b"].tolist() == [2, 1, 0, 1, 2, 3, 0, 0, ""]
    real = table["given"] - table["dropped"] - table["relabelled"] + table["gained"]
    assert real.tolist() == table["real"].tolist()
    counts = sample_counts(together, delta(), delta())
    assert (counts["ingested"], counts["relabelled"]) == (5, 1)
    assert (counts["unlabeled"], counts["labelled"]) == (2, 1)
    assert "unlabeled" not in sample_counts(ledger, delta(), delta())
