"""Figures of a GAN's quality are worth as much as the parts that they compare are apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import gan_figures, gan_quality
from benchmarks.gan_quality import DEFAULTS, RESULTS, deal, main, table
from stages.dataset.base import View
from stages.errors import WinnowError

TINY = ["--set", "digits", "--threads", "1", "--steps", "3", "--width", "8", "--batch-size", "8"]
TINY += ["--images", "12", "--judge-images", "12", "--held-out", "12"]


class PixelJudge:
    """In the place of a trained one: features are mean pixels, a class is known by its brightness."""

    models = (None, None)

    def embed(self, images, k):
        return images.reshape(len(images), -1)[:, k::7].astype(np.float32)

    def of_new(self, images):
        means = images.reshape(len(images), -1).mean(1)
        return -np.abs(means[:, None] - np.array([60.0, 120.0, 180.0]))


def shades(seed, count=40):
    """Images of three classes, each of another brightness."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    bright = 60 * (labels + 1)[:, None, None, None] + rng.normal(0, 12, (len(labels), 8, 8, 1))
    names = np.array([str(row) for row in range(len(labels))], object)
    images = bright.clip(0, 255).astype(np.uint8)
    return View(images, labels, np.ones(len(labels), np.float32), names, ["dark", "mid", "bright"])


def test_parts_share_no_image_and_have_as_many_of_each_class():
    every = gan_quality._digits()
    parts = deal(every, DEFAULTS["digits"])
    rows = [image.tobytes() for part in vars(parts).values() for image in part.images]
    # scikit-learn's digits hold no image twice
    assert len(set(rows)) == len(rows) == 10 * (70 + 34 + 35 + 35)
    assert set(parts.train.class_counts) == {70}
    assert set(parts.reference.class_counts) == set(parts.other.class_counts) == {35}
    again = deal(every, DEFAULTS["digits"])
    np.testing.assert_array_equal(parts.other.images, again.other.images)


def test_too_many_images_asked_for_is_an_error_of_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*TINY, "--images", "1000"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "lower --images" in error


def test_unseen_real_images_are_near_and_all_else_is_far():
    reference, other = shades(0), shades(1)
    space = gan_figures.Space(PixelJudge(), reference)
    real = space.figures(other.images, other.labels)
    noise = np.random.default_rng(0).integers(0, 256, other.images.shape, dtype=np.uint8)
    far = space.figures(noise, other.labels)
    collapsed = space.figures(gan_figures.mean_images(other)[other.labels], other.labels)
    nearest = space.nearest_other_class(other.images, other.labels)
    assert np.abs(real["kid"]).max() < min(far["kid"]) / 20
    assert (np.array(real["kid"]) < collapsed["kid"]).all()
    assert max(real["kid"]) < min(nearest["kid"]) / 20
    assert min(real["density"]) > 0.7
    assert max(far["density"]) < 0.1
    assert min(real["coverage"]) > 0.85
    assert max(collapsed["coverage"]) < min(real["coverage"])
    assert real["recognised"] == [1.0, 1.0, 1.0]
    assert nearest["recognised"] == [0.0, 0.0, 0.0]


def test_the_nearest_other_class_is_the_nearest_by_kid():
    reference, other = shades(0), shades(1)
    space = gan_figures.Space(PixelJudge(), reference)
    nearest = space.nearest_other_class(other.images, other.labels)["kid"]
    as_dark = [space.figures(other.images, (other.labels - by) % 3)["kid"][0] for by in (1, 2)]
    assert nearest[0] == min(as_dark)
    assert as_dark[0] < as_dark[1]


def test_runs_once_and_tells_the_same_again(tmp_path, monkeypatch, capsys):
    from stages.learning import judge
    from stages.synthesis import gan_training as gan

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge, "_STEPS", (2, 4))
    main([*TINY, "--grid", "grids"])
    first = capsys.readouterr().out
    assert "digits: 12 images a class, 3 steps of 8, width 8, on cpu" in first
    assert (tmp_path / "grids/digits.png").read_bytes().startswith(b"\x89PNG")
    (line,) = RESULTS.read_text("utf-8").splitlines()
    figures = json.loads(line)["figures"]
    assert list(figures) == ["generated", "held-out", "other class", "mean image", "noise"]
    assert all(len(values) == 10 for by in figures.values() for values in by.values())
    assert not list((tmp_path / ".winnow/bench/gan_quality").glob("*"))

    def refuse(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(gan, "train_gan", refuse)
    monkeypatch.setattr(judge, "train_judge", refuse)
    main([*TINY, "--grid", "grids"])
    assert capsys.readouterr().out == first
    with pytest.raises(AssertionError, match="trained again"):
        main([*TINY, "--seed", "1"])


def test_a_line_that_is_no_result_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.jsonl").write_text("{", "utf-8")
    with pytest.raises(SystemExit):
        main([*TINY, "--out", "out.jsonl"])
    assert "out.jsonl:1 is no result" in capsys.readouterr().err


def test_without_cifar10_it_is_skipped(tmp_path, capsys):
    main(["--set", "cifar10", "--data", str(tmp_path)])
    assert "cifar10 skipped" in capsys.readouterr().out


def test_the_table_has_a_line_a_class_and_one_a_comparison():
    values = {name: [0.25, 0.75] for name in gan_figures.MEASURES}
    row = {
        "settings": vars(DEFAULTS["digits"]),
        "classes": ["a", "b"],
        "figures": {"generated": values, "held-out": values, "noise": values},
        "seconds": {"gan": 3.0},
    }
    lines = [line.split() for line in table(row).splitlines()]
    assert lines[2] == ["a", *["0.250"] * 8]
    assert lines[-1] == ["noise", *["0.500"] * 4]


def test_a_class_too_small_for_the_parts():
    with pytest.raises(WinnowError, match="digits has 40 images in its smallest class, and 174"):
        deal(shades(0), DEFAULTS["digits"])
