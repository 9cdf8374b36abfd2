"""Wrong labels planted in data whose true labels are known, and models that have not seen them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Kind = Literal["symmetric", "pair", "class-dependent", "instance-dependent"]

KINDS: tuple[Kind, ...] = ("symmetric", "pair", "class-dependent", "instance-dependent")
_PLACE = Path(".winnow/bench/noise_rules")
_CLASSES = 10
_MOST = 0.95  # probability at most that the label of one image is made wrong


def plant(true: Labels, kind: Kind, rate: float, rng: np.random.Generator, features: Floats) -> Labels:
    """Make a share of the labels wrong.

    Parameters
    ----------
    true : N; 0 to 9, each class there
    kind : `symmetric`: any other class; `pair`: the next class; `class-dependent`: each class with a
        rate of its own (0 to twice `rate`) and a few favourite mistakes; `instance-dependent`: images
        that a weak model finds ambiguous, mistaken for what it takes them for
    rate : expected share of wrong labels, 0 to 1
    features : N×D; looked at by `instance-dependent` alone
    """
    if kind == "instance-dependent":
        return _confuse_ambiguous(true, rate, rng, features)
    rates, targets = np.full(_CLASSES, rate), np.ones((_CLASSES, _CLASSES))
    if kind == "pair":
        targets = np.roll(np.eye(_CLASSES), 1, axis=1)
    elif kind == "class-dependent":
        rates = rng.uniform(0.0, 2.0 * rate, _CLASSES)
        targets = rng.dirichlet(np.full(_CLASSES, 0.3), _CLASSES)
    np.fill_diagonal(targets, 0.0)
    wrong = rng.random(len(true)) < rates[true]
    given = true.copy()
    given[wrong] = _draw(targets[true[wrong]], rng)
    return given


def _confuse_ambiguous(true: Labels, rate: float, rng: np.random.Generator, features: Floats) -> Labels:
    """The odder an image is for a weak model, by the odds of another class, the likelier a wrong label."""
    from sklearn.linear_model import LogisticRegression

    weak = LogisticRegression(C=0.003, max_iter=300)
    probs = out_of_fold(weak, features, true, folds=3, seed=0)
    rows = np.arange(len(true))
    others = probs.copy()
    others[rows, true] = 0.0
    odds = (others.max(1) / probs[rows, true]) ** 1.5
    low, high = 0.0, 1e6
    for _ in range(60):  # bisection for the factor that gives the rate
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(_MOST, middle * odds).mean() < rate else (low, middle)
    wrong = rng.random(len(true)) < np.minimum(_MOST, low * odds)
    given = true.copy()
    given[wrong] = _draw(others[wrong] ** 2, rng)
    return given


def _draw(weights: Floats, rng: np.random.Generator) -> Labels:
    """One column index a row, in proportion to the row's weights."""
    reach = np.cumsum(weights, axis=1)
    return (rng.random((len(weights), 1)) * reach[:, -1:] >= reach).sum(1).astype(np.int64)


def long_tail(true: Labels, largest: int, ratio: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows that leave `largest` samples of one class and so many times fewer of another, at random."""
    sizes = np.round(np.geomspace(largest, largest / ratio, _CLASSES)).astype(int)
    order = rng.permutation(_CLASSES)
    chosen = [
        rng.choice(np.flatnonzero(true == label), size, replace=False)
        for label, size in zip(order, sizes, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def out_of_fold(model: Any, features: Floats, labels: Labels, *, folds: int, seed: int) -> Floats:
    """Probabilities, N×10, each row by a copy of the model that was trained without the sample's fold."""
    import warnings

    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold

    probs = np.zeros((len(labels), _CLASSES))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels)
    with warnings.catch_warnings():
        # Trained for as long as they are told to, not until nothing changes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for inside, outside in splits:
            fitted = clone(model).fit(features[inside], labels[inside])
            probs[np.ix_(outside, fitted.classes_)] = fitted.predict_proba(features[outside])
    return probs


def digits() -> tuple[Floats, Labels]:
    """Features (1,797×64, 0 to 1) and true labels of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels / 16.0, labels.astype(np.int64)


def digit_models(seed: int) -> dict[str, Any]:
    """Classifiers of different kinds, from weak to strong and from too timid to too sure."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    return {
        "logistic regression": LogisticRegression(max_iter=300),
        "random forest": RandomForestClassifier(150, min_samples_leaf=2, random_state=seed),
        "MLP": MLPClassifier((64,), max_iter=40, random_state=seed),
        "SVC": CalibratedClassifierCV(SVC(gamma=0.5), cv=3, ensemble=False),
        "kNN": KNeighborsClassifier(15),
    }


def feature_models(seed: int) -> dict[str, Any]:
    """Classifiers for the features of a network."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    return {
        "logistic regression": LogisticRegression(C=0.01, max_iter=150),
        "extra trees": ExtraTreesClassifier(100, min_samples_leaf=3, random_state=seed),
        "MLP": MLPClassifier((128,), max_iter=8, random_state=seed),
    }


def kept(name: str, inputs: Mapping[str, object], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, or gave when it was last called with these inputs.

    So a measurement that was interrupted goes on where it was.

    Parameters
    ----------
    name : of the file
    inputs : all that the result follows from; arrays count with their bytes, others as they print
    """
    digest = hashlib.sha256()
    for key, value in inputs.items():
        content = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        digest.update(key.encode() + b"=" + content + b"\n")
    path = _PLACE / f"{name}-{digest.hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **result)
    partial.rename(path)
    return result


def kept_out_of_fold(model: Any, features: Floats, labels: Labels, *, folds: int, seed: int) -> Floats:
    """`out_of_fold`, kept; the model counts as it prints, which scikit-learn's do with what was chosen."""
    inputs = {"model": model, "features": features, "labels": labels, "folds": folds, "seed": seed}

    def make() -> Arrays:
        return {"probs": out_of_fold(model, features, labels, folds=folds, seed=seed)}

    return kept("probs", inputs, make)["probs"]
