"""The rule `auto` against every fixed rule: does it find wrong labels as well as the best one for the data?

    python -m benchmarks.noise_rules                   everything; ten minutes or so, one core
    python -m benchmarks.noise_rules --only nine       published probabilities for CIFAR-10, nine arrays
    python -m benchmarks.noise_rules --only planted    planted noise on digits and CIFAR-10, and people's
    python -m benchmarks.noise_rules --only rare       noise and imbalance together: the rare classes
    python -m benchmarks.noise_rules --only scale      a million samples: seconds and memory

Probabilities that were computed are kept in .winnow/bench/ and not computed again as long as all that
they follow from is the same. What needs CIFAR-10 is skipped where the data is not there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import ROOT, bench_data
from benchmarks.planting import (
    KINDS,
    Floats,
    Labels,
    digit_models,
    digits,
    feature_models,
    kept_out_of_fold,
    plant,
)
from stages.errors import WinnowError
from stages.noise import find_label_errors
from stages.runtime import clean_exit

Mask = NDArray[np.bool_]

CLEANLAB = ("prune_by_class", "prune_by_noise_rate", "both", "confident_learning", "predicted_neq_given")
MARGINS = (0.0, 0.1, 0.2, 0.3, 0.5)
FIXED = (*CLEANLAB, *(f"margin {margin:g}" for margin in MARGINS))
NEAR = 0.02  # of the best rule's F1
_SETS = ("cifar10n_aggregate", "cifar10n_worst", "cifar10_synthetic20")
_BACKBONES = ("resnet18", "resnet50d", "efficientnet_b1")
_RATES = (0.1, 0.3)
_SEEDS = (0, 1)  # of planted noise and folds, on digits
_PARTS = ("nine", "planted", "rare", "scale")
_SIZE = 1_000_000

_TIMED = """
import resource, sys, time
import numpy as np
from stages.noise import find_label_errors
rng = np.random.default_rng(0)
count = int(sys.argv[1])
true = rng.integers(0, 10, count)
probs = np.exp(rng.normal(0.0, 1.0, (count, 10)))
probs[np.arange(count), true] *= 40.0
probs /= probs.sum(1, keepdims=True)
given = np.where(rng.random(count) < 0.2, rng.integers(0, 10, count), true)
start = time.perf_counter()
find_label_errors(given, probs, sys.argv[2])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.noise_rules",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=_PARTS, help="one part of it; default: all")
    options = parser.parse_args(argv)
    with clean_exit("noise_rules"):
        data = bench_data()
        for part in [options.only] if options.only else _PARTS:
            if part == "nine":
                print_nine(data)
            elif part == "planted":
                print_planted(data)
            elif part == "rare":
                from benchmarks.rare_classes import print_rare

                print_rare()
            else:
                print_scale()


def flags(labels: Labels, probs: Floats) -> dict[str, Mask]:
    """What `auto` and every fixed rule flag, by name."""
    masks = {rule: find_label_errors(labels, probs, rule) for rule in ("auto", *CLEANLAB)}
    margins = {f"margin {m:g}": find_label_errors(labels, probs, "margin", margin=m) for m in MARGINS}
    return masks | margins


def f1(flagged: Mask, wrong: Mask) -> float:
    """2TP / (flagged + wrong); 1 where nothing is wrong and nothing flagged."""
    total = int(flagged.sum() + wrong.sum())
    return 2.0 * int((flagged & wrong).sum()) / total if total else 1.0


def scores(labels: Labels, probs: Floats, true: Labels) -> dict[str, float]:
    """F1 by rule."""
    return {rule: f1(mask, labels != true) for rule, mask in flags(labels, probs).items()}


def gap(score: dict[str, float]) -> float:
    """F1 of `auto` less that of the best fixed rule."""
    return score["auto"] - max(score[rule] for rule in FIXED)


def nine_arrays(data: Path | None) -> Iterator[tuple[str, Labels, Floats, Labels]]:
    """Name, given labels, probabilities and true labels of the published arrays; none where not there.

    From "Model-Agnostic Label Quality Scoring to Detect Real-World Label Errors" (ICML DataPerf 2022).
    """
    for name in _SETS if data is not None else ():
        path = Path(str(data), f"pred_probs_{name}.npz")
        if not path.is_file():
            continue
        with np.load(path, allow_pickle=False) as file:
            for backbone in _BACKBONES:
                given = file[f"{backbone}_given_label"].astype(np.int64)
                true = file[f"{backbone}_true_label"].astype(np.int64)
                probs = file[f"{backbone}_pred_probs"].astype(np.float64)
                # In float16 some rows miss 1 by more than the rounding of their ten numbers.
                yield f"{name}/{backbone}", given, probs / probs.sum(1, keepdims=True), true


def print_nine(data: Path | None) -> None:
    """F1 of every rule on the published arrays."""
    results: dict[str, dict[str, float]] = {}
    for name, labels, probs, true in nine_arrays(data):
        _tell(name)
        results[name] = scores(labels, probs, true)
    if not results:
        print("nine arrays: skipped: no pred_probs_*.npz in WINNOW_BENCH_DATA or ../shared/data")
        return
    print(f"\n{len(results)} published arrays, F1; gap: `auto` to the best fixed rule\n")
    short = {rule: rule.replace("prune_", "").replace("margin", "m.")[:9] for rule in ("auto", *FIXED)}
    print(f"{'':36}{'gap':>8}" + "".join(f"{name:>10}" for name in short.values()))
    for name, score in results.items():
        print(f"{name:36}{gap(score):>+8.4f}" + "".join(f"{score[rule]:>10.3f}" for rule in short))
    print_means(list(results.values()))


