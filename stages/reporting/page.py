"""Render the page that shows what every stage found and did, in one file that needs nothing else.

Names of classes and files come from strangers: the template escapes all it is given, and the page
forbids itself scripts and anything from elsewhere. A summary that is not there, or is of another shape,
gives empty answers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from stages.dataset.issue_kinds import KINDS, NAMES, PROTECTIONS
from stages.reporting.pictures import caption_of, names_of
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
    requested_table,
    rest_line,
    snapshot_table,
    survival_rows,
)

# What may stand behind a decision, in words.
_DECIDING: dict[str, str] = {
    **NAMES,
    "conflicting_labels": "conflicting labels",
    "unlabeled": "unlabelled",
    "review": "looked at by reviewers",
}

_SPLITS = ("train", "val", "test", "unlabeled")
_ACTIONS = {"drop": "dropped", "relabel": "relabelled", "reweight": "reweighted", "keep": "kept"}
_PLURALS = {"label_errors": "label_error", "outliers": "outlier", "near_duplicates": "near_duplicate"}
_MOST_NAMED = 20
_SURE = 0.05  # p-value under which the order of the files is said to tell something

# Stages whose pictures are on the data card or in sections of their own, and evaluate's in their places.
_ELSEWHERE = ("ingest", "detect_noise", "curate", "augment", "synthesize")
_PLACED = ("recall.png", "confusion.png", "reliability.png", "curves.png", "gan_curves.png")

_MOST_ROWS = 200  # of a table in the page; the file beside it holds all of them


def found_by_split(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Counts by kind of issue and split.

    Parameters
    ----------
    summary : `detect_noise/summary.json`: `splits` maps each split to `samples` and a count a kind,
        `checks` each kind to "on" or to why it is off. Splits may stand at the top, too.

    Returns
    -------
    `kind` in words, a column a split (null where the kind does not apply), and `all` where there are
    several; the first row counts samples. Kinds that are switched off have no row.
    """
    splits = _mapping(summary.get("splits", summary))
    counts = {
        name: {_PLURALS.get(kind, kind): n for kind, n in splits[name].items()}
        for name in _SPLITS
        if isinstance(splits.get(name), Mapping) and "samples" in splits[name]
    }
    checks = _mapping(summary.get("checks"))
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
    """The checks that did not run, in words, each with the reason."""
    checks = _mapping(summary.get("checks"))
    return [(NAMES.get(kind, kind), str(said)) for kind, said in checks.items() if said != "on"]


def order_line(summary: Mapping[str, Any]) -> str:
    """A sentence where the order of the files tells something of the images; else nothing."""
    p = summary.get("non_iid")
    if not isinstance(p, int | float) or p >= _SURE:
        return ""
    return (
        f"Files that follow one another look alike (p = {p:.2g}): the images may come from series, and "
        "random splits may share them; give them a group, or freeze splits"
    )


def done_by_kind(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What was done to training samples, by the kind of issue that decided.

    Parameters
    ----------
    summary : `curate/summary.json`; `kinds` maps each kind to counts by action

    Returns
    -------
    `decided by` in words, then `dropped`, `relabelled`, `reweighted`, `kept`.
    """
    kinds = {name: row for name, row in _mapping(summary.get("kinds")).items() if isinstance(row, Mapping)}
    rows = [
        {"decided by": words} | {title: int(kinds[kind].get(action, 0)) for action, title in _ACTIONS.items()}
        for kind, words in (_DECIDING | {name: name for name in kinds if name not in _DECIDING}).items()
        if kind in kinds
    ]
    return pd.DataFrame(rows)


def kept_for_review(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Why suspects were not touched, in words, and how many: what waits for a reviewer."""
    kept = [
        (f"in training, because {PROTECTIONS.get(name, name)}", int(count))
        for name, count in _mapping(summary.get("protection")).items()
        if count
    ]
    outside = _mapping(summary.get("outside_training"))
    return kept + [(f"suspected labels in {name}", int(count)) for name, count in outside.items() if count]


def rare_classes(summary: Mapping[str, Any]) -> str:
    """The classes that curation took for rare, the first of them by name."""
    names = summary.get("rare_classes")
    if not isinstance(names, list):
        return ""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(str(name) for name in names[:_MOST_NAMED]) + more


def _mapping(content: object) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}


