from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from stages.dataset.base import View
from stages.learning.judge import train_judge
from stages.synthesis.gate import (
    CHECKS,
    MEASURES,
    ClassQuality,
    Gate,
    GateConfig,
    judge_class,
    nearness_figures,
    why_none,
)

CLASSES, REAL, HELD_OUT = 4, 60, 30

CONFIG = GateConfig(
    min_agreement=0.5,
    copy_quantile=0.05,
    min_accepted=0.3,
    min_density=0.5,
    min_coverage=0.5,
    min_diversity=0.5,
    max_kid=0.2,
)

LABELS = pytest.mark.parametrize("label", range(CLASSES))


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


def _view(images, labels, classes=CLASSES):
    ids = np.array([str(i) for i in range(len(labels))], object)
    names = [str(label) for label in range(classes)]
    return View(images, np.asarray(labels, np.int64), np.ones(len(labels), np.float32), ids, names)


@pytest.fixture(scope="module")
def digits():
    """16×16 grey images by class, in random order: the file goes from writer to writer."""
    raw = load_digits(n_class=CLASSES)
    pixels = np.clip(raw.images * 16, 0, 255).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BILINEAR)) for i in pixels]
    )
    order = np.random.default_rng(0).permutation(len(images))
    return [images[order][raw.target[order] == label][..., None] for label in range(CLASSES)]


def _gate(digits, real, seed):
    parts = [images[:real] for images in digits]
    view = _view(np.concatenate(parts), np.repeat(range(CLASSES), [len(part) for part in parts]))
    judge = train_judge(view, seed=seed, device="cpu", description="")
    held_out = np.concatenate([images[real : real + HELD_OUT] for images in digits])
    return Gate(view, CONFIG, judge=judge, held_out={"val": held_out[::2], "test": held_out[1::2]}, seed=seed)


@pytest.fixture(scope="module")
def gate(digits):
    return _gate(digits, REAL, 0)


@pytest.fixture(scope="module")
def parts(digits):
    """By class: real images, images of the test split, and unseen ones."""
    return [(own[:REAL], own[REAL : REAL + HELD_OUT], own[REAL + HELD_OUT :]) for own in digits]


@pytest.fixture
def quick(monkeypatch):
    """A judge of few steps: where it is not about how good it is."""
    monkeypatch.setattr("stages.learning.judge._STEPS", (40, 60))


def _jittered(images, sigma=6.0):
    noise = np.random.default_rng(1).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def _turned(images, degrees):
    return rotate(images, degrees, axes=(1, 2), reshape=False, order=3, mode="nearest")


CHANGES = {
    "as they are": lambda images: images,
    "brightened": lambda images: np.clip(images * 1.15, 0, 255).astype(np.uint8),
    "darkened": lambda images: (images * 0.8).astype(np.uint8),
    "noised": _jittered,
    "moved by a pixel": lambda images: np.roll(images, (1, -1), (1, 2)),
    "mirrored": lambda images: images[:, :, ::-1],
    "turned by 4 degrees": lambda images: _turned(images, 4),
    "turned by 8 degrees": lambda images: _turned(images, -8),
}


@LABELS
def test_unseen_real_images_pass(gate, parts, label):
    verdict = gate.judge(parts[label][2], label)
    assert verdict.failed == ()
    assert verdict.accepted.mean() > 0.65
    assert set(verdict.measures) == set(MEASURES)
    assert all(verdict.refused[check].mean() < 0.25 for check in CHECKS)


@pytest.mark.parametrize("seed", [1, 2])
def test_unseen_real_images_of_small_classes_pass(digits, quick, seed):
    shuffled = [np.random.default_rng(seed).permutation(own) for own in digits]
    gate = _gate(shuffled, 50, seed)
    for label in range(CLASSES):
        verdict = gate.judge(shuffled[label][80:], label)
        assert verdict.failed == ()
        assert verdict.accepted.mean() > 0.6


