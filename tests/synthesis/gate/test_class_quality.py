import json
from types import SimpleNamespace

import numpy as np
import pytest

from stages.synthesis.gate.class_quality import ClassQuality, judge_class, nearness_figures, why_none


def measure(value, real, limit, passed):
    return SimpleNamespace(value=value, real=real, limit=limit, passed=passed)


LABEL_CHECKED = {"agreement": measure(0.9, 0.9, 0.5, passed=True)}


def verdict(count, passing, failed=(), measures=None, **refused):
    """A verdict in which each check refuses so many of the last candidates."""
    index = np.arange(count)
    kinds = ("agreement", "copy_of_train", "copy_of_held_out", "stray", "repeat")
    return SimpleNamespace(
        refused={kind: index >= count - refused.get(kind, 0) for kind in kinds},
        accepted=index < passing,
        measures=LABEL_CHECKED if measures is None else measures,
        failed=failed,
    )


def judged(found, requested=10, min_accepted=0.3):
    quality = ClassQuality(real=50, target=50 + requested, requested=requested)
    return judge_class(quality, found, min_accepted), quality


@pytest.mark.parametrize(
    ("found", "decision", "words"),
    [
        (verdict(40, 20), "accepted", "20 of 40 candidates passed every check"),
        (verdict(40, 12), "accepted", "12 of 40"),
        (verdict(40, 11, agreement=29), "fallback", "12 must: 29 of 40 are not recognised as the class"),
        (verdict(40, 2, copy_of_train=38), "fallback", "38 of 40 are near-copies of training images"),
        (verdict(40, 2, copy_of_held_out=38, stray=1), "fallback", "validation or test images"),
        (verdict(40, 2, stray=38, agreement=20), "fallback", "38 of 40 are unlike any real image"),
        (verdict(40, 1, repeat=39), "fallback", "39 of 40 repeat others"),
    ],
)
def test_the_share_that_passes_decides(found, decision, words):
    kept, quality = judged(found)
    assert kept == (decision != "fallback")
    assert quality.decision == decision
    assert quality.method == ("gan" if kept else "none")
    assert words in quality.reason
    assert quality.candidates == 40
    assert quality.accepted == found.accepted.sum()
    assert quality.refused == {name: int(rows.sum()) for name, rows in found.refused.items()}


def test_the_quota_shrinks_where_too_few_pass():
    kept, quality = judged(verdict(40, 15, agreement=25), requested=20)
    assert kept
    assert quality.decision == "reduced"
    assert "fewer than the 20 asked for" in quality.reason


def test_nothing_accepted_is_a_fallback_however_low_the_bar():
    kept, quality = judged(verdict(40, 0, agreement=40), min_accepted=0.0)
    assert not kept
    assert quality.decision == "fallback"
    assert "0 of 40 candidates passed every check, 1 must: 40 of 40 are" in quality.reason


@pytest.mark.parametrize("name", ["agreement", "kid"])
def test_a_class_whose_labels_cannot_be_checked_is_refused(name):
    unproven = {"density": measure(1.0, 1.0, 0.5, passed=True)}
    kept, quality = judged(verdict(40, 40, measures=unproven))
    assert not kept
    assert quality.decision == "fallback"
    assert "no label can be checked (40 of 40" in quality.reason
    kept, _ = judged(verdict(40, 40, measures=unproven | {name: measure(0.4, 0.4, 0.5, passed=True)}))
    assert kept


@pytest.mark.parametrize(
    ("name", "figures", "words"),
    [
        ("copies", (0.78, 0.05, 0.2), "30 of 40 are near-copies of training images, 5 % are expected"),
        ("copies_of_held_out", (0.1, 0.0, 0.1), "5 of 40 are near-copies of validation or test images, 0 %"),
        (
            "agreement",
            (0.12, 0.95, 0.5),
            "12 % are recognised as the class, of real images 95 %; at least 50 %",
        ),
        ("density", (0.1, 0.9, 0.45), "density 0.10, of real images 0.90; at least 0.45 is asked for"),
        ("kid", (2.0, None, 0.5), "kid 2.00; at most 0.50 is asked for"),
        ("diversity", (0.0, 1.0, 0.5), "diversity 0.00"),
    ],
)
def test_a_class_that_fails_as_a_whole_is_refused_with_the_figure(name, figures, words):
    measures = {name: measure(*figures, passed=False), "coverage": measure(0.9, 0.95, 0.5, passed=True)}
    kept, quality = judged(
        verdict(40, 40, failed=(name,), measures=measures, copy_of_train=30, copy_of_held_out=5)
    )
    assert not kept
    assert quality.decision == "fallback"
    assert words in quality.reason
    assert "40 of 40 candidates passed every check" in quality.reason
    assert quality.measures[name]["passed"] is False
    assert quality.measures["coverage"] == {"value": 0.9, "real": 0.95, "limit": 0.5, "passed": True}
    json.dumps(quality.to_json(), allow_nan=False)


def test_why_a_class_gains_nothing():
    assert "no real images" in why_none(ClassQuality(real=0, target=9, requested=0))
    assert why_none(ClassQuality(real=9, target=9, requested=0)) == "9 real images of a target of 9"
    assert why_none(ClassQuality(real=1, target=1, requested=0)) == "1 real image of a target of 1"
    assert "max_factor" in why_none(ClassQuality(real=3, target=9, requested=0))


def test_nearness_is_told_beside_that_of_real_images():
    own = np.array([0, 10, 30, 60], np.uint8)[:, None, None, None]
    figures = nearness_figures(np.array([0.5, 0.25, 2.0]), own)
    assert figures == {"min": 0.25, "median": 0.5, "real_min": 0.6667}  # 10, 10, 20 and 30 apart
    assert nearness_figures(np.zeros(0), own) is None
    assert nearness_figures(np.ones(1), np.zeros((3, 4, 4, 1), np.uint8))["real_min"] == 0