def render_template(name: str, context: Mapping[str, Any], filters: Mapping[str, Callable[..., str]]) -> str:
    """A template of this folder as text; everything in it is escaped, and what is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name).render(context) + "\n"


def render_page(results: Results) -> str:
    """The whole of `index.html`; the same results gives the same bytes."""
    found, done = (results.summaries.get(stage, {}) for stage in ("detect_noise", "curate"))
    placed = [one for one in results.pictures if one.stage == "evaluate" and one.name in _PLACED]
    context: dict[str, Any] = {
        "results": results,
        "models": MODELS,
        "metrics": METRICS,
        "lower_is_better": LOWER_IS_BETTER,
        "headline": headline(results),
        "cards": [card for metric in HEADLINE if (card := score_card(results, metric))],
        "rows": score_rows(results),
        "one_sided": intervals_beside(results),
        "calibration": calibration_rows(results),
        "cross_validation": cross_validation_rows(results),
        "noise": results.metrics.get("noise", {}),
        "found": plain_table(found_by_split(found)),
        "switched_off": switched_off(found),
        "order": order_line(found),
        "found_pictures": pictures_of(results, "detect_noise"),
        "done": plain_table(done_by_kind(done)),
        "kept_for_review": kept_for_review(done),
        "rare": rare_classes(done),
        "reasons": plain_table(results.table("curate/reasons.csv")),
        "done_pictures": pictures_of(results, "curate"),
        **cut("treatments", treatment_rows(results.table("evaluate/treatments.csv"))),
        **cut("recalls", recall_rows(results.table("evaluate/per_class.csv"))),
        **synthesis_context(results),
        "scores": {picture.name: _inline(picture) for picture in placed},
        "gallery": [
            _inline(picture)
            for picture in results.pictures
            if picture.stage not in _ELSEWHERE and picture not in placed
        ],
        "class_counts": plain_table(counts_by_split(results.table("ingest/class_counts.csv"))),
        "quarantine": plain_table(results.table("ingest/quarantine.parquet")),
        "duplicates": plain_table(results.table("ingest/duplicates.parquet")),
        "summaries": {stage: flatten(summary) for stage, summary in results.summaries.items()},
    }
    filters = {"figure": figure_text, "signed": signed_text}
    filters |= {"brief": brief_text, "percent": percent_text}
    return render_template("page.html.j2", context, filters)


def synthesis_context(results: Results) -> dict[str, Any]:
    """What the section on made images shows; `any_synthesis` says whether there is anything to show."""
    augmented = pictures_of(results, "augment")
    generated = pictures_of(results, "synthesize")
    survival = survival_rows(results.table("augment/survival.csv"))
    return {
        "any_synthesis": bool(augmented or generated or survival or results.quality),
        **cut("survival", survival),
        "augment_pictures": augmented,
        "synthesize_pictures": generated,
        "gate": gate_table(results.quality),
        "gan_line": gan_line(results.synthesis, results.quality),
        "gan_notes": gan_notes(results.synthesis),
        "fallbacks": fallbacks(results),
        "rest_line": rest_line(results.quality),
        "requested": plain_table(requested_table(results.quality)),
        "snapshots": plain_table(snapshot_table(results.table("synthesize/gan_scores.csv"), results.quality)),
        "nearness": nearness(results.quality),
    }


def cut(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`rows` under `name`, at most `_MOST_ROWS` of them, and how many were left out."""
    return {name: rows[:_MOST_ROWS], f"{name}_left_out": max(0, len(rows) - _MOST_ROWS)}


def pictures_of(results: Results, stage: str) -> list[dict[str, str]]:
    """Return the pictures of a stage as the template shows them: in the order of their table, then others."""
    order = {name: number for number, name in enumerate(names_of(stage))}
    pictures = [picture for picture in results.pictures if picture.stage == stage]
    pictures.sort(key=lambda picture: order.get(picture.name.split("/")[0], len(order)))
    return [_inline(picture) for picture in pictures]


def headline(results: Results) -> tuple[str, str]:
    """The verdict in a sentence, and its kind: `better`, `worse`, `open` or `none`."""
    gain = results.metrics.get("gain", {}).get("finetune", {}).get("balanced_accuracy")
    if gain is None:
        return "No models were compared", "none"
    said = verdict("balanced_accuracy", gain)
    points = f"{100 * abs(gain['value']):.1f} points of balanced accuracy"
    if said == "better":
        return f"The treatments bought {points}", "better"
    if said == "worse":
        return f"The treatments cost {points}", "worse"
    return "The treatments are not shown to help on this test set", "open"


