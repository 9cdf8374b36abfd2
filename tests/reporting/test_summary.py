from __future__ import annotations

import json

import pytest

from stages.errors import WinnowError
from stages.reporting.reports import Results, read_results
from stages.reporting.summary import WIDTH, main, summarise


@pytest.fixture
def text(reports):
    return summarise(read_results(reports))


def test_scores_with_intervals_and_the_gain(text):
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "Scores on 40 test images, with 95 % intervals"
    assert lines[1] == "macro-F1 balanced accuracy worst-class recall"
    assert "baseline" + " 0.500 [0.480, 0.520]" * 3 in lines
    assert "fine-tuned" + " 0.600 [0.580, 0.620]" * 3 in lines
    assert "gain*" + " +0.100 [+0.080, +0.120]" * 3 in lines
    assert "better better better" in lines


def test_order_of_the_parts(text):
    parts = ["Scores on", "Noise detector", "Training split, by class", "Synthesis fell back", "Look further"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "precision 0.800   recall 0.750   F1 0.774" in text


def test_treatments_by_class_with_total_and_fallback(text):
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "class given dropped relabelled gained real augmented synthesised by" in lines
    assert "NA 2 2 2 2 2 4 4 random" in lines
    assert "all 5 5 5 5 5 4 4" in lines
    assert "NA: 2 real images" in lines


def test_fits_the_terminal_also_with_many_classes_and_long_names(reports):
    table = (reports / "evaluate/treatments.csv").read_text("utf-8").splitlines()
    rows = [f"{'long name ' * 9}{i},{table[2].split(',', 1)[1]}" for i in range(60)]
    (reports / "evaluate/treatments.csv").write_text("\n".join([table[0], *rows]), "utf-8")
    quality = {
        f"{'long name ' * 9}{i}": {"decision": "fallback", "reason": "because " * 30} for i in range(60)
    }
    content = {"method": "gan", "gan": None, "classes": quality}
    (reports / "synthesize/quality.json").write_text(json.dumps(content), "utf-8")
    text = summarise(read_results(reports))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "40 more classes in reports/evaluate/treatments.csv" in text
    assert "40 more in reports/synthesize/quality.json" in text


def test_without_summaries_nothing_is_said_of_what_was_found_and_done(text):
    assert "Found" not in text
    assert "Done to" not in text


def test_what_was_found_and_done(findings):
    text = summarise(read_results(findings))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "label errors 3 3 6",
        "not looked for: dark images",
        "label errors 2 5 0 0",
        "left for review: 4 in training, because the class is rare",
        "left for review: 3 suspected labels in test",
    ):
        assert line in lines
    assert "p = 0.001" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_what_was_made(made):
    text = summarise(read_results(made))
    words = " ".join(text.split())
    for said in (
        "Augmentation: 90.0 % of images are still recognised",
        "left out what destroys classes: <img",
        "the GAN's images are used for 1 of the 2 classes that it was tried for",
        "nearest to a real one at 0.60 of the distance between real images",
        "GAN: Step 120 gave losses that are not numbers: went back to step 100.",
    ):
        assert said in words
    assert max(map(len, text.splitlines())) <= WIDTH


def test_without_an_eligible_class_no_gan_is_told(text):
    assert "No GAN was trained: no class that needs images has enough of its own" in text


def test_commands_to_look_further(text):
    for command in (
        "make ui",
        "make flow",
        "reports/pages/evaluate/index.html",
        "make review",
        "dvc metrics diff",
    ):
        assert command in text.split("Look further")[1]


def test_no_terminal_codes_from_class_names(reports):
    path = reports / "evaluate/treatments.csv"
    path.write_text(path.read_text("utf-8").replace("\nNA,", "\n\x1b[2J,"), "utf-8")
    assert "\x1b" not in summarise(read_results(reports))


def test_nothing_planted_is_said(reports):
    path = reports / "evaluate/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"noise": {}}), "utf-8")
    assert "nothing was planted" in summarise(read_results(reports))


def test_before_any_run_it_is_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    with pytest.raises(WinnowError, match="run `dvc repro`"):
        summarise(Results({}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_main_prints_the_summary(reports, monkeypatch, capsys):
    monkeypatch.chdir(reports.parent)
    main()
    assert capsys.readouterr().out.rstrip("\n") == summarise(read_results(reports))


def test_unlabelled_images_are_named_where_there_are_any(reports, text):
    assert "Unlabelled" not in text
    path = reports / "evaluate/metrics.json"
    metrics = json.loads(path.read_text("utf-8"))
    metrics["samples"] |= {"unlabeled": 7, "labelled": 2}
    path.write_text(json.dumps(metrics), "utf-8")
    lines = summarise(read_results(reports)).splitlines()
    said = "Unlabelled: 7 images are not trained on; reviewers gave 2 a label (make review)"
    assert lines.index("Training split, by class") < lines.index(said) < lines.index("Look further")
    assert max(map(len, lines)) <= WIDTH
