"""Print the table at the end of `make demo`: `python -m stages.reporting.summary`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stages.errors import WinnowError, shorten
from stages.reporting.page import done_by_kind, found_by_split, kept_for_review, order_line, switched_off
from stages.reporting.reports import HEADLINE, METRICS, MODELS, Results, fallbacks, read_results, verdict
from stages.reporting.synthesis import synthesis_lines

WIDTH = 100  # columns
_MAX_CLASSES = 20
_NEXT = (
    ("make ui", "every run in MLflow and Prefect"),
    ("make flow", "the same pipeline through Prefect; all of it is cached now"),
    ("open reports/pages/evaluate/index.html", "all of this with pictures, in one page"),
    ("make review", "go through the suspected labels by hand"),
    ("dvc metrics diff", "these figures against the last commit's"),
)
_WIDEST = max(len(command) for command, _ in _NEXT)


def main() -> None:
    """Print the summary of the last run; exit status 2 where there is none."""
    try:
        text = summarise(read_results(Path("reports")))
    except WinnowError as error:
        print(f"summary: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if hasattr(sys.stdout, "reconfigure"):
        # A class name that the terminal cannot show must not take the table with it.
        sys.stdout.reconfigure(errors="replace")
    print(text)


def summarise(results: Results) -> str:
    """Return the whole summary: plain text, at most `WIDTH` columns.

    Raises
    ------
    WinnowError
        Where the stage evaluate has not written its metrics.
    """
    if not results.metrics.get("models"):
        raise WinnowError("reports/evaluate/metrics.json is not there, or holds no scores: run `dvc repro`")
    parts = [
        score_table(results),
        noise_lines(results),
        issue_table(results),
        curation_table(results),
        treatment_table(results),
        synthesis_text(results),
        unlabeled_line(results),
        "\n".join(["Look further", *(f"  {command:<{_WIDEST}}  {what}" for command, what in _NEXT)]),
    ]
    return "\n\n".join(part for part in parts if part)


def score_table(results: Results) -> str:
    """Tabulate models by headline metrics with intervals, then the gains over the baseline."""
    header = ["", *(METRICS[metric] for metric in HEADLINE)]
    rows = []
    for name, title in MODELS.items():
        figures = results.metrics["models"].get(name)
        if figures:
            rows.append([title, *(_figure(figures[metric]) for metric in HEADLINE)])
    gain = results.metrics.get("gain", {}).get("finetune")
    if gain:
        rows.append(["gain*", *(_figure(gain[metric], signed=True) for metric in HEADLINE)])
        rows.append(["", *(verdict(metric, gain[metric]) for metric in HEADLINE)])
    images = results.metrics.get("test_images", "?")
    title = f"Scores on {images} test images, with {results.level} intervals"
    foot = "* fine-tuned minus baseline on the same resamples; variance over seeds: benchmarks/demo_seeds.py"
    return "\n".join([title, _table([header, *rows]), *([foot] if gain else [])])


def noise_lines(results: Results) -> str:
    """Return precision, recall and F1 of the noise detector, where wrong labels were planted."""
    noise = results.metrics.get("noise")
    if not noise:
        return "Noise detector: nothing was planted, so it cannot be scored here"
    return "\n".join(
        [
            f"Noise detector: {noise['flagged']} labels flagged, {noise['planted']} planted wrong",
            f"  precision {noise['precision']:.3f}   recall {noise['recall']:.3f}   F1 {noise['f1']:.3f}",
        ]
    )


def issue_table(results: Results) -> str:
    """Tabulate the issues by kind and split, and name the checks that were off."""
    summary = results.summaries.get("detect_noise", {})
    table = found_by_split(summary)
    if table.empty:
        return ""
    counts = table.drop(columns="kind")
    table = table[counts.fillna(0).sum(axis=1) > 0]
    lines = ["Found, by split", _table([["", *counts], *_cells(table)])]
    names = [name for name, _ in switched_off(summary)]
    if names:
        lines.append(shorten(f"  not looked for: {', '.join(names)}", WIDTH))
    order = order_line(summary)
    return "\n".join([*lines, *textwrap.wrap(order, WIDTH, initial_indent="  ", subsequent_indent="  ")])


def curation_table(results: Results) -> str:
    """Tabulate what curation did to the training split by what decided, and what it left for review."""
    summary = results.summaries.get("curate", {})
    table = done_by_kind(summary)
    lines = []
    if not table.empty:
        lines += [
            "Done to the training split, by what decided",
            _table([["", *table.columns[1:]], *_cells(table)]),
        ]
    lines += [f"  left for review: {count} {reason}" for reason, count in kept_for_review(summary)]
    return "\n".join(lines)


def treatment_table(results: Results) -> str:
    """Tabulate what was dropped, relabelled, augmented and synthesised by class, and every fallback."""
    table = results.table("evaluate/treatments.csv")
    if table.empty:
        return ""
    columns = ["given", "dropped", "relabelled", "gained", "real", "augmented", "synthesised"]
    shown = table.head(_MAX_CLASSES)
    rows = [
        [
            shorten(str(row["class"]), 20),
            *(str(row[name]) for name in columns),
            _methods(row["synthesised_by"]),
        ]
        for row in shown.to_dict("records")
    ]
    total = ["all", *(str(table[name].sum()) for name in columns), ""]
    lines = ["Training split, by class", _table([["class", *columns, "by"], *rows, total])]
    if len(table) > len(shown):
        more = len(table) - len(shown)
        lines.append(f"  {more} more classes in reports/evaluate/treatments.csv")
    reasons = fallbacks(results)
    if reasons:
        lines.append(f"Synthesis fell back for {len(reasons)} of {len(table)} classes:")
        lines += [
            shorten(f"  {shorten(name, 20)}: {reason}", WIDTH) for name, reason in reasons[:_MAX_CLASSES]
        ]
    if len(reasons) > _MAX_CLASSES:
        lines.append(f"  {len(reasons) - _MAX_CLASSES} more in reports/synthesize/quality.json")
    return "\n".join(lines)


def synthesis_text(results: Results) -> str:
    """Sum up whether labels survived augmentation, and how the generated images did at the gate."""
    lines = synthesis_lines(results.table("augment/survival.csv"), results.quality, results.synthesis)
    wrapped = [textwrap.wrap(shorten(line, 3 * WIDTH), WIDTH, subsequent_indent="  ") for line in lines]
    return "\n".join(line for lines in wrapped for line in lines)


def unlabeled_line(results: Results) -> str:
    """Count the samples without a label and those that reviewers gave one; empty where there are none."""
    samples = results.metrics.get("samples", {})
    unlabeled, labelled = samples.get("unlabeled", 0), samples.get("labelled", 0)
    if not unlabeled + labelled:
        return ""
    return (
        f"Unlabelled: {unlabeled} images are not trained on; reviewers gave {labelled} a label (make review)"
    )


def _figure(figures: dict[str, float], *, signed: bool = False) -> str:
    """Write a score as `0.912 [0.880, 0.940]`, or with the sign of a difference."""
    sign = "+" if signed else ""
    return f"{figures['value']:{sign}.3f} [{figures['low']:{sign}.3f}, {figures['high']:{sign}.3f}]"


def _methods(counts: object) -> str:
    """Turn `gan 40, random 3` into `gan+random`: the column before says how many there are in all."""
    return shorten("+".join(count.split(" ")[0] for count in str(counts).split(", ")), 12)


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """Turn a table into rows of text, empty for null."""
    return [["" if pd.isna(value) else str(value) for value in row] for row in table.itertuples(index=False)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right, with a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  " + "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


if __name__ == "__main__":
    main()