@LABELS
def test_noise_is_refused_as_unlike_the_class(gate, parts, label):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    own = np.repeat(parts[label][2], 2, axis=0)[:100]
    shuffled = np.stack([rng.permutation(image.ravel()).reshape(16, 16, 1) for image in own])
    for candidates in (noise, shuffled):
        verdict = gate.judge(candidates, label)
        assert verdict.failed[0] in ("agreement", "density")
        assert {"density", "coverage"} <= set(verdict.failed)
        assert verdict.refused["stray"].mean() > 0.95
        assert verdict.accepted.mean() < 0.02
        assert not verdict.refused["copy_of_train"].any()


@LABELS
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("change", ["as they are", "noised", "moved"])
def test_mode_collapse_is_refused_as_too_alike(gate, parts, label, count, change):
    candidates = parts[label][2][np.arange(100) % count]
    if change == "noised":
        candidates = _jittered(candidates)
    if change == "moved":
        shifts = np.random.default_rng(0).integers(-1, 2, (100, 2))
        candidates = np.stack(
            [np.roll(one, shift, (0, 1)) for one, shift in zip(candidates, shifts, strict=True)]
        )
    verdict = gate.judge(candidates, label)
    assert verdict.failed[0] == "diversity"
    assert verdict.measures["diversity"].value < 1.8 * count
    assert verdict.refused["repeat"].sum() > 85
    assert not verdict.refused["repeat"][0]


@LABELS
def test_one_colour_is_refused(gate, label):
    for value in (0, 255):
        verdict = gate.judge(np.full((50, 16, 16, 1), value, np.uint8), label)
        assert verdict.failed[0] == "diversity"
        assert not verdict.accepted.any()


@LABELS
@pytest.mark.parametrize("change", CHANGES)
def test_training_images_are_refused_as_copies(gate, parts, label, change):
    verdict = gate.judge(CHANGES[change](parts[label][0]), label)
    assert verdict.failed[0] == "copies"
    assert verdict.refused["copy_of_train"].mean() > 0.95
    assert verdict.refused["copy_of_held_out"].mean() < 0.2


@LABELS
@pytest.mark.parametrize("change", CHANGES)
def test_images_of_other_splits_are_refused_as_copies_of_them(gate, parts, label, change):
    verdict = gate.judge(CHANGES[change](parts[label][1]), label)
    assert verdict.failed[0] == "copies_of_held_out"
    assert verdict.refused["copy_of_held_out"].mean() > 0.95
    assert verdict.refused["copy_of_train"].mean() < 0.3


def test_copies_from_another_class_are_copies_too(gate, parts):
    # Of another class, that is far from all real images of this one.
    verdict = gate.judge(parts[1][1], 0)
    assert verdict.refused["copy_of_held_out"].mean() > 0.95


@LABELS
def test_swapped_classes_are_refused_as_not_recognised(gate, parts, label):
    verdict = gate.judge(parts[(label + 1) % CLASSES][2], label)
    assert verdict.failed[0] == "agreement"
    assert verdict.refused["agreement"].mean() > 0.95
    assert not verdict.refused["copy_of_train"].any()


def test_twins_among_real_images_do_not_hide_copies(digits, quick):
    # Every fifth image has a twin: as near as these come, noisy copies come too.
    own = [np.concatenate([images[:50], _jittered(images[:10])]) for images in digits]
    view = _view(np.concatenate(own), np.repeat(range(CLASSES), 60))
    names = np.array([f"{label}/{row % 50}" for label in range(CLASSES) for row in range(60)], object)
    judge = train_judge(view, groups=names, seed=0, device="cpu", description="")
    gate = Gate(view, CONFIG, judge=judge, groups=names, seed=0)
    for label in range(CLASSES):
        verdict = gate.judge(_jittered(digits[label][:50], 12.0), label)
        assert verdict.failed[0] == "copies"
        assert verdict.refused["copy_of_train"].mean() > 0.9
        assert gate.judge(digits[label][50:120], label).failed == ()


def test_a_class_of_one_group_has_its_copies_refused_too(digits, quick):
    view = _view(np.concatenate([images[:20] for images in digits]), np.repeat(range(CLASSES), 20))
    names = np.array(["all" if label == 0 else f"{row}" for row, label in enumerate(view.labels)], object)
    gate = Gate(
        view, CONFIG, judge=train_judge(view, seed=0, device="cpu", description=""), groups=names, seed=0
    )
    verdict = gate.judge(digits[0][:20], 0)
    assert verdict.refused["copy_of_train"].all()
    assert np.isfinite(verdict.nearness).all()


