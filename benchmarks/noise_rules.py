"""The rule `auto` against every fixed rule: does it find wrong labels as well as the best one for the data?

    python -m benchmarks.noise_rules                   everything; ten minutes or so, one core
    python -m benchmarks.noise_rules --only nine       published probabilities for CIFAR-10, nine arrays
    python -m benchmarks.noise_rules --only planted    planted noise on digits and CIFAR-10, and people's
    python -m benchmarks.noise_rules --only rare       noise and imbalance together: the rare classes
    python -m benchmarks.noise_rules --only scale      a million samples: seconds and memory

Probabilities that were computed are kept in .winnow/bench/ and not computed again as long as all that
they follow from is the same. What needs CIFAR-10 is skipped where the data is not there.

Imbalance and noise together: what a rule, and then `curate`, takes from the rare classes.

Digits at 10:1 with 20 % of the labels planted wrong, evenly over the other classes. Rare are the classes
with fewer than half the median class's true samples.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.measuring import ROOT, bench_data
from benchmarks.planting import (
    KINDS,
    Arrays,
    Floats,
    Labels,
    digit_models,
    digits,
    feature_models,
    kept,
    kept_out_of_fold,
    long_tail,
    plant,
)
from stages.curate import read_policy
from stages.curation.ledger import build_ledger
from stages.dataset.base import CONFLICT_COLUMNS, View
from stages.errors import WinnowError
from stages.noise.folds import CrossValidation, inputs_digest
from stages.noise.issues import find_issues
from stages.noise.labels import find_label_errors
from stages.workflow.params import Params, load_params
from stages.workflow.stage import clean_exit

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

_RARE_SEEDS = range(5)  # of sizes, noise, folds and models
_LARGEST, _RATIO, _NOISE = 170, 10.0, 0.2
_SIDE = 16  # pixels, as in params.yaml
_CLASSES = [str(digit) for digit in range(10)]

# Whose share of clean samples of rare classes is shown.
_SHOWN = {
    "auto": "auto",
    "margin .2": "margin 0.2",
    "argmax": "margin 0",
    "cleanlab": "prune_by_noise_rate",
    "both": "both",
}


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
                pass

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


def print_rare() -> None:
    """A row a model, over the seeds; the project's own cross-validation first."""
    params = load_params()
    tables: dict[str, list[dict[str, float]]] = {}
    for model, case in _cases(params):
        tables.setdefault(model, []).append(_figures(*case, params))
    print(
        f"\ndigits at {_RATIO:g}:1 with {_NOISE:.0%} wrong labels, {len(_RARE_SEEDS)} seeds: clean "
        "samples of\nrare classes that each rule flags, that curate drops or relabels; F1 over all classes\n"
    )
    columns = [*_SHOWN, "dropped", "relabelled", "F1", "best F1", "gap"]
    print(f"{'':22}" + "".join(f"{column:>11}" for column in columns))
    for model, rows in tables.items():
        clean = sum(row["clean"] for row in rows)
        shares = [sum(row[name] for row in rows) / clean for name in columns[:-3]]
        means = [float(np.mean([row[name] for row in rows])) for name in ("F1", "best F1")]
        print(
            f"{model:22}" + "".join(f"{100 * share:>9.1f} %" for share in shares)
            + "".join(f"{mean:>11.3f}" for mean in means) + f"{means[0] - means[1]:>+11.3f}"
        )  # fmt: skip
        gaps = " ".join(f"{row['F1'] - row['best F1']:+.3f}" for row in rows)
        print(f"{'':22}  {clean:.0f} clean samples of rare classes; F1 to best by seed: {gaps}")


def _cases(params: Params) -> Iterator[tuple[str, tuple[Arrays, Labels, Labels]]]:
    """Name of the model; probabilities, votes and embeddings; given and true labels."""
    features, true = digits()
    images = _images(features)
    for seed in _RARE_SEEDS:
        print(f"rare_classes: seed {seed}", file=sys.stderr, flush=True)
        rng = np.random.default_rng(seed)
        rows = long_tail(true, _LARGEST, _RATIO, rng)
        given = plant(true[rows], "symmetric", _NOISE, rng, features[rows])
        yield (
            "small_cnn, as shipped",
            (_cross_validated(images[rows], given, seed, params), given, true[rows]),
        )
        for name, model in digit_models(seed).items():
            probs = kept_out_of_fold(model, features[rows], given, folds=5, seed=seed)
            yield name, ({"probs": probs, "embeddings": features[rows]}, given, true[rows])


