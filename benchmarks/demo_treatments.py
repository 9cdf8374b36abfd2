"""The demo with one treatment at a time left out or exchanged: what does each buy?

    python -m benchmarks.demo_treatments

For each seed (of planting and of training) the pipeline runs as delivered, then again with one change
of params.yaml in the same workspace, where DVC runs only what follows from the change. All models of a
seed have the same planted data, the same steps and the same test images, so differences are paired.
Finished runs are kept in .winnow/bench/ and not run again while code and parameters are the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML
from scipy import stats

from benchmarks.demo_seeds import copy_working_tree, identity, repro
from stages.workflow.stage import clean_exit

_PLACE = Path(".winnow/bench/demo_treatments")
_MODELS = ("train", "finetune")
_METRICS = ("balanced_accuracy", "worst_class_recall")
_AS_DELIVERED = "as delivered"
# By name: what is changed in params.yaml. What the file says already is not run again.
VARIANTS: dict[str, dict[str, Any]] = {
    _AS_DELIVERED: {},
    "without augmented": {"train.use_augmented": False},
    "without synthetic": {"train.use_synthetic": False},
    "without either": {"train.use_augmented": False, "train.use_synthetic": False},
    "synthetic: gan": {"synthesize.method": "gan"},
    "synthetic: random": {"synthesize.method": "random"},
    "synthetic: smote": {"synthesize.method": "smote"},
    "balanced softmax": {"train.loss": "balanced_softmax", "train.class_weighting": "none"},
    "square-root weights": {"train.loss": "cross_entropy", "train.class_weighting": "sqrt"},
    "neither in the loss": {"train.loss": "cross_entropy", "train.class_weighting": "none"},
    "without curation": {
        "curate.label_error.action": "keep",
        "curate.label_error.otherwise": "keep",
    },
}
Scores = dict[str, dict[str, float]]


def main(argv: list[str] | None = None) -> None:
    """Run every variant under every seed, and print differences with intervals."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_treatments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args(argv)
    with clean_exit("demo_treatments"):
        names = list(dict.fromkeys([_AS_DELIVERED, *options.variants]))
        results = {seed: _run_seed(seed, names) for seed in options.seeds}
        print(report(results))


def report(results: Mapping[int, Mapping[str, Scores]]) -> str:
    """A Markdown table: each variant's mean over the seeds, and its paired difference as delivered."""
    head = [f"{model}: {metric.replace('_', ' ')}" for model in _MODELS for metric in _METRICS]
    lines = [f"| {len(results)} seeds | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    names = [name for name in VARIANTS if all(name in runs for runs in results.values())]
    for name in names:
        cells = []
        for model in _MODELS:
            for metric in _METRICS:
                own, usual = (
                    np.array([runs[which][model][metric] for runs in results.values()])
                    for which in (name, _AS_DELIVERED)
                )
                cells.append(f"{own.mean():.3f}" + ("" if name == _AS_DELIVERED else _paired(own - usual)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _paired(differences: NDArray[np.float64]) -> str:
    """The mean difference with its 95 % interval by Student's t over the seeds."""
    mean, count = differences.mean(), len(differences)
    if count < 2:
        return f" ({mean:+.3f})"
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return f" ({mean:+.3f}, {mean - half:+.3f} to {mean + half:+.3f})"


def _run_seed(seed: int, names: Sequence[str]) -> dict[str, Scores]:
    """The scores of each variant with one seed, from earlier runs where there are some."""
    shipped = YAML(typ="safe").load(Path("params.yaml").read_text("utf-8"))
    shipped["seed"] = shipped["simulate"]["seed"] = seed
    wanted = {name: changed(shipped, VARIANTS[name]) for name in names}
    kept = {name: _PLACE / f"{identity(params)}.json" for name, params in wanted.items()}
    workspace = _PLACE / f"seed-{seed}"
    scores: dict[str, Scores] = {}
    for name, params in wanted.items():
        if not kept[name].is_file():
            if not workspace.is_dir():
                copy_working_tree(workspace)
            YAML(typ="safe").dump(params, workspace / "params.yaml")
            print(f"seed {seed}, {name}: dvc repro in {workspace}", file=sys.stderr, flush=True)
            repro(workspace)
            metrics = json.loads((workspace / "reports/evaluate/metrics.json").read_text("utf-8"))
            partial = kept[name].with_suffix(".partial")
            partial.write_text(json.dumps(_scores(metrics)), "utf-8")
            partial.rename(kept[name])
        scores[name] = json.loads(kept[name].read_text("utf-8"))
    shutil.rmtree(workspace, ignore_errors=True)
    return scores


def changed(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the parameters with some keys (`train.loss`) set anew.

    Raises
    ------
    KeyError
        For a key that is not there.
    """
    copy: dict[str, Any] = json.loads(json.dumps(params))
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = copy
        for name in sections:
            section = section[name]
        if last not in section:
            raise KeyError(key)
        section[last] = value
    return copy


def _scores(metrics: Mapping[str, Any]) -> Scores:
    return {
        model: {metric: metrics["models"][model][metric]["value"] for metric in _METRICS} for model in _MODELS
    }


if __name__ == "__main__":
    main()
