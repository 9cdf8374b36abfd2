"""The loader's measurement: what it needs, what it prints, that it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.loader import RESULTS, main
from benchmarks.gpu.turns import Rounds
from benchmarks.measuring import ROOT
from stages.errors import WinnowError

ABSENT = ["mlflow", "dvc", "prefect", "cleanlab", "albumentations", "imblearn", "cv2", "simplejpeg"]
ABSENT += ["cleanvision"]
BARE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
from benchmarks.gpu.loader import main
main(sys.argv[1:])
"""
STAND_IN = """
import torch
hyp = {}
def main(run):
    pass
class CifarLoader:
    def __init__(self, path, train, batch_size, aug, gpu):
        assert aug == {"flip": True, "translate": 2}
        data = torch.load(f"{path}/train.pt", map_location=torch.device(gpu))
        self.images = (data["images"].half() / 255).permute(0, 3, 1, 2)
        self.labels, self.size = data["labels"], batch_size
    def __iter__(self):
        for index in torch.randperm(len(self.images)).split(self.size):
            if len(index) == self.size:
                yield self.images[index], self.labels[index]
"""


@pytest.fixture
def tiny(cifar_folder: Path, workspace: Path) -> list[str]:
    """Arguments for a run of a second, in a workspace of its own."""
    (workspace / "airbench94.py").write_text(STAND_IN, "utf-8")
    size = ["--rounds", "2", "--passes", "1", "--batch-size", "64"]
    return ["--device", "cpu", "--data", str(cifar_folder), "--peer", "airbench94.py", *size]


def results() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]


def test_it_needs_no_more_than_a_gpu_machine_has(tiny: list[str]):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", BARE, *tiny], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    assert "4 batches of 64" in ended.stdout  # 300 images, and 44 left out
    assert "pixels float16" in ended.stdout
    assert lines[-1].startswith("ours / CifarLoader")
    speeds = [row["speed"] for row in results()]
    assert [sorted(speed) for speed in speeds] == [["ours", "peer"]] * 2
    assert all(rate > 0 for speed in speeds for rate in speed.values())


def test_rounds_that_are_there_are_not_run_again(tiny: list[str], capsys: pytest.CaptureFixture[str]):
    main([*tiny, "--rounds", "1"])
    first = results()
    main([*tiny, "--rounds", "3"])
    assert results()[:1] == first
    assert len(results()) == 3
    capsys.readouterr()
    main([*tiny, "--rounds", "3"])
    assert len(results()) == 3
    assert "3 rounds" in capsys.readouterr().out
    main([*tiny, "--rounds", "1", "--batch-size", "32"])
    assert len(results()) == 4  # another setting's round does not count


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--peer", "nowhere.py"], "cifar10-airbench"),
        (["--data", "nowhere"], "cifar10.tar.gz"),
        (["--batch-size", "301"], "lower --batch-size"),
        (["--passes", "0"], "--passes"),
        (["--rounds", "0"], "--rounds"),
        (["--minutes", "0"], "raise --minutes"),
        pytest.param(
            ["--device", "cuda"],
            "no NVIDIA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    tiny: list[str], changes: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        main([*tiny, *changes])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_no_round_begins_that_would_not_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rounds = Rounds(tmp_path / "rounds.jsonl", {}, wanted=9, minutes=1)
    taken = 0
    while rounds.may_go_on:
        rounds.begin()
        now[0] += 25
        rounds.end({"ours": 2.0, "peer": 1.0})
        taken += 1
    assert taken == 2  # the third would end after 75 seconds
    assert rounds.left == 7
    assert rounds.ratios("ours", "peer") == [2.0, 2.0]


def test_a_line_that_is_no_round_is_named(tmp_path: Path):
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"settings": {}}\n{"speed"', "utf-8")
    with pytest.raises(WinnowError, match=":2 is no result"):
        Rounds(path, {}, wanted=1, minutes=1)
