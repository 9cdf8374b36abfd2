"""The stage train in several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_repo import change_parameter, environment

from stages.dataset.base import Dataset, write_dataset
from stages.dataset.files import new_folder


@pytest.fixture
def prepared(tiny_dataset: Dataset, workspace: Path) -> Path:
    """A workspace as ingest leaves it, with parameters for a training of a moment."""
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    text = (workspace / "params.yaml").read_text()
    lines = text.splitlines()
    start = lines.index("train:")
    head, tail = "\n".join(lines[:start]), "\n".join(lines[start:]) + "\n"
    head = head.replace("device: auto ", "device: cpu ")
    for before, after in [
        ("  epochs: 40 ", "  epochs: 1 "), ("  head_epochs: 5 ", "  head_epochs: 0 "),
        ("  epochs: 15 ", "  epochs: 1 "), ("optimiser: adamw ", "optimiser: sgd "),
        ("learning_rate: 0.005\n", "learning_rate: 0.0003\n"), ("precision: auto ", "precision: fp32 "),
    ]:  # fmt: skip
        assert tail.count(before) == 1, before
        tail = tail.replace(before, after)
    (workspace / "params.yaml").write_text(head + "\n" + tail)
    return workspace


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments, "--view", "raw"],
        cwd=folder, env=environment(), check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def test_two_devices_give_the_model_that_one_gives_and_one_of_them_speaks(prepared: Path):
    alone = train(prepared, "stages.train")
    assert alone.returncode == 0, alone.stderr
    first = load_file(prepared / "models/baseline/model.safetensors")
    change_parameter(prepared, "  devices: 1 ", "  devices: 2 ")
    both = train(prepared, "stages.train")
    assert both.returncode == 0, both.stderr
    assert both.stdout == alone.stdout
    # One progress bar; how often it is drawn again is a matter of time.
    assert both.stderr.count("0/2 [") == alone.stderr.count("0/2 [") == 1
    second = load_file(prepared / "models/baseline/model.safetensors")
    assert list(first) == list(second)
    assert max(abs(first[name].astype(float) - second[name]).max() for name in first) < 1e-4


def test_a_mistake_is_said_once_and_nothing_is_left(prepared: Path):
    change_parameter(prepared, "  devices: 1 ", "  devices: 2 ")
    (prepared / "data/ingested/samples.parquet").unlink()
    result = train(prepared, "stages.train")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("baseline: ")
    assert not (prepared / "models").exists()


def test_other_stages_are_not_for_torchrun(prepared: Path, monkeypatch, capsys):
    from stages.curate import main

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("stages.workflow.stage.end_with_parent", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "start it without torchrun" in capsys.readouterr().err
