"""CIFAR-10-LT as published, its arms, and that runs fit their budget and go on."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cifar_images import Cifar
from benchmarks.gpu import long_tail as benchmark
from benchmarks.gpu.long_tail import Settings, _next, _recipe, main, report
from benchmarks.gpu.series import Budget
from benchmarks.gpu.tail_arms import ARMS, changed, published_tail, second_plan
from benchmarks.measuring import ROOT
from stages.errors import WinnowError
from stages.learning.losses import make_objective
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.workflow.params import load_params

ABSENT = ["mlflow", "dvc", "prefect", "cleanlab", "albumentations", "imblearn", "cv2", "simplejpeg"]
ABSENT += ["cleanvision", "matplotlib"]
BARE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
from benchmarks.gpu.long_tail import main
main(sys.argv[1:])
"""
TINY = ["--device", "cpu", "--jobs", "1", "--largest", "20", "--ratio", "4", "--epochs", "1"]
TINY += ["--model", "mlp", "--batch-size", "30"]
TAIL = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.fixture
def tiny(cifar_folder: Path, workspace: Path) -> list[str]:
    """Arguments for a run of a second, in a workspace of its own."""
    return [*TINY, "--data", str(cifar_folder)]


@pytest.fixture(scope="module")
def cifar() -> Cifar:
    """As many images as CIFAR-10 has, of one pixel, in which their numbers stand."""
    labels = np.repeat(np.arange(10), 5000)
    numbers = np.arange(50_000)
    images = np.stack([numbers >> 8 & 255, numbers & 255, labels], 1).astype(np.uint8)[:, None, None]
    test = np.repeat(np.arange(10), 4)
    return Cifar(images, labels, np.zeros((40, 1, 1, 3), np.uint8), test, [f"class {n}" for n in range(10)])


def results() -> list[dict]:
    return [json.loads(line) for line in benchmark.RESULTS.read_text("utf-8").splitlines()]


def test_it_needs_no_more_than_a_gpu_machine_has(tiny: list[str]):
    arms = ["--arms", "cross_entropy", "default_finetuned", "--seeds", "0"]
    command = [sys.executable, "-c", BARE, *tiny, *arms]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    assert any(line.startswith("MAMix-DRW") for line in lines)
    rows = results()
    assert [row["arm"] for row in rows] == ["cross_entropy", "default_finetuned"]
    assert rows[0]["images"] == sum(int(20 * 4 ** (-i / 9)) for i in range(10))
    assert rows[0]["accuracy"] == pytest.approx(np.mean(rows[0]["recalls"]))


def test_the_tail_is_the_published_one(cifar: Cifar):
    train, test = published_tail(cifar, largest=5000, ratio=100, seed=0)
    assert train.class_counts.tolist() == TAIL
    assert len(train) == 12406
    assert len(test) == 40
    assert (train.images[:, 0, 0, 2] == train.labels).all()
    others, _ = published_tail(cifar, largest=5000, ratio=100, seed=1)
    few = train.labels == 9
    assert not np.array_equal(train.images[few], others.images[few])


def test_settings_are_chosen_on_other_images(cifar: Cifar):
    train, test = published_tail(cifar, largest=5000, ratio=100, seed=0, development=True)
    assert train.class_counts.tolist() == [4900, *TAIL[1:]]
    assert test.class_counts.tolist() == [100] * 10
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


@pytest.mark.parametrize(("largest", "ratio"), [(5001, 100.0), (10, 100.0)])
def test_a_tail_that_there_is_not(cifar: Cifar, largest: int, ratio: float):
    with pytest.raises(WinnowError, match="training images of class"):
        published_tail(cifar, largest=largest, ratio=ratio, seed=0)


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_of_the_catalogue(cifar: Cifar, name: str):
    recipe = changed(_recipe(Settings(), 12406), name)
    assert recipe.steps_per_epoch == 97
    assert recipe.epochs == (400 if name.endswith("_long") else 200)
    train, _ = published_tail(cifar, largest=50, ratio=10, seed=0)
    assert torch.isfinite(
        make_objective(recipe, train)(torch.zeros(2, 10), torch.tensor([0, 9]), torch.arange(2))
    ).all()


def test_the_default_is_that_of_params_yaml():
    params = load_params(ROOT / "params.yaml").train
    recipe = changed(_recipe(Settings(), 12406), "default")
    assert (recipe.loss, recipe.label_smoothing) == (params.loss, params.label_smoothing)
    assert (recipe.optimiser, recipe.batch_size, recipe.l2) == ("sgd", 128, 0.0002)
    assert changed(_recipe(Settings(), 12406), "cross_entropy").loss == "cross_entropy"


def test_the_head_by_itself_has_even_classes_and_plain_images():
    recipe = changed(_recipe(Settings(), 12406), "mixup_then_head")
    assert recipe.mixup == 1.0
    model = build_model(ModelSpec("resnet20", ["a", "b"], (32, 32, 3), [0.5] * 3, [0.5] * 3), seed=0)
    stage = ARMS["mixup_then_head"].then
    assert stage is not None
    (phase,) = second_plan(model, recipe, stage)
    assert phase.recipe.backbone_lr_factor == 0
    assert (phase.recipe.epochs, phase.recipe.mixup, phase.recipe.sampling) == (10, 0.0, "balanced")


def test_a_short_run_takes_the_place_of_a_long_one_that_would_not_end_in_time():
    budget = Budget(1)
    todo = [("mixing_deferred_long", 0), ("cross_entropy", 0), ("default", 0)]
    assert _next(list(todo), budget) == todo[0]
    budget.took(40)
    left = list(todo)
    assert _next(left, budget) == ("cross_entropy", 0)
    assert left == [todo[0], todo[2]]
    budget.took(70)
    assert _next(left, budget) is None
    assert len(left) == 2


def test_several_at_once_each_kept_and_none_twice(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(benchmark, "_processes", ThreadPoolExecutor)
    arguments = [*tiny, "--jobs", "2", "--arms", "cross_entropy", "mixup_deferred"]
    main([*arguments, "--seeds", "0"])
    main([*arguments, "--seeds", "0", "1"])
    assert sorted((row["arm"], row["seed"]) for row in results()) == [
        (arm, seed) for arm in ("cross_entropy", "mixup_deferred") for seed in (0, 1)
    ]
    assert {row["jobs"] for row in results()} == {2}
    main([*arguments, "--seeds", "0", "--l2", "0.001", "--minutes", "0"])
    assert "2 of 2 runs did not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "0"], "one process at least"),
        (["--largest", "31"], "31 training images of class 0 are asked for, and there are 30"),
        (["--device", "cuda"], "no NVIDIA GPU"),
        (["--data", "nowhere"], "no cifar10.tar.gz"),
        (["--model", "nonsense"], "there is no network of this name"),
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
        main([*tiny, *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_report_parts_the_classes():
    row = {
        **{"arm": "default", "seed": 0, "accuracy": 0.5, "images": 12406, "seconds": 60, "jobs": 3},
        **{"peak_bytes": 2**30, "recalls": [0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.2, 0.3, 0.2, 0.1]},
    }
    text = report([row, row | {"accuracy": 0.6, "jobs": 1}], Settings())
    (line,) = [line for line in text.splitlines() if line.startswith("default ")]
    assert line.split()[:6] == ["default", "2", "55.00", "(50.00", "to", "60.00)"]
    assert "80.00 (80.00 to 80.00)" in line
    assert "20.00 (20.00 to 20.00)" in line
    assert line.endswith("1, 3")
    assert "training images: 12406" in text