def print_means(results: list[dict[str, float]]) -> None:
    """Mean F1 of each rule, how far it is from the best fixed one of each set, and how often near it."""
    print(f"\n{'rule':22}{'mean F1':>9}{'to best':>9}{'lowest':>9}{'near':>7}")
    for rule in ("auto", *FIXED):
        gaps = np.array([score[rule] - max(score[name] for name in FIXED) for score in results])
        mean = np.mean([score[rule] for score in results])
        near = f"{100 * np.mean(gaps >= -NEAR):.0f} %"
        print(f"{rule:22}{mean:>9.4f}{gaps.mean():>+9.4f}{gaps.min():>+9.4f}{near:>7}")


def print_planted(data: Path | None) -> None:
    """F1 on planted noise, and on people's labels of CIFAR-10."""
    groups: dict[str, list[dict[str, float]]] = {}
    for group, labels, probs, true in [*digit_sets(), *cifar_sets(data)]:
        groups.setdefault(group, []).append(scores(labels, probs, true))
    print("\nplanted noise and people's labels, F1; `best` is the best fixed rule of each set\n")
    print(f"{'':36}{'sets':>5}{'auto':>8}{'best':>8}{'gap':>8}{'lowest':>8}{'default':>9}{'margin .2':>10}")
    for group, rows in groups.items():
        gaps = [gap(row) for row in rows]
        best = np.mean([max(row[rule] for rule in FIXED) for row in rows])
        auto, default, margin = (
            np.mean([row[rule] for row in rows]) for rule in ("auto", "prune_by_noise_rate", "margin 0.2")
        )
        print(
            f"{group:36}{len(rows):>5}{auto:>8.3f}{best:>8.3f}{np.mean(gaps):>+8.3f}{min(gaps):>+8.3f}"
            f"{default:>9.3f}{margin:>10.3f}"
        )
    for source in ("digits", "CIFAR-10", "CIFAR-10N", "shared mistakes"):
        rows = [row for group, rows in groups.items() if group.split(",")[0] == source for row in rows]
        if rows:
            print(f"\n{source}: {len(rows)} sets")
            print_means(rows)


def digit_sets() -> Iterator[tuple[str, Labels, Floats, Labels]]:
    """Group, given labels, probabilities and true labels: planted noise on digits, several models."""
    features, true = digits()
    for kind in KINDS:
        for rate in _RATES:
            for seed in _SEEDS:
                group = f"digits, {kind} {rate:.0%}"
                _tell(f"{group}, seed {seed}")
                labels = plant(true, kind, rate, np.random.default_rng(seed), features)
                for model in digit_models(seed).values():
                    yield group, labels, kept_out_of_fold(model, features, labels, folds=5, seed=seed), true


def cifar_sets(data: Path | None) -> Iterator[tuple[str, Labels, Floats, Labels]]:
    """The same on features of 10,000 images of CIFAR-10, and with the labels that people gave them."""
    if (
        data is None
        or not (data / "cifar10.tar.gz").is_file()
        or not (data / "cifar10n_labels.csv.gz").is_file()
    ):
        print("CIFAR-10: skipped: no cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data")
        return
    from benchmarks.cifar_features import cifar_features

    features, pixels, true, people = cifar_features(data)
    labelled = {f"CIFAR-10N, {name} {np.mean(given != true):.0%}": given for name, given in people.items()}
    for rate in _RATES:
        for kind in KINDS:
            given = plant(true, kind, rate, np.random.default_rng(0), pixels)
            labelled[f"CIFAR-10, {kind} {rate:.0%}"] = given
        # What labellers mistake the models mistake too, since it is in the features that they share.
        given = plant(true, "instance-dependent", rate, np.random.default_rng(0), features)
        labelled[f"shared mistakes, CIFAR-10 {rate:.0%}"] = given
    for group, labels in labelled.items():
        _tell(group)
        for model in feature_models(0).values():
            yield group, labels, kept_out_of_fold(model, features, labels, folds=4, seed=0), true


def print_scale() -> None:
    """Seconds and peak memory of a million samples of ten classes, each rule in a process of its own."""
    print(f"\n{_SIZE:,} × 10 probabilities, float64 (80 MB), 20 % of the labels drawn anew\n")
    print(f"{'rule':22}{'seconds':>9}{'peak MB':>9}")
    for rule in ("auto", "margin", "prune_by_noise_rate"):
        command = [sys.executable, "-c", _TIMED, str(_SIZE), rule]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise WinnowError(f"{rule} failed: {result.stderr.splitlines()[-1:]}")
        seconds, kilobytes = map(float, result.stdout.split())
        print(f"{rule:22}{seconds:>9.1f}{kilobytes / 1e3:>9,.0f}", flush=True)


def _tell(what: str) -> None:
    print(f"noise_rules: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
