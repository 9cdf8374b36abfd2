"""What the tests of the stage `ingest` share: a workspace to configure, sources to make, results to read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages import ingest
from stages.dataset.base import INGESTED, TRUTH, read_dataset

REPORT = Path("reports/ingest")


def change_params(**changes: Any) -> None:
    """Change keys of the current folder's params.yaml: `ingest__columns__label="species"`."""
    path, yaml = Path("params.yaml"), YAML(typ="safe")
    raw = yaml.load(path.read_text("utf-8"))
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = raw
        for section in sections:
            place = place[section]
        place[name] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(raw, file)


def noise(seed: int, size: tuple[int, int] = (12, 12)) -> np.ndarray:
    """Pixels that resemble no others, height×width×3."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def picture(path: str | Path, seed: int, size: tuple[int, int] = (12, 12), **options: Any) -> Path:
    """An image file of `noise`."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, size)).save(target, **options)
    return target


def class_folders(root: str = "mine", classes: str = "ab", count: int = 10) -> None:
    """`count` images in a folder for each letter of `classes`."""
    for index, name in enumerate(classes):
        for i in range(count):
            picture(f"{root}/{name}/{i}.png", 100 * index + i)


def run() -> None:
    """The stage, as by hand."""
    ingest.main([])


def fails(capsys: pytest.CaptureFixture[str]) -> str:
    """Run; expect exit status 2 and one line, which is returned, with nothing half-written."""
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ingest: ")]
    (line,) = [line for line in said if "img/s" not in line]
    left = [*Path("data").rglob("*"), *Path("reports").rglob("*")]
    assert not [path for path in left if ".partial" in path.name]
    return line


def outputs() -> dict[str, str]:
    """A hash of every output file."""
    paths = [TRUTH, *INGESTED.iterdir(), *REPORT.iterdir()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def samples() -> pd.DataFrame:
    """The samples as they are on disk."""
    return read_dataset(INGESTED).samples


def split_of() -> dict[str, str]:
    """The split of each sample by its id."""
    return dict(samples()[["sample_id", "split"]].itertuples(index=False))


def quarantine() -> dict[str, str]:
    """The reason for each file in quarantine."""
    table = pd.read_parquet(REPORT / "quarantine.parquet")
    return dict(zip(table["path"], table["reason"], strict=True))


def summary() -> dict[str, Any]:
    """What the report counts."""
    return json.loads((REPORT / "summary.json").read_text("utf-8"))
