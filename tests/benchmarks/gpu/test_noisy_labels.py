"""The chain from people's labels to a score: it runs on a bare machine, goes on, and says what it did."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.gpu import noisy_labels
from benchmarks.gpu.noisy_chain import (
    Chain,
    Settings,
    detection,
    finetuning_plan,
    training_recipe,
    wrong_left,
)
from benchmarks.gpu.noisy_labels import main, report
from benchmarks.measuring import ROOT
from benchmarks.remedies_data import Task, _no_conflicts, _no_reviews, _samples, curate, view_of
from stages.curate import read_policy
from stages.curation.ledger import build_ledger
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.noise.issues import find_issues
from stages.workflow.params import load_params

ABSENT = ["mlflow", "dvc", "prefect", "cleanlab", "albumentations", "imblearn", "cv2", "simplejpeg"]
ABSENT += ["cleanvision", "matplotlib"]
BARE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
from benchmarks.gpu.noisy_labels import main
main(sys.argv[1:])
"""
TINY = ["--device", "cpu", "--fold-models", "mlp", "--folds", "2", "--repeats", "2", "--fold-epochs", "1"]
TINY += ["--model", "mlp", "--epochs", "2", "--finetune-epochs", "1", "--batch-size", "50"]
WORST = ["--labels", "worst", "--seeds", "0"]


@pytest.fixture
def tiny(cifar_folder: Path, workspace: Path) -> list[str]:
    """Arguments for a run of a second, in a workspace of its own."""
    return [*TINY, "--data", str(cifar_folder)]


def results() -> list[dict]:
    lines = noisy_labels.RESULTS.read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_it_needs_no_more_than_a_gpu_machine_has(tiny: list[str]):
    command = [sys.executable, "-c", BARE, *tiny, *WORST, "--arms", "chain", "baseline"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "CPU" in lines[0]
    assert f"torch {torch.__version__}" in lines[0]
    assert any(line.startswith("ELR+") for line in lines)
    chain, baseline = results()
    assert chain["images"] == baseline["images"] == 300
    assert 0.1 < chain["wrong"] < 0.3
    assert chain["images_left"] == 300 - chain["actions"].get("drop", 0)
    assert set(chain["seconds"]) == {"folds", "rule", "training", "finetuning", "all"}
    assert 0 <= chain["accuracy"] <= 1
    assert not chain["continued"]


def test_what_is_there_is_not_run_again_and_other_settings_are_another_result(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
):
    main([*tiny, *WORST, "--arms", "baseline"])
    first = capsys.readouterr().out
    main([*tiny, *WORST, "--arms", "baseline"])
    again = capsys.readouterr().out
    assert "accuracy" in first.splitlines()[1]
    assert first.partition("settings:")[2] == again.partition("settings:")[2]
    assert len(results()) == 1
    main([*tiny, *WORST, "--arms", "baseline", "--learning-rate", "0.1"])
    assert [row["settings"]["learning_rate"] for row in results()] == [0.2, 0.1]


def test_a_killed_run_goes_on_and_reaches_the_same(tiny: list[str], monkeypatch: pytest.MonkeyPatch):
    main([*tiny, *WORST])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "_finetune", killed)
        with pytest.raises(SystemExit):
            main([*tiny, *WORST, "--out", "second.jsonl"])
    assert not Path("second.jsonl").exists()
    main([*tiny, *WORST, "--out", "second.jsonl"])
    (whole,) = results()
    continued = json.loads(Path("second.jsonl").read_text("utf-8"))
    assert continued["continued"]
    for name in ("accuracy", "accuracy_trained", "accuracy_of_folds", "wrong_left"):
        assert continued[name] == whole[name]
    assert not list(Path(".winnow/bench/gpu/noisy_labels").iterdir())


def test_without_time_nothing_starts_and_it_says_so(tiny: list[str], capsys: pytest.CaptureFixture[str]):
    main([*tiny, "--labels", "aggregate", "random1", "--seeds", "0", "1", "--minutes", "0"])
    assert "4 of 4 runs did not fit" in capsys.readouterr().out
    assert not noisy_labels.RESULTS.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--development"], "less the development images"),
        (["--loss", "nonsense", "--arms", "chain"], "unknown loss 'nonsense'"),
        (["--images", "3000"], "--images 3000"),
        (["--device", "cuda"], "no NVIDIA GPU"),
        (["--data", "nowhere"], "no cifar10n_labels.csv.gz"),
    ],
)
def test_what_users_can_mend_is_one_line(
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main([*tiny, *WORST, *arguments])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "noisy_labels:" in line]
    assert said in line


