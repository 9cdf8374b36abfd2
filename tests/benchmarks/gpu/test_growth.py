"""How costs grow: each cell by itself, foreseen from smaller ones, and no cell spoils the others."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import growth, growth_costs
from benchmarks.gpu.growth_costs import COSTS, Job, embeddings, probabilities, tables, thumbnails
from benchmarks.measuring import ROOT

FORBIDDEN = ("mlflow", "dvc", "prefect", "cleanlab", "albumentations", "imblearn", "cv2", "simplejpeg")
ON_HOST = [name for name, cost in COSTS.items() if not cost.on_device and cost.needs is None]


def test_all_by_default_costs_work_without_the_heavy_libraries(tmp_path):
    """In the processes that measure, too: there they cannot be imported at all."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in (*FORBIDDEN, "cleanvision"):
        (hidden / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    environment = os.environ | {"PYTHONPATH": f"{hidden}:{ROOT}"}
    # Of those that compute with torch one: the others take as long to start again.
    few = [*ON_HOST, "predict, small_cnn"]
    command = [sys.executable, "-m", "benchmarks.gpu.growth", "--device", "cpu", "--sizes", "120"]
    command += ["--out", "rows.jsonl", "--costs", *few]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "CPU" in lines[0] and f"torch {torch.__version__}" in lines[0]
    assert "note:" not in run.stdout
    assert [line[:20].strip() for line in lines[-len(few) :]] == few
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    assert [row["key"]["cost"] for row in rows] == few
    assert all(row["seconds"] > 0 and row["wall"] >= row["prepared"] for row in rows)


@pytest.mark.parametrize("name", ["epoch, small_cnn", "epoch, resnet18"])
def test_an_epoch_passes_over_all_images_once(name, tmp_path, monkeypatch):
    from stages.learning import loop

    recipes = []
    monkeypatch.setattr(loop, "fit", lambda model, data, recipe, **_: recipes.append((recipe, len(data))))
    COSTS[name].prepare(Job(130, 32, "cpu", tmp_path))()
    recipe, images = recipes[-1]
    assert (recipe.epochs, recipe.steps_per_epoch, recipe.batch_size, images) == (1, 5, 32, 130)


def test_the_training_view_is_of_what_is_in_training_and_not_dropped(tmp_path):
    view = COSTS["training view"].prepare(Job(200, 32, "cpu", tmp_path))()
    assert 0 < len(view) < 200
    assert view.images.shape == (len(view), 32, 32, 3)


def test_the_training_view_holds_its_images_once(tmp_path):
    read = COSTS["training view"].prepare(Job(4000, 32, "cpu", tmp_path))
    tracemalloc.start()
    try:
        view = read()
        assert tracemalloc.get_traced_memory()[1] < 1.5 * view.images.nbytes
    finally:
        tracemalloc.stop()


def test_the_search_finds_the_copies_that_were_planted():
    pairs = COSTS["near-duplicates"].prepare(Job(500, 32, "cpu", Path()))()
    planted = set(range(0, 500, 50))
    assert planted <= set(pairs.first.tolist())
    assert len(pairs) <= 2 * len(planted)


def test_the_rule_finds_most_of_the_wrong_labels():
    labels, probs = probabilities(2000)
    found = COSTS["noise rule"].prepare(Job(2000, 32, "cpu", Path()))()
    wrong = labels != np.arange(2000) % 10
    np.testing.assert_allclose(probs.sum(1), 1)
    assert (found & wrong).sum() > 0.7 * wrong.sum()


def test_synthetic_inputs_have_the_shapes_that_are_said():
    samples, issues = tables(300)
    assert samples["sample_id"].is_unique
    assert list(samples["sample_id"]) == list(issues["sample_id"])
    assert embeddings(30).shape == (30, 128)
    assert thumbnails(120).shape == (120, 16, 16)
    assert thumbnails(120).std((1, 2)).min() > 20
    images = growth_costs._images(2 * growth_costs._BLOCK + 7)
    np.testing.assert_array_equal(images[-7:], images[:7])


WATCHED = """
import time
from benchmarks.gpu.growth import host_peak

before = b"1" * 2**25
with host_peak() as peak:
    more = b"1" * 2**26
    end = time.monotonic() + 300
    while peak.bytes < 0.99 * 2**26 and time.monotonic() < end:
        time.sleep(0.01)
    del more
    kept = b"1" * 2**25
print(peak.bytes)
"""


def test_memory_of_the_work_is_watched_without_what_was_there_before():
    """In a process of its own: what this one frees meanwhile would count against it."""
    run = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 0.99 * 2**26 < int(run.stdout) < 2**26 + 2**25


def row(seconds, prepared=1.0, start=2.0):
    return {
        "seconds": seconds,
        "prepared": prepared,
        "wall": seconds + prepared + start,
        "host_bytes": 5e6,
        "device_bytes": 7e6,
    }


def test_growth_and_what_is_foreseen_from_it():
    rows = {("a", 100): row(1.0), ("a", 1000): row(100.0), ("b", 100): row(1.0)}
    assert growth.growth(rows, "a", [100, 1000]) == pytest.approx(2)
    assert growth.growth(rows, "b", [100, 1000]) is None
    assert growth.foresee(rows, "c", 1000) == 0
    assert growth.foresee(rows, "a", 10_000) == pytest.approx(2 + 10 + 100 * 100)
    assert growth.foresee(rows, "b", 1000) == pytest.approx(2 + 10 + 10**growth._USUAL)
    lines = growth.table(rows, ["a", "b"], [100, 1000], 512).splitlines()
    assert lines[-2].split() == ["a", "1.000", "5", "7", "100.000", "5", "7", "2.00"]
    assert lines[-1].split() == ["b", "1.000", "5", "7", "–", "–", "–", "–"]


def measured(monkeypatch, answer):
    """Runs of `measure` with `answer` in place of processes; what they were asked for."""
    asked = []

    def in_own_process(cost, images, *_):
        asked.append((cost, images))
        return answer(cost, images)

    monkeypatch.setattr(growth, "in_own_process", in_own_process)
    return asked


def test_small_sizes_come_first_and_what_does_not_fit_is_left_out(tmp_path, monkeypatch):
    asked = measured(monkeypatch, lambda cost, images: row(30.0 if cost == "slow" else 0.1))
    out, facts = tmp_path / "rows.jsonl", {"batch_size": 8}
    rows, notes = growth.measure(["slow", "quick"], [100, 1000], facts, "cpu", out, time.monotonic() + 60)
    assert asked == [("slow", 100), ("quick", 100), ("quick", 1000)]
    assert set(rows) == set(asked)
    assert len(notes) == 1
    assert notes[0].startswith("slow, 1,000: left out, some 4")
    again = growth.measure(["quick"], [100, 1000], facts, "cpu", out, time.monotonic())
    assert set(again[0]) == {("quick", 100), ("quick", 1000)}
    assert len(asked) == 3
    growth.measure(["quick"], [100], {"batch_size": 9}, "cpu", out, time.monotonic() + 60)
    assert len(asked) == 4


def test_a_cost_that_fails_is_noted_and_not_kept(tmp_path, monkeypatch):
    def answer(cost, images):
        return {"failed": "failed: MemoryError"} if cost == "large" else row(1.0)

    measured(monkeypatch, answer)
    out = tmp_path / "rows.jsonl"
    rows, notes = growth.measure(["large", "small"], [100], {"batch_size": 8}, "cpu", out, math.inf)
    assert set(rows) == {("small", 100)}
    assert notes == ["large, 100: failed: MemoryError"]
    assert len(out.read_text("utf-8").splitlines()) == 1


def test_errors_and_time_limits_of_a_process_come_back():
    assert "KeyError" in growth.in_own_process("no such cost", 100, 8, "cpu", 900)["failed"]
    before = set(multiprocessing.active_children())
    late = growth.in_own_process("near-duplicates", 10**7, 8, "cpu", 0)
    assert late["failed"] == "ended after 0 s: --minutes were over"
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu", "--sizes", "10"], "10 images are too few"),
        (["--device", "cpu", "--costs", "all issues"], "needs cleanlab, which is not installed"),
        ([], "there is no NVIDIA GPU here"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(arguments, said, workspace, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(SystemExit) as stopped:
        growth.main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
