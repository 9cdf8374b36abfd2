"""Read what the stages wrote under `reports/`, for the page and for the table in the terminal.

A report that a stage did not write, or that cannot be read, is left out: the page says what it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stages.reporting.rendering import as_mapping

STAGES = ("ingest", "detect_noise", "curate", "augment", "synthesize", "baseline", "train", "finetune")
MODELS = {"baseline": "baseline", "train": "trained", "finetune": "fine-tuned"}

METRICS = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "worst_class_recall": "worst-class recall",
    "accuracy": "accuracy",
    "expected_calibration_error": "calibration error",
}

HEADLINE = ("macro_f1", "balanced_accuracy", "worst_class_recall")
LOWER_IS_BETTER = frozenset({"expected_calibration_error"})

TABLES = (
    "ingest/class_counts.csv",
    "ingest/quarantine.parquet",
    "ingest/duplicates.parquet",
    "curate/reasons.csv",
    "augment/survival.csv",
    "synthesize/gan_history.csv",
    "synthesize/gan_scores.csv",
    "baseline/history.csv",
    "train/history.csv",
    "finetune/history.csv",
    "evaluate/per_class.csv",
    "evaluate/treatments.csv",
)

# Columns that hold text, also where every class is called by a number.
_TEXT = ["class", "label", "model", "synthesised_by", "split", "kind", "protection", "action"]
_TEXT += ["transform", "worst_class", "decision", "predicted", "true_label", "given_label", *MODELS]
_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_PICTURE = 4 * 2**20


@dataclass(frozen=True)
class Picture:
    """A PNG that a stage wrote; `data` is empty where it is too large to be put into the page."""

    stage: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Results:
    """The results of all stages, for the page and for the table in the terminal.

    Attributes
    ----------
    metrics : the content of `evaluate/metrics.json`
    settings : the content of `evaluate/summary.json`
    tables : by name of the stage and file, of `TABLES`
    summaries : the `summary.json` of each stage
    quality : a row a class of `synthesize/quality.json`
    synthesis : the rest of the same file, such as `method` and `gan`
    pictures : in the order of the pipeline, those of `evaluate` last; of `synthesize/progress` the last
    """

    metrics: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    quality: list[dict[str, Any]] = field(default_factory=list)
    synthesis: dict[str, Any] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of `TABLES`; an empty one where it was not written."""
        return self.tables.get(name, pd.DataFrame())

    @property
    def level(self) -> str:
        """Return the confidence of the intervals, as `95 %`."""
        confidence = self.settings.get("confidence")
        return f"{100 * confidence:g} %" if isinstance(confidence, float) else "confidence"


def read_results(reports: Path, evaluate_pictures: Path | None = None) -> Results:
    """Read what the stages wrote, and the pictures that were drawn of it.

    Parameters
    ----------
    reports : the folder of the stages' reports, with the pictures under `pages/`
    evaluate_pictures : the folder of the pictures of `evaluate`, where they are still being drawn
    """
    folders = {stage: reports / stage for stage in (*STAGES, "evaluate")}
    pages = {stage: reports / "pages" / stage for stage in folders}
    pages["evaluate"] = evaluate_pictures or pages["evaluate"]
    pictures = []
    for stage, folder in pages.items():
        # Of the generator's progress the latest step: all of them would be too much for a page.
        steps = sorted((folder / "progress").glob("step_*.png"), key=lambda path: (len(path.name), path.name))
        for path in [*sorted(folder.glob("*.png")), *steps[-1:]]:
            pictures += _picture(stage, path.relative_to(folder).as_posix(), path)
    tables = {name: table for name in TABLES if (table := _table(reports / name)) is not None}
    quality = _content(folders["synthesize"] / "quality.json")
    classes = as_mapping(quality.pop("classes", None))
    summaries = {stage: _content(folder / "summary.json") for stage, folder in folders.items()}
    return Results(
        metrics=_content(folders["evaluate"] / "metrics.json"),
        settings=summaries.pop("evaluate"),
        tables=tables,
        summaries={stage: summary for stage, summary in summaries.items() if summary},
        quality=[{**row, "class": name} for name, row in classes.items() if isinstance(row, Mapping)],
        synthesis=quality,
        pictures=pictures,
    )


def fallbacks(results: Results) -> list[tuple[str, str]]:
    """Return the classes for which synthesis fell back to another method, each with the reason in words."""
    return [
        (str(row["class"]), str(row.get("reason") or row.get("decision")))
        for row in results.quality
        if "fall" in str(row.get("decision", "")).lower()
    ]


def verdict(metric: str, gain: Mapping[str, float]) -> str:
    """Return `better`, `worse`, or `not shown to help` where the interval of a difference includes zero."""
    low, high = gain["low"], gain["high"]
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    if low > 0:
        return "better"
    return "worse" if high < 0 else "not shown to help"


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table with class names as text, also where they are 0 to 9 or `NA`.

    Raises
    ------
    OSError, ValueError
        Where it is not there, or is no table.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in table.columns.difference(_TEXT):
        numbers = pd.to_numeric(table[name].replace("", "nan"), errors="coerce")
        if numbers.notna().any() or (table[name] == "").all():
            table[name] = numbers
    return table


def _table(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    except (OSError, ValueError):
        return None


def _content(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds; an empty one where there is none."""
    try:
        return dict(as_mapping(json.loads(path.read_text("utf-8"))))
    except (OSError, ValueError):
        return {}


def _picture(stage: str, name: str, path: Path) -> list[Picture]:
    try:
        large = path.stat().st_size > _LARGEST_PICTURE
        data = b"" if large else path.read_bytes()
    except OSError:
        return []
    return [Picture(stage, name, data)] if large or data.startswith(_PNG) else []