def score_card(results: Results, metric: str) -> dict[str, Any] | None:
    """One metric of every model on one scale, and the fine-tuned model's gain; None without figures."""
    found = {
        name: results.metrics["models"][name][metric]
        for name in MODELS
        if metric in results.metrics.get("models", {}).get(name, {})
    }
    if not found:
        return None
    ends = [value for figures in found.values() for value in figures.values()]
    low, high = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    gain = results.metrics.get("gain", {}).get("finetune", {}).get(metric)
    return {
        "title": METRICS[metric],
        "low": low,
        "high": high,
        "bars": [{"name": name, **figures, **_strip(figures, low, high)} for name, figures in found.items()],
        "gain": gain,
        "verdict": verdict(metric, gain) if gain else "",
    }


def score_rows(results: Results) -> list[dict[str, Any]]:
    """A row a metric: the figures of each model, the gains of each over the baseline."""
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
    """Title, temperature and former calibration error of each model whose probabilities were changed."""
    rows = results.metrics.get("calibration", {})
    return [
        (title, rows[name]["temperature"], rows[name]["error_before"])
        for name, title in MODELS.items()
        if rows.get(name, {}).get("temperature", 1.0) != 1.0
    ]


def cross_validation_rows(results: Results) -> list[dict[str, Any]]:
    """A row a metric: what each model that leaves folds out scored on them."""
    found = results.metrics.get("cross_validation", {})
    metrics = [metric for metric in METRICS if any(metric in figures for figures in found.values())]
    return [
        {
            "title": METRICS[metric],
            "models": {name: found[name].get(metric) for name in MODELS if name in found},
        }
        for metric in metrics
    ]


def intervals_beside(results: Results) -> list[str]:
    """Metrics with an interval that does not hold its own value: the page explains these."""
    beside = {
        metric
        for figures in results.metrics.get("models", {}).values()
        for metric, figure in figures.items()
        if not figure["low"] <= figure["value"] <= figure["high"]
    }
    return [METRICS[metric] for metric in METRICS if metric in beside]


def treatment_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a class with its bar: percent of the largest class's total that each part takes."""
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
    """A row a class: its test images, and recall and F1 of each model; the hardest class first."""
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
    """A row a class and a column a split, from rows `class`, `split`, `count`; else as it is.

    A row without a class counts unlabelled images.
    """
    if list(table.columns) != ["class", "split", "count"]:
        return table
    table = table.assign(**{"class": table["class"].fillna("").replace("", "no label")})
    wide = table.pivot_table("count", "class", "split", aggfunc="sum", fill_value=0, sort=False)
    return wide.astype(int).reset_index()


def plain_table(table: pd.DataFrame) -> dict[str, Any]:
    """Any table as texts: at most `_MOST_ROWS` rows, how many were left out, and which columns are text."""
    shown = table.head(_MOST_ROWS)
    return {
        "columns": [(str(name), "" if is_numeric_dtype(table[name]) else "text") for name in table.columns],
        "rows": [[cell_text(value) for value in row] for row in shown.itertuples(index=False)],
        "left_out": len(table) - len(shown),
    }


def flatten(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as `a.b.c` with the value as text; those in a list by their number, from 1."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            rows += flatten({str(number): item for number, item in enumerate(value, 1)}, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", cell_text(value)))
    return rows


def cell_text(value: object) -> str:
    """A value as a table shows it: four significant digits, nothing for none."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(item) for item in value)
    return str(value)


def figure_text(value: float | None) -> str:
    """A score to three digits; a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.3f}"


def brief_text(value: float | None) -> str:
    """A figure to two digits; a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.2f}"


def percent_text(value: float | None) -> str:
    """A share as `97.5 %`; a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{100 * value:.1f} %"


def signed_text(value: float) -> str:
    """A difference with its sign, to three digits."""
    return f"{value:+.3f}".replace("-", "−")


def _strip(figures: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    """Where dot and whisker stand on a scale, in percent of its width."""
    span = max(high - low, 1e-9)
    at = {name: round(100 * (figures[name] - low) / span, 2) for name in ("value", "low", "high")}
    return {"dot": at["value"], "left": at["low"], "wide": round(at["high"] - at["low"], 2)}


def _inline(picture: Picture) -> dict[str, str]:
    """A picture as the template shows it; `data` is empty for one that is too large."""
    place = f"pages/{picture.stage}/{picture.name}"
    encoded = base64.b64encode(picture.data).decode()
    return {
        "place": f"reports/{place}",
        "caption": caption_of(picture.stage, picture.name),
        "data": f"data:image/png;base64,{encoded}" if encoded else "",
    }