def judged_task() -> tuple[Task, np.ndarray]:
    """300 samples of which some are labelled wrongly, and probabilities that mostly know better."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(10), 30)
    given = np.where(rng.random(300) < 0.3, rng.integers(10, size=300), true)
    logits = rng.normal(0, 1, (300, 10))
    logits[np.arange(300), true] += 5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    images = rng.integers(0, 256, (300, 32, 32, 3), np.uint8)
    train = view_of(images, given, [f"class {label}" for label in range(10)])
    return Task(train, true, train), probs.astype(np.float32)


def test_curation_is_that_of_all_checks_together():
    task, probs = judged_task()
    found = curate(task.train, probs, seed=0)
    samples, params = _samples(task.train), load_params(ROOT / "params.yaml")
    issues = find_issues(
        samples,
        probs,
        np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32),
        task.train.classes,
        rule="auto",
        neighbors=10,
        images=task.train.images,
    ).issues
    assert issues["is_outlier_issue"].any()
    ledger, _ = build_ledger(samples, issues, read_policy(params.curate), _no_reviews(), _no_conflicts())
    stays = ledger[ledger["action"] != "drop"]
    assert found.curated.sample_ids.tolist() == stays["sample_id"].tolist()
    assert [found.curated.classes[label] for label in found.curated.labels] == stays["label"].tolist()
    assert found.actions == ledger["action"].value_counts().to_dict()
    assert found.actions["relabel"] > 0
    assert found.actions["drop"] > 0
    assert wrong_left(task, found.curated) < (task.train.labels != task.true).mean() / 3


def test_figures_of_detection():
    flagged = np.array([True, True, False, False, True])
    wrong = np.array([True, False, True, False, True])
    assert detection(flagged, wrong) == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert detection(flagged & False, wrong) == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize(
    ("loss", "kept"), [("balanced_softmax", "cross_entropy"), ("early_learning", "early_learning")]
)
def test_finetuning_is_the_stage_s(loss: str, kept: str):
    settings = Settings(loss=loss, head_epochs=2, finetune_epochs=3)
    model = build_model(ModelSpec("resnet20", ["a", "b"], (32, 32, 3), [0.5] * 3, [0.5] * 3), seed=0)
    head, whole = finetuning_plan(model, settings, training_recipe(settings, 1000))
    assert (head.recipe.epochs, whole.recipe.epochs) == (2, 3)
    assert head.recipe.backbone_lr_factor == 0
    assert {phase.recipe.loss for phase in (head, whole)} == {kept}
    assert {phase.recipe.sampling for phase in (head, whole)} == {"balanced"}
    assert whole.recipe.steps_per_epoch == 4  # of 256


def test_co_teaching_forgets_as_much_as_is_suspected():
    task, probs = judged_task()
    found = curate(task.train, probs, seed=0)
    recipe = training_recipe(Settings(loss="co_teaching"), 300, found)
    assert recipe.loss_options.forget_rate == found.flagged.mean()


def test_the_report_is_over_seeds_and_leaves_out_seconds_of_part_of_a_run():
    row = {
        **{"labels": "worst", "arm": "chain", "continued": False, "wrong": 0.4, "wrong_left": 0.05},
        **{"precision": 0.9, "recall": 0.8, "f1": 0.85, "images_left": 40000, "peak_bytes": 2**31},
        **{"accuracy_of_folds": 0.8, "accuracy_trained": 0.9, "accuracy": 0.91},
        "seconds": {"folds": 100, "rule": 1, "training": 200, "finetuning": 20, "all": 321},
    }
    other = row | {"accuracy": 0.93, "continued": True, "seconds": dict.fromkeys(row["seconds"], 7)}
    plain = {"labels": "worst", "arm": "baseline", "accuracy": 0.777}
    text = report([row, other, plain], replace(Settings(), epochs=3))
    accuracy, _, seconds = [line for line in text.splitlines() if line.startswith("worst")]
    assert accuracy.split()[-6:] == ["92.00", "(91.00", "to", "93.00)", "77.70", "1"]
    assert seconds.split()[:6] == ["worst", "100.0", "1.0", "200.0", "20.0", "321.0"]
    assert "aggregate" not in text.partition("the field")[0]
    assert "77.70" in report([plain], Settings())
    assert "epochs 3" in text


def test_samples_are_a_table_of_the_base():
    task, _ = judged_task()
    table = _samples(task.train)
    assert isinstance(table, pd.DataFrame)
    assert (table["label"].to_numpy() == np.array(task.train.classes)[task.train.labels]).all()
    assert table["sample_id"].is_unique