def test_a_small_class_that_nobody_confuses_does_not_stop_agreement(digits, quick):
    counts = [60, 60, 10]
    images = np.concatenate([own[:count] for own, count in zip(digits, counts, strict=False)])
    view = _view(images, np.repeat(range(3), counts), 3)
    gate = Gate(view, CONFIG, judge=train_judge(view, seed=0, device="cpu", description=""), seed=0)
    # Of 60 images of the class 48 are taken for it, and of the next class half.
    taken = np.repeat([0, 1, 0, 1, 2], [48, 12, 30, 30, 10])
    gate._probabilities = np.eye(3, dtype=np.float32)[taken]
    measure = gate.judge(digits[0][60:100], 0).measures["agreement"]
    assert (measure.real, measure.limit) == pytest.approx((0.8, 0.65))


def test_the_nearest_real_image_is_told(gate, parts):
    real = parts[2][0]
    verdict = gate.judge(real, 2)
    assert verdict.nearest.tolist() == list(range(REAL))
    assert not verdict.nearness.any()
    assert 0.5 < np.median(gate.judge(parts[2][2], 2).nearness) < 1.5


def test_nothing_to_judge(gate):
    verdict = gate.judge(np.zeros((0, 16, 16, 1), np.uint8), 0)
    assert len(verdict.accepted) == 0
    assert verdict.failed == ()


def test_few_candidates_are_judged_one_by_one(gate, parts):
    verdict = gate.judge(parts[0][2][:3], 0)
    assert len(verdict.accepted) == 3
    assert set(verdict.measures) == {"agreement", "copies", "copies_of_held_out"}


def test_the_same_seed_gives_the_same_verdict(gate, parts):
    one, two = (Gate(gate.real, CONFIG, judge=gate._judge, seed=0) for _ in range(2))
    first, second = one.judge(parts[0][2], 0), two.judge(parts[0][2], 0)
    assert second.measures == first.measures
    assert np.array_equal(second.accepted, first.accepted)


def test_without_other_splits_copies_of_them_are_not_measured(gate, parts):
    bare = Gate(gate.real, CONFIG, judge=gate._judge, seed=0)
    verdict = bare.judge(parts[0][1], 0)
    assert "copies_of_held_out" not in verdict.measures
    assert not verdict.refused["copy_of_held_out"].any()


def test_rare_and_empty_classes_stop_nobody_else(digits, quick):
    counts = [40, 1, 3, 0]
    own = [images[:count] for images, count in zip(digits, counts, strict=True)]
    view = _view(np.concatenate(own), np.repeat(range(CLASSES), counts))
    gate = Gate(view, CONFIG, judge=train_judge(view, seed=0, device="cpu", description=""), seed=0)
    assert gate.judge(digits[0][40:100], 0).failed == ()
    assert "density" not in gate.judge(digits[2][3:60], 2).measures
    for label in (1, 3):
        with pytest.raises(ValueError, match="two real images"):
            gate.judge(digits[label][1:9], label)


def test_two_classes_of_which_one_is_constant(digits, quick):
    rgb = np.repeat(digits[0][:40], 3, axis=3)
    view = _view(np.concatenate([rgb, np.full_like(rgb[:20], 9)]), np.repeat([0, 1], [40, 20]), 2)
    gate = Gate(view, CONFIG, judge=train_judge(view, seed=0, device="cpu", description=""), seed=0)
    assert gate.judge(np.repeat(digits[0][40:100], 3, axis=3), 0).failed == ()
    verdict = gate.judge(view.images[40:], 1)
    assert verdict.refused["copy_of_train"].all()
    assert np.isfinite(verdict.nearness).all()


def test_the_gate_knows_beforehand_what_it_can_check(digits, quick):
    gate = _gate(digits, REAL, 0)
    assert all(gate.can_check(label) for label in range(CLASSES))
    mixed = np.random.default_rng(0).permutation(np.concatenate([images[:REAL] for images in digits]))
    parts = np.array_split(mixed, CLASSES)
    gate = _gate(parts, REAL, 0)
    assert not any(gate.can_check(label) for label in range(CLASSES))
