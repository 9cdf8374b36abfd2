"""The training loop against the peer: with a stand-in for it, on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import training_loop as benchmark
from benchmarks.gpu.airbench_recipe import BATCH, STEPS, recipe
from stages.learning.optimisers import share_of_peak

ROOT = Path(__file__).parents[3]
PEER = """
import torch
CifarLoader, hyp, seen = None, {}, []
def print_training_details(variables, is_final_entry):
    raise AssertionError("the peer's table is not printed")
def main(run):
    data = torch.load("cifar10/train.pt", weights_only=True)
    seen.append(run)
    print_training_details({"total_time_seconds": 1.5 + len(seen)}, is_final_entry=True)
    return 0.25
"""
TINY = ["--device", "cpu", "--steps", "14", "--batch-size", "32"]
HEAVY = (
    "mlflow",
    "dvc",
    "prefect",
    "cleanlab",
    "albumentations",
    "imblearn",
    "cv2",
    "simplejpeg",
    "cleanvision",
)
WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys({names!r})); "
    "from benchmarks.gpu.training_loop import main; main(sys.argv[1:])"
)


@pytest.fixture
def peer(workspace: Path) -> Path:
    path = workspace / "airbench94.py"
    path.write_text(PEER)
    return path


def test_both_sides_take_turns_and_each_round_is_kept(cifar_folder: Path, peer: Path, capsys):
    arguments = [
        *TINY,
        "--data",
        str(cifar_folder),
        "--peer",
        str(peer),
        "--rounds-only",
        "--out",
        "out.jsonl",
    ]
    benchmark.main([*arguments, "--runs", "1"])
    assert "1 runs of each side, seeds 0 to 0, 14 steps of 32 images" in capsys.readouterr().out
    benchmark.main([*arguments, "--runs", "3"])
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert [row["seconds"]["peer"] for row in rows] == [3.5, 3.5, 4.5]  # a run to warm up in each process
    assert all(row["accuracy"]["peer"] == 0.25 for row in rows)
    ratios = [row["seconds"]["ours"] / row["seconds"]["peer"] for row in rows]
    said = capsys.readouterr().out
    assert f"median {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" in said


def test_without_a_peer_or_heavy_libraries_ours_is_measured_alone(cifar_folder: Path, workspace: Path):
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(names=HEAVY), *TINY, "--data", cifar_folder, "--runs", "1"],
        cwd=workspace, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "peer" not in ran.stdout.partition("\n")[2].replace("ours - peer", "")
    assert all(f"  {what} " in ran.stdout for what in ("scores", "checkpoints", "compiled"))


def test_without_a_gpu_or_a_peer_s_script_it_says_so(cifar_folder: Path, workspace: Path, capsys):
    for arguments, said in [
        (["--data", str(cifar_folder)], "there is no NVIDIA GPU here"),
        ([*TINY, "--data", str(workspace)], "cifar10.tar.gz"),
        ([*TINY, "--data", str(cifar_folder), "--peer", "nowhere.py"], "there is no nowhere.py: git clone"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            benchmark.main(arguments)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_the_recipe_takes_the_published_steps():
    """Jordan's rate and decay, summed up as Nesterov's momentum does: arXiv 2404.00498, listing 4."""
    how = recipe()
    assert how.epochs * how.steps_per_epoch == STEPS == int(np.ceil(50_000 // BATCH * 9.9))
    summed = 1 + 1 / (1 - how.momentum)
    assert how.learning_rate * summed == pytest.approx(11.5)
    assert how.learning_rate * how.l2 * summed == pytest.approx(0.0153)
    rates = [share_of_peak(how.schedule, step, STEPS, how.warm_up) for step in range(STEPS)]
    assert int(np.argmax(rates)) == int(0.23 * STEPS)
