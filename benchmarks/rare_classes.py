"""Imbalance and noise together: what a rule, and then `curate`, takes from the rare classes.

Digits at 10:1 with 20 % of the labels planted wrong, evenly over the other classes. Rare are the classes
with fewer than half the median class's true samples.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.noise_rules import FIXED, Mask, f1, flags
from benchmarks.planting import (
    Arrays,
    Floats,
    Labels,
    digit_models,
    digits,
    kept,
    kept_out_of_fold,
    long_tail,
    plant,
)
from stages.curate import read_policy
from stages.dataset import CONFLICT_COLUMNS, View
from stages.noise.ensemble import Ensemble, inputs_digest
from stages.noise.issues import find_issues
from stages.noise.ledger import build_ledger
from stages.params import Params, load_params

_SEEDS = range(5)  # of sizes, noise, folds and models
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


def print_rare() -> None:
    """A row a model, over the seeds; the project's own cross-validation first."""
    params = load_params()
    tables: dict[str, list[dict[str, float]]] = {}
    for model, case in _cases(params):
        tables.setdefault(model, []).append(_figures(*case, params))
    print(
        f"\ndigits at {_RATIO:g}:1 with {_NOISE:.0%} wrong labels, {len(_SEEDS)} seeds: clean samples of\n"
        "rare classes that each rule flags, that curate drops or relabels; F1 over all classes\n"
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
    for seed in _SEEDS:
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
    chosen: dict[str, Any] = {field.name: getattr(choices, field.name) for field in fields(Ensemble)}
    ensemble = Ensemble(**chosen | {"models": tuple(choices.models)})
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
