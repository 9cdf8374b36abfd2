from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import pandas as pd
import pytest
from gate_record import judged, write_quality

from stages.reporting.page import (
    counts_by_split,
    done_by_kind,
    found_by_split,
    headline,
    kept_for_review,
    order_line,
    rare_classes,
    render_page,
    switched_off,
)
from stages.reporting.rendering import cell_text, flat_rows
from stages.reporting.reports import Results, read_results

SPLITS = {
    "test": {"samples": 5, "label_error": 1, "outlier": 2, "dark": 0},
    "train": {"samples": 10, "label_error": 3, "outlier": 4, "dark": 0},
    "unlabeled": {"samples": 2, "outlier": 1, "dark": 0},
}

CHECKS = {"label_error": "on", "outlier": "on", "dark": "90 % are"}
NASTY = "<img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "img", "br", "link"}


def test_counts_by_kind_and_split():
    table = found_by_split({"splits": SPLITS, "checks": CHECKS})
    assert table.columns.tolist() == ["kind", "train", "test", "unlabeled", "all"]
    assert table["kind"].tolist() == ["samples looked at", "label errors", "outliers"]
    assert table["all"].tolist() == [17, 4, 7]
    assert table["unlabeled"].isna().tolist() == [False, True, False]


def test_splits_may_stand_at_the_top_under_the_names_that_they_had():
    older = {"train": {"samples": 10, "label_errors": 3, "outliers": 4, "near_duplicates": 0}}
    table = found_by_split(older)
    assert table.to_numpy().tolist() == [
        ["samples looked at", 10],
        ["label errors", 3],
        ["outliers", 4],
        ["near-duplicates", 0],
    ]


def test_what_was_not_looked_for_and_why():
    assert switched_off({"checks": CHECKS}) == [("dark images", "90 % are")]


@pytest.mark.parametrize(("p", "said"), [(0.001, True), (0.05, False), (1.0, False), (None, False)])
def test_an_order_that_tells_something_is_named(p, said):
    assert ("p = 0.001" in order_line({"non_iid": p})) == said


def test_what_was_done_by_what_decided():
    kinds = {"outlier": {"keep": 7}, "label_error": {"drop": 2, "relabel": 3}, "new_kind": {"drop": 1}}
    table = done_by_kind({"kinds": kinds})
    assert table.to_numpy().tolist() == [
        ["label errors", 2, 3, 0, 0],
        ["outliers", 0, 0, 0, 7],
        ["new_kind", 1, 0, 0, 0],
    ]


def test_what_waits_for_review():
    summary = {"protection": {"rare_class": 4, "min_per_class": 0}, "outside_training": {"test": 7}}
    assert kept_for_review(summary) == [
        ("in training, because the class is rare", 4),
        ("suspected labels in test", 7),
    ]


def test_many_rare_classes_are_counted():
    assert rare_classes({"rare_classes": ["a", "b"]}) == "a, b"
    assert rare_classes({"rare_classes": [str(i) for i in range(500)]}).endswith("19 and 480 more")


@pytest.mark.parametrize("summary", [{}, {"splits": 3, "checks": [], "kinds": {"a": 1}, "non_iid": "?"}])
def test_nothing_and_nonsense_are_empty(summary):
    pd.testing.assert_frame_equal(found_by_split(summary), pd.DataFrame())
    assert done_by_kind(summary).empty
    assert (switched_off(summary), kept_for_review(summary)) == ([], [])
    assert (order_line(summary), rare_classes(summary)) == ("", "")


