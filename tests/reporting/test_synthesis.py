from __future__ import annotations

import pandas as pd
import pytest

from stages.reporting.synthesis import (
    gan_line,
    gan_notes,
    gate_table,
    nearness,
    not_needed_line,
    requested_table,
    snapshot_table,
    survival_rows,
    synthesis_lines,
)


def row(name, decision, candidates=64, **more):
    return {"class": name, "decision": decision, "candidates": candidates, "added": 5, **more}


def test_survival_shows_the_whole_policy_and_then_what_destroys_most():
    table = pd.DataFrame(
        {
            "transform": ["Affine", "HorizontalFlip", "Blur", "policy"],
            "survival": [0.99, 0.2, float("nan"), 0.95],
            "decision": ["kept", "left_out", "kept", "warned"],
        }
    )
    rows = survival_rows(table)
    assert [one["name"] for one in rows] == ["policy", "HorizontalFlip", "Affine", "Blur"]
    assert [one["decision"] for one in rows] == ["warned", "left out", "kept", "kept"]
    assert [one["tone"] for one in rows] == ["open", "worse", "better", "better"]
    assert rows[-1]["survival"] is None


def test_the_gate_shows_refused_classes_first_and_only_those_it_judged():
    quality = [
        row("a", "accepted"),
        row("b", "fallback"),
        row("c", "not_needed", 0),
        row("d", "fallback", 0),
        row("e", "reduced"),
        row("f", "accepted"),
    ]
    table = gate_table(quality)
    assert [one["class"] for one in table["rows"]] == ["b", "e", "a", "f"]
    assert [one["tone"] for one in table["rows"]] == ["worse", "open", "better", "better"]
    assert table["left_out"] == 0
    many = gate_table([row(str(i), "accepted") for i in range(100)])
    assert (len(many["rows"]), many["left_out"]) == (40, 60)


def test_measures_stand_in_the_same_order_for_all_and_keep_those_unknown_here():
    found = {"value": 0.4, "real": None, "limit": 0.5, "passed": False}
    quality = [
        row("a", "fallback", measures={"new": found, "kid": found}),
        row("b", "fallback", measures={"agreement": found | {"passed": True}}),
    ]
    table = gate_table(quality)
    assert table["measures"] == [("agreement", "recognised"), ("kid", "KID"), ("new", "new")]
    first, second = table["rows"]
    assert first["measures"]["kid"] == {
        "value": 0.4,
        "real": None,
        "limit": 0.5,
        "sign": "≤",
        "passed": False,
    }
    assert first["measures"]["new"]["sign"] == "limit"
    assert second["measures"]["agreement"]["sign"] == "≥"
    assert second["measures"]["agreement"]["passed"]


def test_what_was_refused_is_in_words_the_most_frequent_first():
    refused = {"agreement": 3, "repeat": 9, "stray": 0, "new": 1}
    (shown,) = gate_table([row("a", "fallback", refused=refused)])["rows"]
    assert shown["refused"] == [("repeats of one another", 9), ("not recognised", 3), ("new", 1)]


def test_classes_that_needed_nothing_are_only_counted():
    quality = [row("a", "not_needed", 0), row("b", "accepted"), row("c", "fallback", 0, reason="too few")]
    table = requested_table(quality)
    assert table["class"].tolist() == ["c", "b"]
    assert table["reason"].tolist() == ["too few", ""]
    assert not_needed_line(quality) == "Of 3 classes 1 needed none"
    assert not_needed_line(quality[1:]) == ""
    assert requested_table([]).empty


@pytest.mark.parametrize(
    ("synthesis", "requested", "said"),
    [
        ({"method": "smote", "gan": None}, 3, ""),
        ({"method": "gan", "gan": None}, 0, "No GAN was trained: no class needs images"),
        (
            {"method": "gan", "gan": None},
            3,
            "No GAN was trained: no class that needs images has enough of its own",
        ),
        (
            {"method": "gan", "gan": {"trained_on": ["a"], "steps": 8, "batch_size": 4}},
            3,
            "One GAN, trained on 1 class for 8 steps of 4 images",
        ),
        (
            {"method": "gan", "gan": {"trained_on": ["a"], "steps": 4, "steps_asked": 40, "batch_size": 4}},
            3,
            "One GAN, trained on 1 class for 4 of 40 steps of 4 images",
        ),
        ({}, 0, ""),
    ],
)
def test_the_gans_training_in_a_line(synthesis, requested, said):
    assert gan_line(synthesis, [row("a", "fallback", 0, requested=requested)]) == said


def test_notes_of_the_training():
    assert gan_notes({"gan": {"notes": ["halved the batch to 16"]}}) == ["halved the batch to 16"]
    assert gan_notes({"gan": {"notes": "no list"}}) == gan_notes({"gan": None}) == []


def test_snapshots_with_their_mean_score_and_the_classes_that_use_them():
    scores = pd.DataFrame({"step": [8, 8, 4, 4], "class": list("abab"), "score": [0.1, 0.3, 0.5, 0.7]})
    table = snapshot_table(scores, [row("a", "accepted", snapshot=8), row("b", "fallback", snapshot=None)])
    assert table["step"].tolist() == [4, 8]
    assert table["mean distance to validation"].tolist() == pytest.approx([0.6, 0.2])
    assert table["classes that chose it"].tolist() == [0, 1]
    assert snapshot_table(pd.DataFrame(), []).empty


def test_nearness_is_that_of_the_nearest_image_of_all_classes():
    quality = [
        row("a", "accepted", method="gan", nearness={"min": 0.7, "median": 0.9, "real_min": 0.5}),
        row("b", "reduced", method="gan", nearness={"min": 0.4, "median": 0.9, "real_min": None}),
        row("c", "fallback", method="random", nearness=None),
        row("d", "fallback", method="smote"),
    ]
    near = nearness(quality)
    assert (near.distance, near.real, near.name) == (0.4, None, "b")
    assert near.images == 10
    assert near.copied == {"random": 5, "smote": 5}
    assert nearness(quality[2:]) is None


def test_lines_for_the_terminal():
    assert synthesis_lines(pd.DataFrame(), [], {}) == []
    quality = [row("a", "accepted", nearness={"min": 0.7}), row("b", "fallback")]
    (line,) = synthesis_lines(pd.DataFrame(), quality, {"method": "gan", "gan": {}})
    assert line.startswith("Gate: the GAN's images are used for 1 of the 2 classes")
    assert line.endswith("0.70 of the distance between real images")
