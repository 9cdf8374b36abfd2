"""The benchmark of transfer: its data, equal steps, its table, and that it goes on where it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import transfer as benchmark
from benchmarks.cifar_images import Cifar
from benchmarks.transfer import ARMS, Settings, finished, run, table
from benchmarks.transfer_data import Halves, halves
from stages.errors import WinnowError

SETTINGS = Settings(
    pretraining_images=100,
    pretraining_epochs=1,
    images=6,
    epochs=4,
    head_epochs=1,
    batch_size=10,
    device="cpu",
)


@pytest.fixture(scope="module")
def cifar() -> Cifar:
    """10 classes of 220 training and 3 test images, each image unlike all others."""
    rng = np.random.default_rng(0)
    labels, test_labels = np.repeat(np.arange(10), 220), np.repeat(np.arange(10), 3)
    images, test_images = (rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (2200, 30))
    return Cifar(images, labels, test_images, test_labels, [f"class {number}" for number in range(10)])


@pytest.fixture(scope="module")
def parts(cifar: Cifar) -> Halves:
    return halves(cifar, known_images=100, new_images=6, seed=0)


def test_classes_are_divided_by_the_seed_and_no_image_is_in_two_parts(cifar: Cifar):
    first = halves(cifar, known_images=100, new_images=6, seed=1, development=True)
    assert not set(first.known.classes) & set(first.new.classes)
    assert first.new.classes == first.test.classes
    assert first.known.class_counts.tolist() == [20] * 5
    assert first.new.class_counts.tolist() == [6] * 5
    assert first.test.class_counts.tolist() == [200] * 5
    ids = [set(view.sample_ids) for view in (first.known, first.new, first.test)]
    assert len(ids[0] | ids[1] | ids[2]) == sum(map(len, ids))
    other = halves(cifar, known_images=100, new_images=6, seed=2)
    assert other.known.classes != first.known.classes


def test_what_is_known_does_not_depend_on_what_is_new(cifar: Cifar, parts: Halves):
    other = halves(cifar, known_images=100, new_images=10, seed=0, development=True)
    np.testing.assert_array_equal(other.known.images, parts.known.images)


def test_it_is_scored_on_the_test_images_of_the_new_classes(cifar: Cifar, parts: Halves):
    own = [label for label, name in enumerate(cifar.classes) if name in parts.new.classes]
    np.testing.assert_array_equal(parts.test.images, cifar.test_images[np.isin(cifar.test_labels, own)])
    assert parts.test.class_counts.tolist() == [3] * 5


def test_more_images_than_there_are_is_an_error(cifar: Cifar):
    with pytest.raises(WinnowError, match="there are only 220"):
        halves(cifar, known_images=100, new_images=30, seed=0)


def test_every_arm_has_the_same_epochs_and_pretraining_is_done_once(
    parts: Halves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmark, "_PRETRAINED", tmp_path)
    source = benchmark.pretrained(SETTINGS, parts.known, 0)
    before = (source / "model.safetensors").stat().st_mtime_ns
    assert benchmark.pretrained(replace(SETTINGS, epochs=9), parts.known, 0) == source
    assert (source / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    rows = [run(SETTINGS, arm, parts, source, 0) for arm in ARMS]
    assert {row["epochs"] for row in rows} == {SETTINGS.epochs}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_results_of_other_settings_are_not_taken_for_these(tmp_path: Path):
    from dataclasses import asdict

    rows = [
        {"arm": "full", "seed": 0, "settings": asdict(settings), "accuracy": 0.5}
        for settings in (SETTINGS, replace(SETTINGS, epochs=5))
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finished(path, SETTINGS) == rows[:1]
    path.write_text("no line of ours\n")
    with pytest.raises(WinnowError, match=r"results\.jsonl:1 is no result"):
        finished(path, SETTINGS)


def test_differences_are_paired_over_the_seeds_that_both_have():
    accuracies = {"scratch": [0.5, 0.6, 0.7], "full": [0.61, 0.69, 0.80]}
    rows = [
        {"arm": arm, "seed": seed, "accuracy": value}
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    lines = table([*rows, {"arm": "full", "seed": 3, "accuracy": 0.0}], ARMS, [0, 1, 2]).splitlines()
    assert lines[2] == "| scratch | 3 | 0.600 |  |"
    assert lines[3] == "| full | 3 | 0.700 | +0.100 (+0.075 to +0.125) |"
    assert len(lines) == 4
