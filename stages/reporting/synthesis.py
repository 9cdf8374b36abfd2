"""Summarise the images that `augment` and `synthesize` made, in tables and sentences.

They come from `augment/survival.csv`, `synthesize/quality.json` and `synthesize/gan_scores.csv`. What is
not there, or is of another shape, gives empty answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.reporting.rendering import as_count, as_mapping, as_number

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

# Why the gate refuses a candidate, by the name of the check.
REFUSED = {
    "agreement": "not recognised",
    "copy_of_train": "near-copies of training images",
    "copy_of_held_out": "near-copies of validation or test images",
    "stray": "unlike every real image",
    "repeat": "repeats of one another",
}

# A decision with its colour, of the three that a verdict has.
_DECISIONS = {"accepted": "better", "reduced": "open", "fallback": "worse"}

_SURVIVAL = {"kept": "better", "left_out": "worse", "warned": "open"}
_NOT_NEEDED = {"not_needed": "needed none", "off": "were switched off"}
_MAX_CLASSES = 40


@dataclass(frozen=True)
class Nearness:
    """How near the nearest image of the GAN is to a real one, and in which class that is.

    Attributes
    ----------
    distance : to the nearest real image, as a multiple of the median of that distance among real
        ones; 0 is a copy
    real : the least that real images of that class have among themselves; None where it is not known
    name : of the class
    images : how many were measured
    copied : added images by method that are copies or mixtures of real ones by design
    """

    distance: float
    real: float | None
    name: str
    images: int
    copied: dict[str, int]


def survival_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the transforms, the whole policy first and then the most destructive.

    Each row has `name`, `survival` (0 to 1 or None), `of` (images), `worst` (class and its share),
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
                "survival": as_number(row["survival"]),
                "recognised": as_count(row.get("recognised")),
                "of": as_count(row.get("recognised_before")),
                "tried": as_count(row.get("tried")),
                "worst": (str(row.get("worst_class") or ""), as_number(row.get("worst_survival"))),
                "decision": decision.replace("_", " "),
                "tone": _SURVIVAL.get(decision, "open"),
            }
        )
    return sorted(
        rows, key=lambda row: (not row["whole"], 2.0 if row["survival"] is None else row["survival"])
    )


def gate_table(quality: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tabulate the classes whose candidates the gate judged: those it refused first, then as they come.

    Returns
    -------
    `measures` (key and title of each column), `rows` (at most 40) and `left_out` (how many more)
    """
    judged = [row for row in quality if as_count(row.get("candidates"))]
    judged.sort(key=lambda row: list(_DECISIONS).index(_decision(row)), reverse=True)
    measured = list(dict.fromkeys(name for row in judged for name in as_mapping(row.get("measures"))))
    known = [name for name in _MEASURES if name in measured]
    measures = known + [name for name in measured if name not in _MEASURES]
    return {
        "measures": [(name, _MEASURES.get(name, (name, ""))[0]) for name in measures],
        "rows": [_gate_row(row) for row in judged[:_MAX_CLASSES]],
        "left_out": max(0, len(judged) - _MAX_CLASSES),
    }