class Page(HTMLParser):
    """Tags with their attributes and the visible text; closing tags have to match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.text += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())


def change_metrics(reports, change):
    path = reports / "evaluate/metrics.json"
    metrics = json.loads(path.read_text("utf-8"))
    change(metrics)
    path.write_text(json.dumps(metrics), "utf-8")


def test_tells_the_whole_story(reports):
    page = Page(render_page(read_results(reports)))
    for said in (
        "The treatments bought 10.0 points of balanced accuracy",
        "0.600",  # the fine-tuned model's score
        "0.580 to 0.620",
        "+0.100",
        "+0.080 to +0.120",
        "0.774",  # the noise detector's F1
        "Synthesis fell back for 1 class",
        "2 real images",
        "random 4",
        "not_an_image",
        "The intervals speak of this test set; variance over training seeds is measured by "
        "benchmarks/demo_seeds.py",
        "0123456789abcdef",
        "make review",
    ):
        assert said in page.words


def test_needs_nothing_else_and_runs_no_scripts(reports):
    page = Page(render_page(read_results(reports)))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            allowed = ("#", "data:image/png;base64,", "../ingest/data_card.html")
            assert attributes.get(name, "#").startswith(allowed)
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_tells_what_was_found_and_what_was_done(findings):
    page = Page(render_page(read_results(findings)))
    for said in (
        "label errors 3 3 6",
        "Files that follow one another look alike (p = 0.001)",
        f"Not looked for: dark images (9 of 10 are {NASTY}).",
        "label errors 2 5 0 0",
        "4 in training, because the class is rare",
        "3 suspected labels in test",
        f"Rare: {NASTY}.",
        "train label_error drop 007 2",
    ):
        assert said in page.words


def test_pictures_of_a_stage_stand_in_its_section_the_most_telling_first(findings):
    text = render_page(read_results(findings))
    names = ["label_errors", "transition", "another", "class_balance"]
    places = [text.index(f"{name}.png</code>") for name in names]
    assert places == sorted(places)
    assert text.index('id="found"') < places[0] < places[2] < text.index('id="done"') < places[3]
    assert places[3] < text.index('id="classes"')


def test_tells_what_was_made_and_what_was_refused(made):
    page = Page(render_page(read_results(made)))
    for said in (
        "all together 90.0 % kept 81 of 90 100 tried 007 80.0 %",
        "30.0 % left out 27 of 90 100 tried 007 10.0 %",
        "One GAN, trained on 2 classes for 800 steps of 16 images",
        "went back to step 100",
        "007 30 real accepted 10 by gan 52 of 64 ✓ 0.91 ≥ 0.48 real 0.97 ✓ 0.20 ≤ 0.50 real 0.01 52 of",
        "fallback 10 by random 52 of 64 ✓ 0.91 ≥ 0.48 real 0.97 ✗ 1.70 ≤ 0.50 real 0.01 farther from",
        "Refused: 7 near-copies of training images, 5 not recognised",
        "Of 3 classes 1 needed none",
        "800 0.8 2",
        "0.600 nearest generated image 0.400 nearest two real ones of its class",
        "The nearest one is of class 007",
        "It is no guarantee",
        "10 by random: copies or mixtures of real images by design",
    ):
        assert said in page.words


def test_pictures_of_what_was_made_stand_with_it(made):
    text = render_page(read_results(made))
    names = ["transforms", "preview", "samples", "refused", "progress/step_000800"]
    places = [text.index(f"{name}.png</code>") for name in names]
    assert places == sorted(places)
    assert text.index('id="done"') < text.index('id="made"') < places[0]
    assert places[-1] < text.index('id="classes"')
    assert "step_000080" not in text


def test_a_thousand_classes_leave_the_page_small(made):
    long = "a class with a rather long name"
    quality = {f"{long} {i}": judged("fallback" if i % 2 else "accepted", "why " * 20) for i in range(1000)}
    write_quality(made, quality)
    header, *_, row = (made / "evaluate/treatments.csv").read_text("utf-8").splitlines()
    rows = [row.replace("NA,", f"{long} {i},", 1) for i in range(1000)]
    (made / "evaluate/treatments.csv").write_text("\n".join([header, *rows]), "utf-8")
    text = render_page(read_results(made))
    page = Page(text)
    for said in (
        "960 more classes in reports/synthesize/quality.json",
        "Synthesis fell back for 500 classes",
        "480 more",
        "800 more classes in reports/evaluate/treatments.csv",
    ):
        assert said in page.words
    assert len(text) < 500_000


@pytest.mark.parametrize("content", [None, "{}", '{"classes": {"a": {}, "b": 3}, "gan": 1}', "a,b\n1,2\n"])
def test_copes_with_missing_and_strange_files_of_what_was_made(made, content):
    for file in ("augment/survival.csv", "synthesize/gan_scores.csv", "synthesize/quality.json"):
        (made / file).unlink()
        if content is not None:
            (made / file).write_text(content, "utf-8")
    assert "What the treatments bought" in Page(render_page(read_results(made))).words


def test_names_are_text_and_never_markup(made):
    text = render_page(read_results(made))
    page = Page(text)
    assert NASTY in page.text
    assert "onerror=alert" not in text.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    assert all(attributes.get("src") != "x" for _, attributes in page.tags)


def test_pictures_are_inside(reports):
    page = Page(render_page(read_results(reports)))
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    inside = [base64.b64decode(picture.removeprefix("data:image/png;base64,")) for picture in pictures]
    assert inside == [(reports / "pages/detect_noise/label_errors.png").read_bytes()]
    assert "reports/pages/detect_noise/label_errors.png" in page.text


def test_an_interval_with_zero_in_it_is_not_shown_to_help(reports):
    def change(metrics):
        metrics["gain"]["finetune"]["balanced_accuracy"] = {"value": 0.02, "low": -0.01, "high": 0.05}

    change_metrics(reports, change)
    page = Page(render_page(read_results(reports)))
    assert "The treatments are not shown to help on this test set" in page.words
    assert "+0.020 not shown to help −0.010 to +0.050" in page.words


def test_a_loss_is_called_one(reports):
    def change(metrics):
        metrics["gain"]["finetune"]["balanced_accuracy"] = {"value": -0.1, "low": -0.2, "high": -0.05}

    change_metrics(reports, change)
    assert "The treatments cost 10.0 points" in Page(render_page(read_results(reports))).words


def test_a_larger_calibration_error_is_worse(reports):
    page = Page(render_page(read_results(reports)))
    assert "+0.100 worse +0.080 to +0.120" in page.words


def test_says_where_an_interval_does_not_hold_its_value(reports):
    assert "does not hold its value" not in render_page(read_results(reports))

    def change(metrics):
        metrics["models"]["train"]["worst_class_recall"] = {"value": 0.5, "low": 0.2, "high": 0.4}

    change_metrics(reports, change)
    page = Page(render_page(read_results(reports)))
    assert "An interval of worst-class recall does not hold its value" in page.words


def test_copes_without_anything(tmp_path):
    page = Page(render_page(read_results(tmp_path)))
    assert "No models were compared" in page.words
    assert "No file was refused" in page.words


@pytest.mark.parametrize("stage", ["ingest", "synthesize", "detect_noise", "baseline", "evaluate"])
def test_copes_without_one_stage(reports, stage):
    (reports / stage).rename(reports / f"{stage}.away")
    assert Page(render_page(read_results(reports))).tags


def test_without_planted_noise_the_detector_is_not_scored(reports):
    change_metrics(reports, lambda metrics: metrics.update(noise={}))
    assert "No wrong labels were planted" in Page(render_page(read_results(reports))).words


def test_long_tables_are_cut_and_say_so(reports):
    lines = [f"c{i},train,1" for i in range(350)]
    (reports / "ingest/class_counts.csv").write_text("\n".join(["class,split,count", *lines]), "utf-8")
    page = Page(render_page(read_results(reports)))
    assert "150 more rows in reports/ingest/class_counts.csv" in page.words


def test_unlabelled_images_are_a_row_and_a_column_of_the_counts(reports):
    with (reports / "ingest/class_counts.csv").open("a") as file:
        file.write(",unlabeled,7\n")
    table = counts_by_split(read_results(reports).table("ingest/class_counts.csv"))
    assert table.columns.tolist() == ["class", "train", "test", "unlabeled"]
    assert table.iloc[-1].tolist() == ["no label", 0, 0, 7]
    assert "no label" in Page(render_page(read_results(reports))).words


def test_same_story_same_bytes(reports):
    assert render_page(read_results(reports)) == render_page(read_results(reports))


def test_small_pieces():
    assert headline(Results({}))[1] == "none"
    assert flat_rows({"a": {"b": 1, "c": [1, 2.5]}, "d": None}) == [
        ("a.b", "1"),
        ("a.c", "1, 2.5"),
        ("d", ""),
    ]
    assert flat_rows({"a": [{"b": 1}, {"b": [2]}]}) == [("a.1.b", "1"), ("a.2.b", "2")]
    assert (cell_text(0.123456), cell_text(float("nan")), cell_text(3)) == ("0.1235", "", "3")
