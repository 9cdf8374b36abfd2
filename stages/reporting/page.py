"""Render the page that shows what every stage found and did, in one file that needs nothing else.

The page forbids itself scripts and anything from elsewhere. A summary that is not there, or is of another
shape, gives empty answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.dataset.issue_kinds import KINDS, NAMES, PROTECTIONS
from stages.reporting.pictures import caption_of, names_of
from stages.reporting.rendering import MAX_ROWS, as_mapping, flat_rows, png_uri, render_template, text_table
from stages.reporting.reports import (
    HEADLINE,
    LOWER_IS_BETTER,
    METRICS,
    MODELS,
    Picture,
    Results,
    fallbacks,
    verdict,
)
from stages.reporting.synthesis import (
    gan_line,
    gan_notes,
    gate_table,
    nearness,
    not_needed_line,
    requested_table,
    snapshot_table,
    survival_rows,
)

# What may decide about a sample, in words.
_DECIDED_BY: dict[str, str] = {
    **NAMES,
    "conflicting_labels": "conflicting labels",
    "unlabeled": "unlabelled",
    "review": "looked at by reviewers",
}

_SPLITS = ("train", "val", "test", "unlabeled")
_ACTIONS = {"drop": "dropped", "relabel": "relabelled", "reweight": "reweighted", "keep": "kept"}
_OLD_NAMES = {"label_errors": "label_error", "outliers": "outlier", "near_duplicates": "near_duplicate"}
_MAX_NAMED = 20
_SIGNIFICANT = 0.05  # p-value under which the order of the files is reported

# Stages whose pictures are on the data card or in sections of their own.
_OWN_SECTION = ("ingest", "detect_noise", "curate", "augment", "synthesize")


def found_by_split(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Count the issues by kind and split.

    Parameters
    ----------
    summary : `detect_noise/summary.json`: `splits` maps each split to `samples` and a count a kind,
        `checks` each kind to "on" or to why it is off. Splits may stand at the top, too.

    Returns
    -------
    `kind` in words, a column a split (null where the kind does not apply), and `all` where there are
    several; the first row counts samples. Kinds that are switched off have no row.
    """
    splits = as_mapping(summary.get("splits", summary))
    counts = {
        name: {_OLD_NAMES.get(kind, kind): n for kind, n in splits[name].items()}
        for name in _SPLITS
        if isinstance(splits.get(name), Mapping) and "samples" in splits[name]
    }
    checks = as_mapping(summary.get("checks"))
    kinds = [
        kind
        for kind in KINDS
        if checks.get(kind, "on") == "on" and any(kind in row for row in counts.values())
    ]
    names = {"samples": "samples looked at"} | {kind: NAMES[kind] for kind in kinds}
    if not counts:
        return pd.DataFrame()
    table = pd.DataFrame({split: pd.Series(row).reindex(list(names)) for split, row in counts.items()})
    table = table.astype("Int64")
    if len(counts) > 1:
        table["all"] = table.sum(axis=1)
    table.insert(0, "kind", list(names.values()))
    return table.reset_index(drop=True)


