"""The demo over several seeds: does the noise detector find, do the treatments help, how sure is that?

    python -m benchmarks.demo_seeds                    five seeds of `simulate`: other planted problems
    python -m benchmarks.demo_seeds --vary training    five seeds of training on the same planted data
    python -m benchmarks.demo_seeds --vary both        both at once: what a new user may expect

Each seed is a whole `dvc repro` in a copy of this working tree. Finished seeds are kept in
.winnow/bench/ and not run again as long as code and parameters are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

_PLACE = Path(".winnow/bench/demo_seeds")
_MODELS = ("baseline", "train", "finetune")
_RESAMPLES = 10_000
_KEYS = {"simulate": ("simulate.seed",), "training": ("seed",), "both": ("simulate.seed", "seed")}
_CODE = ("stages/*.py", "stages/**/*.py", "dvc.yaml", "data/raw/dvc.yaml", "data/*.csv")


def main(argv: list[str] | None = None) -> None:
    """Run the demo under several seeds and print figures with intervals."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vary", choices=tuple(_KEYS), default="simulate", help="whose seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    options = parser.parse_args(argv)
    with clean_exit("demo_seeds"):
        keys = _KEYS[options.vary]
        runs = [_finished_run(keys, seed) for seed in options.seeds]
        print(report(" = ".join(keys), options.seeds, runs))


def report(title: str, seeds: Sequence[int], runs: Sequence[dict[str, Any]]) -> str:
    """The table of the seeds and the figures over all of them."""
    columns = [f"{name} bal.acc." for name in _MODELS] + ["gain", "noise P", "noise R", "noise F1", "seconds"]
    lines = [f"{title:>20} " + " ".join(f"{column:>18}" for column in columns)]
    for seed, run in zip(seeds, runs, strict=True):
        scores = [run["models"][name]["balanced_accuracy"]["value"] for name in _MODELS]
        noise = [run["noise"][name] for name in ("precision", "recall", "f1")]
        values = [*scores, scores[2] - scores[0], *noise]
        lines.append(
            f"{seed:>20} " + " ".join(f"{value:>18.3f}" for value in values) + f" {run['seconds']:>18.0f}"
        )
    f1 = np.array([run["noise"]["f1"] for run in runs])
    lines.append(f"\nnoise detector, mean F1 over {len(runs)} seeds: {f1.mean():.3f} (sd {_sd(f1):.3f})")
    for name in ("train", "finetune"):
        gains = np.array([_gain(run, name) for run in runs])
        low, high = pooled_interval([run["predictions"] for run in runs], name)
        lines.append(
            f"{name} − baseline, balanced accuracy: {gains.mean():+.3f}, 95 % interval {low:+.3f} to "
            f"{high:+.3f} over seeds and test images (sd between seeds {_sd(gains):.3f})"
        )
    return "\n".join(lines)


def pooled_interval(predictions: Sequence[dict[str, list[str]]], model: str) -> tuple[float, float]:
    """95 % interval of the mean paired gain in balanced accuracy over seeds.

    Two-level bootstrap: seeds are drawn with replacement, and within each the test images of every
    class, the same images for both models.
    """
    rng = np.random.default_rng(0)
    draws = np.stack([_gain_draws(table, model, rng) for table in predictions])
    chosen = rng.integers(0, len(draws), (len(draws), _RESAMPLES))
    means = draws[chosen, np.arange(_RESAMPLES)].mean(0)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _gain_draws(table: dict[str, list[str]], model: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap draws of one seed's paired gain in balanced accuracy."""
    label = np.array(table["label"])
    better = (np.array(table[model]) == label).astype(float) - (np.array(table["baseline"]) == label)
    by_class = []
    for name in np.unique(label):
        difference = better[label == name]
        drawn = rng.integers(0, len(difference), (_RESAMPLES, len(difference)))
        by_class.append(difference[drawn].mean(1))
    return np.mean(by_class, axis=0)


def _gain(run: dict[str, Any], model: str) -> float:
    models = run["models"]
    return float(
        models[model]["balanced_accuracy"]["value"] - models["baseline"]["balanced_accuracy"]["value"]
    )


def _sd(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _finished_run(keys: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of one seed: from an earlier run of the same code and parameters, or run now."""
    params = YAML(typ="safe").load(Path("params.yaml").read_text("utf-8"))
    for key in keys:
        section, _, name = key.rpartition(".")
        (params[section] if section else params)[name] = seed
    kept = _PLACE / f"{identity(params)}.json"
    if kept.is_file():
        done: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return done
    workspace = _PLACE / f"{'-'.join(keys)}-{seed}"
    shutil.rmtree(workspace, ignore_errors=True)
    copy_working_tree(workspace)
    YAML(typ="safe").dump(params, workspace / "params.yaml")
    print(f"{' = '.join(keys)} = {seed}: dvc repro in {workspace}", file=sys.stderr, flush=True)
    start = time.monotonic()
    repro(workspace)
    content = json.loads((workspace / "reports/evaluate/metrics.json").read_text("utf-8"))
    if not content["noise"]:
        raise WinnowError("nothing was planted: this measurement needs simulate.enabled and a catalogue set")
    predictions = pd.read_csv(workspace / "reports/evaluate/predictions.csv", dtype=str)
    content["predictions"] = predictions[["label", *_MODELS]].to_dict("list")
    content["seconds"] = time.monotonic() - start
    kept.with_suffix(".partial").write_text(json.dumps(content), "utf-8")
    kept.with_suffix(".partial").rename(kept)
    shutil.rmtree(workspace)
    return content


def identity(params: dict[str, Any]) -> str:
    """16 hex over the parameters and all that the pipeline's result depends on."""
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for pattern in _CODE:
        for path in sorted(Path().glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def copy_working_tree(target: Path) -> None:
    """The files that git knows or would take, as they are now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if Path(name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target / name)
    # Nothing of the last run: every seed starts from nothing.
    for lock in ("dvc.lock", "data/raw/dvc.lock"):
        (target / lock).unlink(missing_ok=True)
    (target / ".dvc/config.local").write_text("[core]\n    no_scm = true\n", "utf-8")


def repro(workspace: Path) -> None:
    """`dvc repro` there, without tracking; its words go to `repro.log`. A WinnowError where it fails."""
    log = workspace / "repro.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = os.environ | {"WINNOW_TRACKING": "off", "PATH": path}
    with log.open("w") as output:
        result = subprocess.run(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=workspace,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if result.returncode != 0:
        raise WinnowError(f"dvc repro failed in {workspace}: see {log}")


if __name__ == "__main__":
    main()
