from __future__ import annotations

import json

import pytest

from stages.reporting import reports as module
from stages.reporting.reports import (
    fallbacks,
    read_results,
    verdict,
)


def test_reads_what_the_stages_wrote(reports):
    results = read_results(reports)
    assert results.metrics["test_images"] == 40
    assert results.level == "95 %"
    assert results.table("evaluate/treatments.csv")["class"].tolist()[1] == "NA"
    assert results.table("evaluate/treatments.csv")["given"].sum() == 5
    assert results.table("ingest/quarantine.parquet")["reason"].tolist() == ["not_an_image"]
    assert set(results.summaries) == {"ingest"}
    assert [row["class"] for row in results.quality][1] == "NA"


def test_class_names_stay_text(reports):
    path = reports / "ingest/class_counts.csv"
    path.write_text("class,split,count\n007,train,3\n1.0,train,4\n", "utf-8")
    table = read_results(reports).table("ingest/class_counts.csv")
    assert table["class"].tolist() == ["007", "1.0"]
    assert table["count"].sum() == 7


def test_pictures_are_pngs_of_known_stages(reports):
    (reports / "pages/private").mkdir()
    picture = (reports / "pages/detect_noise/label_errors.png").read_bytes()
    (reports / "pages/private/a.png").write_bytes(picture)
    pictures = read_results(reports).pictures
    assert [(picture.stage, picture.name) for picture in pictures] == [("detect_noise", "label_errors.png")]
    assert pictures[0].data == picture


def test_a_picture_too_large_for_a_page_is_named_without_its_bytes(reports, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_PICTURE", 100)
    pictures = read_results(reports).pictures
    assert [(picture.name, picture.data) for picture in pictures] == [("label_errors.png", b"")]


def test_evaluates_own_pictures_may_lie_elsewhere(reports, tmp_path):
    partial = tmp_path / "evaluate.partial"
    partial.mkdir()
    (reports / "pages/detect_noise/label_errors.png").rename(partial / "recall.png")
    assert read_results(reports).pictures == []
    (picture,) = read_results(reports, partial).pictures
    assert (picture.stage, picture.name) == ("evaluate", "recall.png")


def test_nothing_written_and_nonsense_written_are_left_out(tmp_path):
    empty = read_results(tmp_path / "nowhere")
    assert (empty.metrics, empty.tables, empty.quality, empty.pictures) == ({}, {}, [], [])
    assert empty.table("evaluate/per_class.csv").empty
    (tmp_path / "ingest").mkdir()
    (tmp_path / "synthesize").mkdir()
    (tmp_path / "ingest/summary.json").write_text("{", "utf-8")
    (tmp_path / "ingest/quarantine.parquet").write_bytes(b"PAR1 not")
    (tmp_path / "ingest/class_counts.csv").write_text("", "utf-8")
    (tmp_path / "synthesize/quality.json").write_text('{"classes": [1, null]}', "utf-8")
    nonsense = read_results(tmp_path)
    assert (nonsense.summaries, nonsense.tables, nonsense.quality) == ({}, {}, [])


def test_fallbacks_in_words(reports):
    classes = {"a": {"decision": "accepted"}, "b": {"decision": "fallback", "reason": "too few"}, "c": None}
    path = reports / "synthesize/quality.json"
    path.write_text(json.dumps({"method": "smote", "classes": classes}), "utf-8")
    results = read_results(reports)
    assert fallbacks(results) == [("b", "too few")]
    assert results.synthesis == {"method": "smote"}


def test_of_the_generators_progress_only_the_last_picture_is_read(made):
    names = [picture.name for picture in read_results(made).pictures if picture.stage == "synthesize"]
    assert names == ["refused.png", "samples.png", "progress/step_000800.png"]
    late = made / "pages/synthesize/progress/step_1000000.png"
    (made / "pages/synthesize/progress/step_000080.png").rename(late)
    assert read_results(made).pictures[-1].name == "progress/step_1000000.png"


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
