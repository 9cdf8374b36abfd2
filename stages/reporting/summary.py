"""The table at the end of `make demo`: `python -m stages.reporting.summary`."""

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

WIDTH = 100
_MOST_CLASSES = 20
_NEXT = (
    ("make ui", "every run in MLflow and Prefect"),
    ("make flow", "the same pipeline through Prefect; all of it is cached now"),
    ("open reports/pages/evaluate/index.html", "all of this with pictures, in one page"),
    ("make review", "go through the suspected labels by hand"),
    ("dvc metrics diff", "these figures against the last commit's"),
)


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
    """The whole summary: plain text, at most `WIDTH` columns.

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
        found_table(results),
        done_table(results),
        treatment_table(results),
        made_text(results),
        unlabeled_line(results),
        next_lines(),
    ]
    return "\n\n".join(part for part in parts if part)


def score_table(results: Results) -> str:
    """Models × headline metrics with intervals, then the gains over the baseline."""
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
    """Precision, recall and F1 of the noise detector, where labels were planted."""
    noise = results.metrics.get("noise")
    if not noise:
        return "Noise detector: nothing was planted, so it cannot be scored here"
    return "\n".join(
        [
            f"Noise detector: {noise['flagged']} labels flagged, {noise['planted']} planted wrong",
            f"  precision {noise['precision']:.3f}   recall {noise['recall']:.3f}   F1 {noise['f1']:.3f}",
        ]
    )


def found_table(results: Results) -> str:
    """Issues by kind and split, without kinds of which there are none, and the checks that were off."""
    summary = results.summaries.get("detect_noise", {})
    table = found_by_split(summary)
    if table.empty:
        return ""
    counts = table.drop(columns="kind")
    table = table[counts.fillna(0).sum(axis=1) > 0]
    lines = ["Found, by split", _table([["", *counts], *_cells(table)])]
    off = [name for name, _ in switched_off(summary)]
    if off:
        lines.append(shorten(f"  not looked for: {', '.join(off)}", WIDTH))
    order = order_line(summary)
    return "\n".join([*lines, *textwrap.wrap(order, WIDTH, initial_indent="  ", subsequent_indent="  ")])


def done_table(results: Results) -> str:
    """What curation did to the training split by what decided, and what it left for review."""
    summary = results.summaries.get("curate", {})
    table = done_by_kind(summary)
    lines = []
    if not table.empty:
        lines += [
            "Done to the training split, by what decided",
            _table([["", *table.columns[1:]], *_cells(table)]),
        ]
    lines += [f"  left for review: {count} {why}" for why, count in kept_for_review(summary)]
    return "\n".join(lines)


def treatment_table(results: Results) -> str:
    """What was dropped, relabelled, augmented and synthesised by class, and every fallback."""
    table = results.table("evaluate/treatments.csv")
    if table.empty:
        return ""
    columns = ["given", "dropped", "relabelled", "gained", "real", "augmented", "synthesised"]
    shown = table.head(_MOST_CLASSES)
    rows = [
        [
            shorten(str(row["class"]), 20),
            *(str(row[name]) for name in columns),
            _method(row["synthesised_by"]),
        ]
        for row in shown.to_dict("records")
    ]
    total = ["all", *(str(table[name].sum()) for name in columns), ""]
    lines = ["Training split, by class", _table([["class", *columns, "by"], *rows, total])]
    if len(table) > len(shown):
        more = len(table) - len(shown)
        lines.append(f"  {more} more classes in reports/evaluate/treatments.csv")
    fell = fallbacks(results)
    if fell:
        lines.append(f"Synthesis fell back for {len(fell)} of {len(table)} classes:")
        lines += [shorten(f"  {shorten(name, 20)}: {reason}", WIDTH) for name, reason in fell[:_MOST_CLASSES]]
    if len(fell) > _MOST_CLASSES:
        lines.append(f"  {len(fell) - _MOST_CLASSES} more in reports/synthesize/quality.json")
    return "\n".join(lines)


def made_text(results: Results) -> str:
    """Whether labels survived augmentation, what the gate let pass, and how near it is to real images."""
    lines = synthesis_lines(results.table("augment/survival.csv"), results.quality, results.synthesis)
    wrapped = [textwrap.wrap(shorten(line, 3 * WIDTH), WIDTH, subsequent_indent="  ") for line in lines]
    return "\n".join(line for lines in wrapped for line in lines)


def unlabeled_line(results: Results) -> str:
    """How many samples have no label, and how many reviewers gave one; nothing where there are none."""
    samples = results.metrics.get("samples", {})
    left, labelled = samples.get("unlabeled", 0), samples.get("labelled", 0)
    if not left + labelled:
        return ""
    return f"Unlabelled: {left} images are not trained on; reviewers gave {labelled} a label (make review)"


def next_lines() -> str:
    """The commands to look further."""
    wide = max(len(command) for command, _ in _NEXT)
    return "\n".join(["Look further", *(f"  {command:<{wide}}  {what}" for command, what in _NEXT)])


def _figure(figures: dict[str, float], *, signed: bool = False) -> str:
    """`0.912 [0.880, 0.940]`, or with the sign of a difference."""
    sign = "+" if signed else ""
    return f"{figures['value']:{sign}.3f} [{figures['low']:{sign}.3f}, {figures['high']:{sign}.3f}]"


def _method(said: object) -> str:
    """`gan+random` of `gan 40, random 3`: the column before says how many there are in all."""
    return shorten("+".join(part.split(" ")[0] for part in str(said).split(", ")), 12)


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [["" if pd.isna(value) else str(value) for value in row] for row in table.itertuples(index=False)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left and the others to the right, a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  " + "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


if __name__ == "__main__":
    main()