def requested_table(quality: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate the classes that images were asked for: how many, by what, and why; refused ones first."""
    columns = ["class", "real", "target", "requested", "added", "method", "decision", "reason"]
    asked = [row for row in quality if row.get("decision") not in _NOT_NEEDED]
    asked.sort(key=lambda row: row.get("decision") in ("accepted", "reduced"))
    table = pd.DataFrame([{name: row.get(name, "") for name in columns} for row in asked], columns=columns)
    return table.assign(decision=[str(name).replace("_", " ") for name in table["decision"]])


def not_needed_line(quality: Sequence[Mapping[str, Any]]) -> str:
    """Count the classes that no images were asked for; empty where there are none."""
    counts = Counter(str(row.get("decision")) for row in quality)
    parts = [f"{counts[name]} {words}" for name, words in _NOT_NEEDED.items() if counts[name]]
    return f"Of {len(quality)} classes {' and '.join(parts)}" if parts else ""


def gan_line(synthesis: Mapping[str, Any], quality: Sequence[Mapping[str, Any]]) -> str:
    """Describe the GAN's training in a sentence, or say why there was none where the GAN was asked for."""
    gan = as_mapping(synthesis.get("gan"))
    if not gan:
        if synthesis.get("method") != "gan":
            return ""
        needed = any(as_count(row.get("requested")) for row in quality)
        why = "no class that needs images has enough of its own" if needed else "no class needs images"
        return f"No GAN was trained: {why}"
    trained_on = gan.get("trained_on") or []
    sentence = f"One GAN, trained on {len(trained_on)} {'class' if len(trained_on) == 1 else 'classes'}"
    if gan.get("steps"):
        asked = gan.get("steps_asked", gan["steps"])
        sentence += f" for {gan['steps']} {'' if asked == gan['steps'] else f'of {asked} '}steps"
    if gan.get("batch_size"):
        sentence += f" of {gan['batch_size']} images"
    return sentence


def gan_notes(synthesis: Mapping[str, Any]) -> list[str]:
    """List what went wrong in the GAN's training and was mended, a sentence each."""
    notes = as_mapping(synthesis.get("gan")).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def snapshot_table(scores: pd.DataFrame, quality: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """List the snapshots of the generator: the mean score over the classes, and how many chose it."""
    if not {"step", "score"} <= set(scores.columns):
        return pd.DataFrame()
    used = Counter(as_count(row.get("snapshot")) for row in quality if row.get("snapshot") is not None)
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
    """Sum up augmentation, gate and privacy for the terminal, in a line each where there is any."""
    lines = []
    rows = survival_rows(survival)
    whole = [row["survival"] for row in rows if row["whole"] and row["survival"] is not None]
    left_out = [row["name"] for row in rows if row["decision"] == "left out"]
    if whole:
        lines.append(f"Augmentation: {100 * whole[0]:.1f} % of images are still recognised")
    if left_out:
        lines.append(f"Augmentation left out what destroys classes: {', '.join(left_out)}")
    judged = [row for row in quality if as_count(row.get("candidates"))]
    if judged:
        used = sum(_decision(row) in ("accepted", "reduced") for row in judged)
        line = (
            f"Gate: the GAN's images are used for {used} of the {len(judged)} classes that it was tried for"
        )
        near = nearness(quality)
        if near is not None:
            line += f"; nearest to a real one at {near.distance:.2f} of the distance between real images"
        lines.append(line)
    elif synthesis.get("method") == "gan":
        lines.append(gan_line(synthesis, quality))
    return [*lines, *(f"GAN: {note}" for note in gan_notes(synthesis))]


def nearness(quality: Sequence[Mapping[str, Any]]) -> Nearness | None:
    """Find the generated image that is nearest to a real one; None where the GAN added nothing."""
    measured = [
        (distance, row, as_number(near.get("real_min")))
        for row in quality
        if (near := as_mapping(row.get("nearness"))) and (distance := as_number(near.get("min"))) is not None
    ]
    if not measured:
        return None
    distance, nearest, real = min(measured, key=lambda entry: entry[0])
    copied: Counter[str] = Counter()
    for row in quality:
        if row.get("method") not in ("gan", "none", None):
            copied[str(row["method"])] += as_count(row.get("added"))
    images = sum(as_count(row.get("added")) for _, row, _ in measured)
    by_design = {name: count for name, count in sorted(copied.items()) if count}
    return Nearness(distance, real, str(nearest["class"]), images, by_design)


def _gate_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one class of the gate's table: its measures, what was refused in words, and the decision."""
    refused = {name: as_count(count) for name, count in as_mapping(row.get("refused")).items()}
    decision = _decision(row)
    return {
        "class": str(row["class"]),
        "real": row.get("real", ""),
        "candidates": as_count(row.get("candidates")),
        "accepted": as_count(row.get("accepted")),
        "added": as_count(row.get("added")),
        "measures": {
            name: {
                "value": as_number(as_mapping(measure).get("value")),
                "real": as_number(as_mapping(measure).get("real")),
                "limit": as_number(as_mapping(measure).get("limit")),
                "sign": _MEASURES.get(name, ("", "limit"))[1],
                "passed": as_mapping(measure).get("passed") is True,
            }
            for name, measure in as_mapping(row.get("measures")).items()
        },
        "refused": [
            (REFUSED.get(name, name), count)
            for name, count in sorted(refused.items(), key=lambda pair: -pair[1])
            if count
        ],
        "method": str(row.get("method", "")),
        "decision": decision,
        "tone": _DECISIONS[decision],
        "reason": str(row.get("reason") or ""),
    }


def _decision(row: Mapping[str, Any]) -> str:
    """Return one of `_DECISIONS`; an unknown decision counts as refused."""
    decision = str(row.get("decision"))
    return decision if decision in _DECISIONS else "fallback"
