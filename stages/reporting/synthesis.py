"""Tables and sentences about the images that `augment` and `synthesize` made.

They come from `augment/survival.csv`, `synthesize/quality.json` and `synthesize/gan_scores.csv`. What is
not there, or is of another shape, gives empty answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

WHOLE_POLICY = "policy"  # the row of survival.csv for all transforms together

# The measures of a class in the order of the table, and whether the limit is a floor or a ceiling.
_MEASURES = {
    "agreement": ("recognised", "≥"),
    "copies": ("near-copies", "≤"),
    "copies_of_held_out": ("of val and test", "≤"),
    "density": ("density", "≥"),
    "coverage": ("coverage", "≥"),
    "kid": ("KID", "≤"),
    "diversity": ("diversity", "≥"),
}


_REFUSED = {
    "agreement": "not recognised",
    "copy_of_train": "near-copies of training images",
    "copy_of_held_out": "near-copies of validation or test images",
    "stray": "unlike every real image",
    "repeat": "repeats of one another",
}


# A decision with its colour, of the three that a verdict has.
_DECISIONS = {"accepted": "better", "reduced": "open", "fallback": "worse"}

_SURVIVAL = {"kept": "better", "left_out": "worse", "warned": "open"}
_REST = {"not_needed": "needed none", "off": "were switched off"}
_MOST_CLASSES = 40


@dataclass(frozen=True)
class Nearness:
    """How near the nearest image of the GAN is to a real one, and in which class.

    Attributes
    ----------
    least : distance to the nearest real image over the median of that distance among real ones; 0 is
        a copy
    real : the least that real images of that class have among themselves; None where it is not known
    name : of the class
    images : how many were measured
    copied : added images by method that are copies or mixtures of real ones by design
    """

    least: float
    real: float | None
    name: str
    images: int
    copied: dict[str, int]


def survival_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a transform, the whole policy first and then the most destructive.

    Each has `name`, `survival` (0 to 1 or None), `of` (images), `worst` (class and its share),
    `decision` in words and its `tone`.
    """
    if not {"transform", "survival", "decision"} <= set(table.columns):
        return []
    rows = []
    for row in table.to_dict("records"):
        decision = str(row["decision"])
        rows.append(
            {
                "name": str(row["transform"]),
                "whole": row["transform"] == WHOLE_POLICY,
                "survival": _number(row["survival"]),
                "recognised": _count(row.get("recognised")),
                "of": _count(row.get("recognised_before")),
                "tried": _count(row.get("tried")),
                "worst": (str(row.get("worst_class") or ""), _number(row.get("worst_survival"))),
                "decision": decision.replace("_", " "),
                "tone": _SURVIVAL.get(decision, "open"),
            }
        )
    return sorted(rows, key=lambda row: (not row["whole"], _or(row["survival"], 2.0)))