def _images(features: Floats) -> NDArray[np.uint8]:
    """The digits as the pipeline sees them: uint8, N×16×16×1."""
    from PIL import Image

    scans = np.round(features * 255).astype(np.uint8).reshape(-1, 8, 8)
    large = [Image.fromarray(scan).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) for scan in scans]
    return np.stack([np.asarray(image) for image in large])[..., None]


def _cross_validated(images: NDArray[np.uint8], given: Labels, seed: int, params: Params) -> Arrays:
    """What the stage `detect_noise` computes with the shipped parameters."""
    import torch

    from stages.noise.folds import cross_validate

    torch.set_num_threads(params.threads)
    choices = params.detect_noise
    chosen: dict[str, Any] = {field.name: getattr(choices, field.name) for field in fields(CrossValidation)}
    ensemble = CrossValidation(**chosen | {"models": tuple(choices.models)})
    names = np.array([f"{i:016x}" for i in range(len(given))], dtype=object)
    view = View(images, given, np.ones(len(given), np.float32), names, _CLASSES)
    nothing = images[:0]
    inputs = {
        "digest": inputs_digest(view, nothing, None, ensemble, seed=seed, device="cpu"),
        "ensemble": asdict(ensemble),
    }

    def make() -> Arrays:
        result = cross_validate(view, nothing, ensemble, seed=seed, device="cpu")
        return {
            "probs": result.train_probs,
            "votes": result.train_votes,
            "embeddings": result.train_embeddings,
            "judged": result.train_judged,
        }

    return kept("folds", inputs, make)


def _figures(arrays: Arrays, given: Labels, true: Labels, params: Params) -> dict[str, float]:
    """Counts of clean samples of rare classes: all, those flagged by rule, those lost; and F1."""
    size = np.bincount(true, minlength=len(_CLASSES))
    clean = (given == true) & (size < np.median(size) / 2)[true]
    masks = flags(given, arrays["probs"].astype(np.float64))
    action = _decisions(arrays, given, params)
    score = {rule: f1(mask, given != true) for rule, mask in masks.items()}
    count = partial(_count, clean)
    return {
        "clean": float(clean.sum()),
        **{name: count(masks[rule]) for name, rule in _SHOWN.items()},
        "dropped": count(action == "drop"),
        "relabelled": count(action == "relabel"),
        "F1": score["auto"],
        "best F1": max(score[rule] for rule in FIXED),
    }


def _count(clean: Mask, chosen: Mask) -> float:
    return float((clean & chosen).sum())


def _decisions(arrays: Arrays, given: Labels, params: Params) -> NDArray[np.object_]:
    """What `curate` does with each sample by the shipped policies and the rule `auto`."""
    names = [f"{i:016x}" for i in range(len(given))]
    samples = pd.DataFrame(
        {
            "sample_id": names,
            "row": range(len(given)),
            "split": "train",
            "label": [_CLASSES[label] for label in given],
            "source": names,
            "width": _SIDE,
            "height": _SIDE,
            "group": names,
            "weight": 1.0,
        }
    )
    issues = find_issues(
        samples,
        arrays["probs"].astype(np.float32),
        arrays["embeddings"].astype(np.float32),
        _CLASSES,
        rule="auto",
        neighbors=params.detect_noise.neighbors,
        judged=arrays.get("judged"),
        agreement=arrays.get("votes"),
    ).issues
    reviews = pd.DataFrame(columns=["sample_id", "decision", "label", "reviewer", "decided_at", "note"])
    conflicts = pd.DataFrame(columns=CONFLICT_COLUMNS)
    ledger, _ = build_ledger(samples, issues, read_policy(params.curate), reviews, conflicts)
    return ledger["action"].to_numpy(object)