def switched_off(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the checks that did not run, in words, each with the reason."""
    checks = as_mapping(summary.get("checks"))
    return [(NAMES.get(kind, kind), str(reason)) for kind, reason in checks.items() if reason != "on"]


def order_line(summary: Mapping[str, Any]) -> str:
    """Warn in a sentence where files that follow one another look alike; else return nothing."""
    p = summary.get("non_iid")
    if not isinstance(p, int | float) or p >= _SIGNIFICANT:
        return ""
    return (
        f"Files that follow one another look alike (p = {p:.2g}): the images may come from series, and "
        "random splits may share them; give them a group, or freeze splits"
    )


def done_by_kind(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Count what was done to training samples, by the kind of issue that decided.

    Parameters
    ----------
    summary : `curate/summary.json`; `kinds` maps each kind to counts by action

    Returns
    -------
    `decided by` in words, then `dropped`, `relabelled`, `reweighted`, `kept`.
    """
    kinds = {name: row for name, row in as_mapping(summary.get("kinds")).items() if isinstance(row, Mapping)}
    rows = [
        {"decided by": words} | {title: int(kinds[kind].get(action, 0)) for action, title in _ACTIONS.items()}
        for kind, words in (_DECIDED_BY | {name: name for name in kinds if name not in _DECIDED_BY}).items()
        if kind in kinds
    ]
    return pd.DataFrame(rows)


def kept_for_review(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """List why suspects wait for a reviewer, in words, and how many of them."""
    protected = [
        (f"in training, because {PROTECTIONS.get(name, name)}", int(count))
        for name, count in as_mapping(summary.get("protection")).items()
        if count
    ]
    outside = as_mapping(summary.get("outside_training"))
    return protected + [
        (f"suspected labels in {name}", int(count)) for name, count in outside.items() if count
    ]


def rare_classes(summary: Mapping[str, Any]) -> str:
    """Name the first of the classes that curation took for rare, and count the others."""
    names = summary.get("rare_classes")
    if not isinstance(names, list):
        return ""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(str(name) for name in names[:_MAX_NAMED]) + more


def render_page(results: Results) -> str:
    """Return the whole of `index.html`; the same results give the same bytes."""
    detected, curated = (results.summaries.get(stage, {}) for stage in ("detect_noise", "curate"))
    pictures = {stage: pictures_of(results, stage) for stage in _OWN_SECTION}
    named = {
        picture.name: _shown(picture)
        for picture in results.pictures
        if picture.stage == "evaluate" and picture.name in names_of("evaluate")
    }
    survival = survival_rows(results.table("augment/survival.csv"))
    treatments = treatment_rows(results.table("evaluate/treatments.csv"))
    recalls = recall_rows(results.table("evaluate/per_class.csv"))
    made = (pictures["augment"], pictures["synthesize"], survival, results.quality)
    context: dict[str, Any] = {
        "results": results,
        "models": MODELS,
        "lower_is_better": LOWER_IS_BETTER,
        "max_rows": MAX_ROWS,
        "headline": headline(results),
        "cards": [card for metric in HEADLINE if (card := score_card(results, metric))],
        "score_rows": score_rows(results),
        "outside_interval": values_outside_interval(results),
        "calibration": calibration_rows(results),
        "cross_validation": cross_validation_rows(results),
        "noise": results.metrics.get("noise", {}),
        "issues": text_table(found_by_split(detected)),
        "switched_off": switched_off(detected),
        "order": order_line(detected),
        "pictures": pictures,
        "decisions": text_table(done_by_kind(curated)),
        "kept_for_review": kept_for_review(curated),
        "rare": rare_classes(curated),
        "reasons": text_table(results.table("curate/reasons.csv")),
        "treatments": treatments,
        "recalls": recalls,
        "survival": survival,
        "any_made": any(made),
        "gate": gate_table(results.quality),
        "gan_line": gan_line(results.synthesis, results.quality),
        "gan_notes": gan_notes(results.synthesis),
        "fallbacks": fallbacks(results),
        "not_needed": not_needed_line(results.quality),
        "requested": text_table(requested_table(results.quality)),
        "snapshots": text_table(snapshot_table(results.table("synthesize/gan_scores.csv"), results.quality)),
        "nearness": nearness(results.quality),
        "evaluate_pictures": named,
        "other_pictures": [
            _shown(picture)
            for picture in results.pictures
            if picture.stage not in _OWN_SECTION
            and not (picture.stage == "evaluate" and picture.name in named)
        ],
        "class_counts": text_table(counts_by_split(results.table("ingest/class_counts.csv"))),
        "quarantine": text_table(results.table("ingest/quarantine.parquet")),
        "duplicates": text_table(results.table("ingest/duplicates.parquet")),
        "summaries": {stage: flat_rows(summary) for stage, summary in results.summaries.items()},
    }
    return render_template("page.html.j2", context)


def pictures_of(results: Results, stage: str) -> list[dict[str, str]]:
    """Return the pictures of a stage as the template shows them: in the order of their table, then others."""
    order = {name: number for number, name in enumerate(names_of(stage))}
    pictures = [picture for picture in results.pictures if picture.stage == stage]
    pictures.sort(key=lambda picture: order.get(picture.name.split("/")[0], len(order)))
    return [_shown(picture) for picture in pictures]


def headline(results: Results) -> tuple[str, str]:
    """Return the verdict in a sentence, and its kind: `better`, `worse`, `open` or `none`."""
    gain = results.metrics.get("gain", {}).get("finetune", {}).get("balanced_accuracy")
    if gain is None:
        return "No models were compared", "none"
    outcome = verdict("balanced_accuracy", gain)
    points = f"{100 * abs(gain['value']):.1f} points of balanced accuracy"
    if outcome == "better":
        return f"The treatments bought {points}", "better"
    if outcome == "worse":
        return f"The treatments cost {points}", "worse"
    return "The treatments are not shown to help on this test set", "open"


def score_card(results: Results, metric: str) -> dict[str, Any] | None:
    """Put one metric of every model on one scale, with the fine-tuned model's gain; None without scores."""
    scores = {
        name: results.metrics["models"][name][metric]
        for name in MODELS
        if metric in results.metrics.get("models", {}).get(name, {})
    }
    if not scores:
        return None
    ends = [value for figures in scores.values() for value in figures.values()]
    low, high = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    percent = 100 / max(high - low, 1e-9)  # of the scale's width, for each unit of the metric
    gain = results.metrics.get("gain", {}).get("finetune", {}).get(metric)
    return {
        "title": METRICS[metric],
        "low": low,
        "high": high,
        "bars": [
            {
                "name": name,
                **figures,
                "dot": round(percent * (figures["value"] - low), 2),
                "left": round(percent * (figures["low"] - low), 2),
                "width": round(percent * (figures["high"] - figures["low"]), 2),
            }
            for name, figures in scores.items()
        ],
        "gain": gain,
        "verdict": verdict(metric, gain) if gain else "",
    }


def score_rows(results: Results) -> list[dict[str, Any]]:
    """List the metrics, each with the scores of the models and their gains over the baseline."""
    models, gains = results.metrics.get("models", {}), results.metrics.get("gain", {})
    rows = []
    for metric, title in METRICS.items():
        if not any(metric in figures for figures in models.values()):
            continue
        gained = {name: figures[metric] for name, figures in gains.items() if metric in figures}
        rows.append(
            {
                "metric": metric,
                "title": title,
                "models": {name: figures.get(metric) for name, figures in models.items()},
                "gain": {name: (gain, verdict(metric, gain)) for name, gain in gained.items()},
            }
        )
    return rows


def calibration_rows(results: Results) -> list[tuple[str, float, float]]:
    """List title, temperature and calibration error before it of each model that has a temperature."""
    rows = results.metrics.get("calibration", {})
    return [
        (title, rows[name]["temperature"], rows[name]["error_before"])
        for name, title in MODELS.items()
        if rows.get(name, {}).get("temperature", 1.0) != 1.0
    ]


def cross_validation_rows(results: Results) -> list[dict[str, Any]]:
    """List the metrics, each with the scores of the models on the folds that they left out."""
    found = results.metrics.get("cross_validation", {})
    metrics = [metric for metric in METRICS if any(metric in figures for figures in found.values())]
    return [
        {
            "title": METRICS[metric],
            "models": {name: found[name].get(metric) for name in MODELS if name in found},
        }
        for metric in metrics
    ]


def values_outside_interval(results: Results) -> list[str]:
    """Return the metrics with a value outside its own interval: the page explains these."""
    outside = {
        metric
        for figures in results.metrics.get("models", {}).values()
        for metric, figure in figures.items()
        if not figure["low"] <= figure["value"] <= figure["high"]
    }
    return [METRICS[metric] for metric in METRICS if metric in outside]


def treatment_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the classes, each with its bar: percent of the largest class's total that each part takes."""
    if table.empty:
        return []
    parts = ["real", "augmented", "synthesised"]
    largest = max(table[parts].sum(axis=1).max(), table["given"].max(), 1)
    rows = []
    for row in table.to_dict("records"):
        bar = {name: round(100 * row[name] / largest, 2) for name in parts}
        rows.append({**row, "bar": bar, "total": sum(row[name] for name in parts)})
    return rows


def recall_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the classes, the hardest first: test images, and recall and F1 of each model."""
    if table.empty:
        return []
    rows = []
    for name, group in table.groupby("class", sort=False):
        by_model = group.set_index("model")
        rows.append(
            {
                "class": name,
                "support": int(group["support"].iloc[0]),
                "recall": by_model["recall"].to_dict(),
                "f1": by_model["f1"].to_dict(),
            }
        )
    return sorted(
        rows, key=lambda row: (pd.isna(row["recall"].get("finetune")), row["recall"].get("finetune"))
    )


def counts_by_split(table: pd.DataFrame) -> pd.DataFrame:
    """Pivot rows of `class`, `split` and `count` to a row a class and a column a split; else change nothing.

    A row without a class counts unlabelled images.
    """
    if list(table.columns) != ["class", "split", "count"]:
        return table
    table = table.assign(**{"class": table["class"].fillna("").replace("", "no label")})
    wide = table.pivot_table("count", "class", "split", aggfunc="sum", fill_value=0, sort=False)
    return wide.astype(int).reset_index()


def _shown(picture: Picture) -> dict[str, str]:
    """Return a picture as the template shows it; `data` is empty for one that is too large."""
    return {
        "place": f"reports/pages/{picture.stage}/{picture.name}",
        "caption": caption_of(picture.stage, picture.name),
        "data": png_uri(picture.data),
    }