def gate_table(quality: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The classes whose candidates the gate judged: what it refused first, then as they come.

    Returns
    -------
    `measures` (key and title of each column), `rows` (at most 40) and `left_out` (how many more)
    """
    judged = [row for row in quality if _count(row.get("candidates"))]
    judged.sort(key=lambda row: list(_DECISIONS).index(_decision(row)), reverse=True)
    found = list(dict.fromkeys(name for row in judged for name in _mapping(row.get("measures"))))
    known = [name for name in _MEASURES if name in found]
    measures = known + [name for name in found if name not in _MEASURES]
    return {
        "measures": [(name, _MEASURES.get(name, (name, ""))[0]) for name in measures],
        "rows": [_gate_row(row) for row in judged[:_MOST_CLASSES]],
        "left_out": max(0, len(judged) - _MOST_CLASSES),
    }


def requested_table(quality: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The classes that images were asked for: how many, by what, and why; those refused come first."""
    columns = ["class", "real", "target", "requested", "added", "method", "decision", "reason"]
    asked = [row for row in quality if row.get("decision") not in _REST]
    asked.sort(key=lambda row: row.get("decision") in ("accepted", "reduced"))
    table = pd.DataFrame([{name: row.get(name, "") for name in columns} for row in asked], columns=columns)
    return table.assign(decision=[str(name).replace("_", " ") for name in table["decision"]])


def rest_line(quality: Sequence[Mapping[str, Any]]) -> str:
    """The classes of which there is nothing to tell, counted; empty where there are none."""
    counts = Counter(str(row.get("decision")) for row in quality)
    said = [f"{counts[name]} {words}" for name, words in _REST.items() if counts[name]]
    return f"Of {len(quality)} classes {' and '.join(said)}" if said else ""


def gan_line(synthesis: Mapping[str, Any], quality: Sequence[Mapping[str, Any]]) -> str:
    """The GAN's training in a sentence; why there was none, where the GAN was asked for."""
    gan = _mapping(synthesis.get("gan"))
    if not gan:
        if synthesis.get("method") != "gan":
            return ""
        needed = any(_count(row.get("requested")) for row in quality)
        why = "no class that needs images has enough of its own" if needed else "no class needs images"
        return f"No GAN was trained: {why}"
    trained_on = gan.get("trained_on") or []
    said = f"One GAN, trained on {len(trained_on)} {'class' if len(trained_on) == 1 else 'classes'}"
    if gan.get("steps"):
        asked = gan.get("steps_asked", gan["steps"])
        said += f" for {gan['steps']} {'' if asked == gan['steps'] else f'of {asked} '}steps"
    if gan.get("batch_size"):
        said += f" of {gan['batch_size']} images"
    return said


def gan_notes(synthesis: Mapping[str, Any]) -> list[str]:
    """What went wrong in the GAN's training and was mended, a sentence each."""
    notes = _mapping(synthesis.get("gan")).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def snapshot_table(scores: pd.DataFrame, quality: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a snapshot: its mean score over the classes, and how many classes chose it."""
    if not {"step", "score"} <= set(scores.columns):
        return pd.DataFrame()
    used = Counter(_count(row.get("snapshot")) for row in quality if row.get("snapshot") is not None)
    means = scores.groupby("step", sort=True)["score"].mean()
    steps = [int(step) for step in means.index]
    return pd.DataFrame(
        {
            "step": steps,
            "mean distance to validation": means.to_numpy(),
            "classes that chose it": [used[step] for step in steps],
        }
    )


def synthesis_lines(
    survival: pd.DataFrame, quality: Sequence[Mapping[str, Any]], synthesis: Mapping[str, Any]
) -> list[str]:
    """Augmentation, gate and privacy in a line each, for the terminal; none of what there is not."""
    lines = []
    rows = survival_rows(survival)
    kept = [row for row in rows if row["whole"] and row["survival"] is not None]
    out = [row["name"] for row in rows if row["decision"] == "left out"]
    if kept:
        lines.append(f"Augmentation: {100 * kept[0]['survival']:.1f} % of images are still recognised")
    if out:
        lines.append(f"Augmentation left out what destroys classes: {', '.join(out)}")
    judged = [row for row in quality if _count(row.get("candidates"))]
    if judged:
        used = sum(_decision(row) in ("accepted", "reduced") for row in judged)
        line = (
            f"Gate: the GAN's images are used for {used} of the {len(judged)} classes that it was tried for"
        )
        near = nearness(quality)
        if near is not None:
            line += f"; nearest to a real one at {near.least:.2f} of the distance between real images"
        lines.append(line)
    elif synthesis.get("method") == "gan":
        lines.append(gan_line(synthesis, quality))
    return [*lines, *(f"GAN: {note}" for note in gan_notes(synthesis))]


def nearness(quality: Sequence[Mapping[str, Any]]) -> Nearness | None:
    """The generated image that is nearest to a real one; None where the GAN added nothing."""
    measured = [
        (least, row, _number(near.get("real_min")))
        for row in quality
        if (near := _mapping(row.get("nearness"))) and (least := _number(near.get("min"))) is not None
    ]
    if not measured:
        return None
    least, row, real = min(measured, key=lambda one: one[0])
    copied: Counter[str] = Counter()
    for other in quality:
        if other.get("method") not in ("gan", "none", None):
            copied[str(other["method"])] += _count(other.get("added"))
    images = sum(_count(one.get("added")) for _, one, _ in measured)
    by_design = {name: count for name, count in sorted(copied.items()) if count}
    return Nearness(least, real, str(row["class"]), images, by_design)


def _gate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One class of the table: cells by measure, what was refused in words, and the decision."""
    refused = {name: _count(count) for name, count in _mapping(row.get("refused")).items()}
    decision = _decision(row)
    return {
        "class": str(row["class"]),
        "real": row.get("real", ""),
        "candidates": _count(row.get("candidates")),
        "accepted": _count(row.get("accepted")),
        "added": _count(row.get("added")),
        "cells": {name: _cell(name, cell) for name, cell in _mapping(row.get("measures")).items()},
        "refused": [
            (_REFUSED.get(name, name), count)
            for name, count in sorted(refused.items(), key=lambda pair: -pair[1])
            if count
        ],
        "method": str(row.get("method", "")),
        "decision": decision,
        "tone": _DECISIONS[decision],
        "reason": str(row.get("reason") or ""),
    }


def _cell(name: str, measure: object) -> dict[str, Any]:
    measure = _mapping(measure)
    return {
        "value": _number(measure.get("value")),
        "real": _number(measure.get("real")),
        "limit": _number(measure.get("limit")),
        "sign": _MEASURES.get(name, ("", "limit"))[1],
        "passed": measure.get("passed") is True,
    }


def _decision(row: Mapping[str, Any]) -> str:
    """One of `_DECISIONS`; what is unknown counts as refused."""
    said = str(row.get("decision"))
    return said if said in _DECISIONS else "fallback"


def _mapping(content: object) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or pd.isna(value):
        return None
    return float(value)


def _count(value: object) -> int:
    return int(_or(_number(value), 0))


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
