"""The loop against the reference: what it needs, that all sides train the same, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.gpu import reference_loop
from benchmarks.gpu.reference_loop import Files, ReferenceLoop, make_loader, usable_workers
from benchmarks.gpu.resnet18 import RESULTS, main
from benchmarks.measuring import ROOT
from stages.learning.models import Classifier, build_model
from stages.learning.networks.layers import ModelSpec

ABSENT = ["mlflow", "dvc", "prefect", "cleanlab", "albumentations", "imblearn", "cv2", "simplejpeg"]
ABSENT += ["cleanvision"]
BARE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
from benchmarks.gpu.resnet18 import main
main(sys.argv[1:])
"""
SIDES = ["ours", "reference", "reference_amp", "reference_small", "loader", "steps", "steps_amp"]
CPU = torch.device("cpu")


@pytest.fixture
def tiny(cifar_folder: Path, workspace: Path) -> list[str]:
    """Arguments for a run of seconds, in a workspace of its own."""
    size = ["--rounds", "1", "--images", "40", "--batch-size", "16", "--workers", "0"]
    return ["--device", "cpu", "--data", str(cifar_folder), "--model", "small_cnn", *size]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Thirty images of three classes of one grey each: 0, 100 and 200."""
    from PIL import Image

    for label in range(3):
        (tmp_path / str(label)).mkdir()
        for number in range(10):
            image = np.full((32, 32, 3), 100 * label, np.uint8)
            Image.fromarray(image).save(tmp_path / str(label) / f"{number}.png")
    return Files(tmp_path, 32, [0.5] * 3, [0.25] * 3)


def model(architecture: str = "small_cnn") -> Classifier:
    spec = ModelSpec(architecture, ["a", "b", "c"], (32, 32, 3), [0.5] * 3, [0.25] * 3)
    return build_model(spec, seed=0)


def results() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]


def test_it_needs_no_more_than_a_gpu_machine_has(tiny: list[str]):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = ["--workers", "1", "--rounds", "2"]
    ended = subprocess.run(
        [sys.executable, "-c", BARE, *tiny, *workers],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    assert lines[-1].startswith("ours / reference")
    assert [list(row["speed"]) for row in results()] == [SIDES] * 2
    assert all(row["start_up_seconds"] > 0 for row in results())


def test_a_second_run_goes_on_and_a_third_prints(tiny: list[str], capsys: pytest.CaptureFixture[str]):
    main(tiny)
    main([*tiny, "--rounds", "2"])
    assert len(results()) == 2
    before = capsys.readouterr().out.splitlines()
    main([*tiny, "--rounds", "2"])
    assert len(results()) == 2
    again = capsys.readouterr().out.splitlines()[1:]  # after the machine's line
    assert len(again) > len(SIDES)
    assert again == before[-len(again) :]


def test_images_are_of_all_classes_in_equal_shares(tiny: list[str]):
    main(tiny)
    files = (RESULTS.parent / "resnet18" / "40" / "images").rglob("*.png")
    assert set(Counter(path.parent.name for path in files).values()) == {4}


def test_the_reference_learns_from_files_in_the_same_network(files: Files):
    network = model()
    start = [weight.detach().clone() for weight in network.parameters()]
    # All images in one batch: the loss of a few at the script's high rate rises as often as it falls.
    loader = make_loader(files, 30, 0, CPU)
    loop = ReferenceLoop(network, loader, CPU, amp=False)
    assert loop() == 30
    first = loop.loss
    for _ in range(9):
        loop()
    assert loop.loss < first / 2
    changed = [not torch.equal(*pair) for pair in zip(start, network.parameters(), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("amp", [False, True])
def test_it_is_left_as_it_was_found(files: Files, amp: bool):
    before = torch.backends.cudnn.benchmark
    batch = next(iter(make_loader(files, 6, 0, CPU)))
    seen = []
    network = model()
    network.head.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    ReferenceLoop(network, [batch], CPU, amp=amp)()
    assert seen == [torch.bfloat16 if amp else torch.float32]
    assert torch.backends.cudnn.benchmark == before


def test_batches_are_normalised_and_labelled(files: Files):
    pixels, labels = next(iter(make_loader(files, 30, 0, CPU)))
    assert pixels.shape == (30, 3, 32, 32)
    assert sorted(labels.tolist()) == sorted([0, 1, 2] * 10)
    # crops of padded images: the middle is the image's in each of them
    expected = (100 * labels / 255 - 0.5) / 0.25
    torch.testing.assert_close(pixels[:, 0, 16, 16], expected.float())


def test_its_network_has_the_stem_for_small_images():
    first = next(part for part in model("resnet18").modules() if isinstance(part, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    assert not any(isinstance(part, nn.MaxPool2d) for part in model("resnet18").modules())


@pytest.mark.parametrize(("free", "workers"), [(10**12, 4), (2 * 2 * 12288 * 64 * 3, 3), (0, 1)])
def test_workers_are_as_many_as_there_is_room_for(
    free: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Usage:
        pass

    Usage.free = free
    monkeypatch.setattr(reference_loop, "_SHARED", tmp_path)
    monkeypatch.setattr(reference_loop.shutil, "disk_usage", lambda _: Usage)
    monkeypatch.setattr(reference_loop.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert usable_workers(batch_size=64, side=32) == workers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--data", "nowhere"], "cifar10.tar.gz"),
        (["--batch-size", "41"], "--batch-size"),
        (["--images", "301"], "lower --images"),
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
