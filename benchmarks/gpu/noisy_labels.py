"""Labels that people gave, found out, curated and trained on: the whole chain on a GPU.

    python -m benchmarks.gpu.noisy_labels
    python -m benchmarks.gpu.noisy_labels --labels worst --seeds 0 1 2
    python -m benchmarks.gpu.noisy_labels --arms baseline
    python -m benchmarks.gpu.noisy_labels --development --loss early_learning --mixup 0 --cutmix 0

CIFAR-10N's labels (Wei et al., arXiv 2110.12088; `aggregate` 9 %, `random1` 17 %, `worst` 40 % wrong) of all
50,000 training images; no image is held out, and the weights of the last step are kept. The arm `chain`:
cross-validation in folds, the rule and the policies of params.yaml, training on what these leave, fine-tuning
on the same; `baseline`: plain cross-entropy on the given labels, the same network, for as many steps as
training and fine-tuning together. Scored on the 10,000 test images, whose labels are clean. True labels of
training images are looked at for figures alone, and for --development, by which settings are to be chosen.
Neighbours and pixels are not looked at (cleanlab and cleanvision do that, and the default policies keep what
they find), so their seconds are not in here.

On an H100 a chain is expected to take 3 to 7 minutes: folds 11, training and fine-tuning 28 PFLOP, at 100 to
250 TFLOP/s in bf16 with batch normalisation between. So one or two fit into the default --minutes 9: give
each set of labels a command. A run is not started where the slowest so far would not end in time; each
result is a line in the file of --out, and a run that was killed goes on with the next fold or epoch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.machine import ARCHIVE, PEOPLE, data_file, describe, make_parser, open_device
from benchmarks.gpu.noisy_chain import Chain, Settings, settings_by_default
from benchmarks.gpu.series import Budget, add_settings, as_key, given_settings, keep, spread
from benchmarks.remedies_data import LABELS, read_task
from benchmarks.results import Row, read_results
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    import torch

    from stages.learning.names import Device

RESULTS = Path(".winnow/bench/gpu/noisy_labels.jsonl")
_PLACE = Path(".winnow/bench/gpu/noisy_labels")
ARMS = ("chain", "baseline")
# Test accuracy in percent.
_FIELD = {
    "cross-entropy": (87.8, 85.0, 77.7),
    "Co-teaching+": (90.6, 89.7, 83.3),
    "ELR+": (94.8, 94.4, 91.1),
    "DivideMix": (95.0, 95.2, 92.6),
    "ProMix": (97.7, 97.4, 96.3),
}
_SOURCE = "Xiao et al., ProMix, arXiv 2207.10276"
_PARTS = ("folds", "rule", "training", "finetuning", "all")


@dataclass(frozen=True)
class Plan:
    """What results follow from beside labels, arm and seed, and where it is computed."""

    data: Path
    settings: Settings
    device: Device
    target: torch.device

    @property
    def key(self) -> Row:
        """What its results are found again by."""
        return as_key(machine=describe(self.target), **asdict(self.settings))


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet and fits, and print the tables."""
    options = _parser().parse_args(argv)
    with clean_exit("noisy_labels"):
        budget = Budget(options.minutes)
        device, target = open_device(options)
        data_file(options, PEOPLE)
        folder = data_file(options, ARCHIVE).parent
        settings = Settings(**given_settings(options, settings_by_default()))
        plan = Plan(folder, settings, device, target)
        wanted = [
            (labels, arm, seed) for seed in options.seeds for arm in options.arms for labels in options.labels
        ]
        left = measure(plan, wanted, options.out, budget)
        print("\n" + report(finished(options.out, plan), settings))
        if left:
            print(f"\n{left} of {len(wanted)} runs did not fit into --minutes: the same command goes on")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("noisy_labels", __doc__)
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=list(LABELS), help="default: all")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["chain"], help="default: chain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole command; default 9")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS}")
    add_settings(parser, settings_by_default())
    return parser


def measure(plan: Plan, wanted: Sequence[tuple[str, str, int]], out: Path, budget: Budget) -> int:
    """Run each (labels, arm, seed) that is not in `out`; how many the budget did not allow."""
    rows = finished(out, plan)
    for row in rows:
        if not row["continued"]:
            budget.took(row["seconds"]["all"])
    done = {(row["labels"], row["arm"], row["seed"]) for row in rows}
    todo = [run for run in wanted if run not in done]
    for number, (labels, arm, seed) in enumerate(todo):
        if not budget.allows():
            return len(todo) - number
        row = run_one(plan, labels, arm, seed)
        if not row["continued"]:
            budget.took(row["seconds"]["all"])
        keep(out, row)
    return 0


