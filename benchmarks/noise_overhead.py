"""What the stage `detect_noise` costs beside the bare training of its folds.

    python -m benchmarks.noise_overhead
    python -m benchmarks.noise_overhead --only photos --epochs 6

Seconds of the whole stage (reading, digests, checkpoints, prediction, rules, all checks, pictures) as a
multiple of those spent in the training loop within the same run, with the same settings. A process of its
own runs the stage twice: the first time counts from the start of Python, with all imports of libraries;
the second is without. On the demo's digits with the shipped parameters, and on 5,000 photos of 32×32
pixels (the first 500 training images of each class of CIFAR-10, else made ones), mirrored, with one repeat
in place of three: the shares of what is done once, and with fewer epochs also of prediction, are larger so.
CPU seconds hardly depend on what else the machine does; wall seconds do. Eight minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.measuring import ROOT, bench_data, workspace
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

_PLACE = Path(".winnow/bench/noise_overhead")
_PER_CLASS = 500
_SIDE = 32  # pixels
_SETS = ("digits", "photos")
_CHILD = "import sys; from benchmarks.noise_overhead import time_stage; time_stage(sys.argv[1])"

Seconds = tuple[float, float]  # CPU, wall


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=_SETS, help="one set of images; default: both")
    parser.add_argument("--epochs", type=int, default=12, help="on photos; default 12")
    options = parser.parse_args(argv)
    with clean_exit("noise_overhead"):
        print(f"{'':10}{'training':>14}{'stage ×':>22}{'with imports ×':>22}")
        print(f"{'':10}{'CPU s':>7}{'wall s':>7}{'CPU':>15}{'wall':>7}{'CPU':>15}{'wall':>7}")
        for name in [options.only] if options.only else _SETS:
            print_row(name, measure(name, options.epochs))


def measure(name: str, epochs: int) -> list[dict[str, Seconds]]:
    """Seconds of the training and of the stage, of the first run with all imports and of the second."""
    with workspace(_PLACE / name, {}) as place:
        (place / "data/raw").mkdir()
        (place / "data/raw/dvc.yaml").write_bytes((ROOT / "data/raw/dvc.yaml").read_bytes())
        if name == "digits":
            _change(place, {"device": "cpu"}, {"simulate": {"enabled": True}})
            _run(place, "-m", "stages.fetch", "digits")
        else:
            _photos(place / "photos")
            ingest = {"source": "photos", "image_size": _SIDE, "color": "rgb"}
            folds = {"repeats": 1, "epochs": epochs, "batch_size": 64, "shift": 2, "flip": True}
            _change(place, {"device": "cpu"}, {"ingest": ingest, "detect_noise": folds})
        _run(place, "-m", "stages.ingest")
        _run(place, "-c", _CHILD, "seconds.json")
        rows: list[dict[str, Seconds]] = json.loads((place / "seconds.json").read_text("utf-8"))
        return rows


def time_stage(path: str) -> None:
    """Run the stage twice in the current folder; what `measure` returns goes to a file, as JSON."""
    from stages import detect_noise
    from stages.learning.loop import fit

    start: Seconds = (0.0, psutil.Process().create_time())
    spent: list[Seconds] = []

    def timed(*arguments: Any, **choices: Any) -> Any:
        before = _now()
        result = fit(*arguments, **choices)
        spent.append(_since(before))
        return result

    rows: list[dict[str, Seconds]] = []
    for _ in range(2):
        with mock.patch("stages.noise.folds.fit", timed):
            detect_noise.main([])
        cpu, wall = zip(*spent, strict=True)
        rows.append({"training": (sum(cpu), sum(wall)), "stage": _since(start)})
        spent.clear()
        start = _now()
    Path(path).write_text(json.dumps(rows), "utf-8")


def print_row(name: str, rows: list[dict[str, Seconds]]) -> None:
    """Of the second run the training and the ratios, of the first the ratios."""
    imports, bare = (
        [stage / training for stage, training in zip(row["stage"], row["training"], strict=True)]
        for row in rows
    )
    cpu, wall = rows[1]["training"]
    print(
        f"{name:10}{cpu:>7.1f}{wall:>7.1f}{bare[0]:>15.3f}{bare[1]:>7.3f}{imports[0]:>15.3f}{imports[1]:>7.3f}",
        flush=True,
    )


def _now() -> Seconds:
    """With the children that have ended."""
    return sum(os.times()[:4]), time.time()


def _since(start: Seconds) -> Seconds:
    cpu, wall = _now()
    return cpu - start[0], wall - start[1]


def _change(place: Path, top: dict[str, Any], sections: dict[str, dict[str, Any]]) -> None:
    """Change the workspace's params.yaml."""
    yaml = YAML()
    params = yaml.load(place / "params.yaml")
    params.update(top)
    for section, changes in sections.items():
        params[section].update(changes)
    yaml.dump(params, place / "params.yaml")


def _run(place: Path, *arguments: str) -> None:
    environment = os.environ | {"WINNOW_TRACKING": "off", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise WinnowError(f"{' '.join(arguments[:2])} failed: {result.stderr.splitlines()[-1:]}")


def _photos(folder: Path) -> None:
    """A folder a class with image files."""
    data = bench_data()
    if data is not None and (data / "cifar10.tar.gz").is_file():
        with tarfile.open(data / "cifar10.tar.gz") as tar:
            for member in tar:
                parts = member.name.split("/")  # train/<class>/NNNN.jpg, in a folder of the archive
                content = tar.extractfile(member) if "train" in parts[:-2] else None
                if content is not None and int(Path(parts[-1]).stem) < _PER_CLASS:
                    (folder / parts[-2]).mkdir(parents=True, exist_ok=True)
                    (folder / parts[-2] / parts[-1]).write_bytes(content.read())
        return
    print("noise_overhead: made images: no cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data")
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        colour = rng.integers(0, 150, 3)
        for number in range(_PER_CLASS):
            pixels = (colour + rng.integers(0, 106, (_SIDE, _SIDE, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number:04d}.png")


if __name__ == "__main__":
    main()
