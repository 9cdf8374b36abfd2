"""Whole copies of this repository for tests that run DVC for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent

# Every stage does its true work, on little.
TINY: dict[str, Any] = {
    "ingest.image_size": 8,
    "simulate.max_per_class": 40,
    "simulate.imbalance": 5,
    "detect_noise.folds": 2,
    "detect_noise.repeats": 1,
    "detect_noise.epochs": 2,
    "synthesize.min_real_per_class": 20,
    "synthesize.gan.steps": 10,
    "train.epochs": 3,
    "finetune.head_epochs": 1,
    "finetune.epochs": 1,
    "evaluate.bootstrap": 200,
}


def environment(**more: str) -> dict[str, str]:
    """The environment of a command in a clone: this Python first, nobody told, no server."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    base = {
        key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "PREFECT_"))
    }
    quiet = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return base | quiet | {"PATH": path, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | more


def run(place: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a clone; `dvc` and `python` are this environment's."""
    return subprocess.run(
        command, cwd=place, env=environment(**more), capture_output=True, text=True, check=False, timeout=1800
    )


def clone(place: Path, changes: Mapping[str, Any] = TINY) -> Path:
    """A git repository with this working tree's files, committed, and changed parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    for lock in ("dvc.lock", "data/raw/dvc.lock"):
        (place / lock).unlink(missing_ok=True)
    set_params(place, changes)
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "--all"], [*author, "commit", "-qm", "A clone to test in"]):
        subprocess.run(["git", *command], cwd=place, check=True, capture_output=True)
    return place


def set_params(place: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of a clone's params.yaml: `{"train.epochs": 2}`."""
    yaml = YAML()
    raw = yaml.load((place / "params.yaml").read_text("utf-8"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = raw
        for name in sections:
            section = section[name]
        section[last] = value
    with (place / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(raw, file)


def lock_of(place: Path) -> dict[str, Any]:
    """Both lock files as data: the order of outputs says nothing."""
    content = {}
    for name in ("dvc.lock", "data/raw/dvc.lock"):
        loaded = YAML(typ="safe").load((place / name).read_text("utf-8"))["stages"]
        content[name] = {
            stage: {
                **entry,
                **{
                    part: sorted(entry.get(part, []), key=lambda item: item["path"])
                    for part in ("deps", "outs")
                },
            }
            for stage, entry in loaded.items()
        }
    return content


def ran(output: str) -> list[str]:
    """The stages that `dvc repro` says it ran."""
    return [
        line.split("'")[1].split(":")[-1] for line in output.splitlines() if line.startswith("Running stage")
    ]