def run_one(plan: Plan, labels: str, arm: str, seed: int) -> Row:
    """One result."""
    settings = plan.settings
    task = read_task(
        plan.data, labels, images=settings.images or None, seed=seed, development=settings.development
    )
    digest = hashlib.sha256(json.dumps(plan.key).encode()).hexdigest()[:8]
    chain = Chain(
        task,
        settings,
        seed,
        plan.device,
        plan.target,
        _PLACE / f"{labels}-{arm}-{seed}-{digest}",
        partial(_say, labels, arm, seed),
    )
    run: Callable[[], Row] = chain.run if arm == "chain" else chain.run_baseline
    return {"labels": labels, "arm": arm, "seed": seed, "settings": plan.key, **run()}


def _say(labels: str, arm: str, seed: int, text: str) -> None:
    print(f"{labels}, {arm}, seed {seed}: {text}", flush=True)


def finished(path: Path, plan: Plan) -> list[Row]:
    """The results in the file that were made with these settings on such a machine."""
    key = plan.key
    return read_results(path, lambda row: row["settings"] == key)


def report(rows: Sequence[Row], settings: Settings) -> str:
    """What was measured, beside the field's figures."""
    scored = "held-out training images with true labels" if settings.development else "test images"
    lines = ["settings: " + ", ".join(f"{name} {_plain(value)}" for name, value in asdict(settings).items())]
    lines += ["", f"accuracy in percent on {scored}; over seeds the median (least to most)", ""]
    lines.append(_line("labels", "seeds", "wrong", "folds", "curated", "fine-tuned", "baseline", "seeds"))
    measured = [labels for labels in LABELS if any(row["labels"] == labels for row in rows)]
    chains = {labels: _of(rows, labels, "chain") for labels in measured}
    for labels, own in chains.items():
        plain = _each(_of(rows, labels, "baseline"), "accuracy")
        scores = [_each(own, name) for name in ("accuracy_of_folds", "accuracy_trained", "accuracy")]
        wrong = spread(_each(own, "wrong"), 100, 1)
        cells = (*(spread(each, 100) for each in scores), spread(plain, 100))
        lines.append(_line(labels, str(len(own)), wrong, *cells, str(len(plain))))
    lines += ["", "label errors that were found, and what was trained on", ""]
    lines.append(_line("labels", "precision", "recall", "F1", "wrong left, %", "images left"))
    for labels, own in chains.items():
        found = [spread(_each(own, name), 1, 3) for name in ("precision", "recall", "f1")]
        left = spread(_each(own, "wrong_left"), 100), spread(_each(own, "images_left"), 1, 0)
        lines.append(_line(labels, *found, *left))
    lines += [
        "",
        "seconds of the chain (without runs that were killed and went on), peak memory of tensors",
        "",
    ]
    lines.append(_line("labels", "folds", "rule", "training", "fine-tuning", "all", "GiB"))
    for labels, own in chains.items():
        whole = [row["seconds"] for row in own if not row["continued"]]
        seconds = [spread([each[part] for each in whole], 1, 1) for part in _PARTS]
        lines.append(_line(labels, *seconds, spread(_each(own, "peak_bytes"), 2**-30)))
    return "\n".join([*lines, "", *_field()])


def _field() -> list[str]:
    """The comparison figures, as a table."""
    lines = [f"the field, {', '.join(LABELS)}, ResNet-34 (as {_SOURCE}, quotes it)."]
    lines += ["Its images are CIFAR-10's own; JPEG took points off ours, see docs/benchmarks.md."]
    for name, figures in _FIELD.items():
        lines.append(f"{name:16}" + "".join(f"{figure:8.1f}" for figure in figures))
    return lines


def _of(rows: Sequence[Row], labels: str, arm: str) -> list[Row]:
    return [row for row in rows if (row["labels"], row["arm"]) == (labels, arm)]


def _each(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows]


def _line(first: str, *cells: str) -> str:
    return f"{first:10}" + "".join(f"{cell:>24}" for cell in cells)


def _plain(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
