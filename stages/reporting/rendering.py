"""Turn values into the text that pages and pictures show, and render the templates of the pages.

Names of classes and files come from strangers: templates escape all that they are given, and what is
not there, or is of another shape than it should be, gives empty text.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from stages.errors import shorten

MAX_ROWS = 200  # of a table in a page; the file beside it holds all of them
_MAX_NAME = 160  # characters of a name or a detail


def render_template(name: str, context: Mapping[str, Any]) -> str:
    """Render a template of this folder; everything in it is escaped, and what is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count_text,
        "percent": percent_text,
        "short": short_text,
        "figure": lambda value: decimal_text(value, 3),
        "brief": lambda value: decimal_text(value, 2),
        "signed": lambda value: f"{value:+.3f}".replace("-", "−"),
    }
    return environment.get_template(name).render(context) + "\n"


def png_uri(png: bytes) -> str:
    """Return a `data:` address that holds a PNG; empty for no bytes."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else ""


def as_mapping(content: object) -> Mapping[str, Any]:
    """Return `content` where it is a mapping, else an empty one."""
    return content if isinstance(content, Mapping) else {}


def as_number(value: object) -> float | None:
    """Return a number of a JSON file or table; None for what is no number, or not a number (NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or pd.isna(value):
        return None
    return float(value)


def as_count(value: object) -> int:
    """Return a count of a JSON file or table; 0 for what is no number."""
    return int(as_number(value) or 0)


def count_text(number: float) -> str:
    """Write a whole number with its thousands apart."""
    return f"{int(number):,}"


def decimal_text(value: float | None, digits: int) -> str:
    """Write a number with so many digits after the point; a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def percent_text(share: float | None) -> str:
    """Write a share of 1 in percent; what is not quite none or all does not say so, and None is a dash."""
    if share is None or pd.isna(share):
        return "–"
    percent = 100 * share
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return "over 99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %"


def short_text(text: object) -> str:
    """Cut a name or detail that somebody wrote to a length that a table can hold."""
    return shorten(str(text), _MAX_NAME)


def label_text(label: object) -> str:
    """Return the name of a class, or say that there is no label."""
    return "no label" if pd.isna(label) else str(label)


def shown_text(shown: int, total: int) -> str:
    """Return how many there are, as `40 of 77` where not all of them are shown."""
    return str(total) if shown == total else f"{shown} of {total}"


def cell_text(value: object) -> str:
    """Write a value as a table shows it: four significant digits, nothing for none."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(item) for item in value)
    return str(value)


def text_table(table: pd.DataFrame) -> dict[str, Any]:
    """Turn any table into text: at most `MAX_ROWS` rows, how many were left out, and the text columns."""
    shown = table.head(MAX_ROWS)
    return {
        "columns": [(str(name), "" if is_numeric_dtype(table[name]) else "text") for name in table.columns],
        "rows": [[cell_text(value) for value in row] for row in shown.itertuples(index=False)],
        "left_out": len(table) - len(shown),
    }


def flat_rows(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """List nested mappings as `a.b.c` with the value as text; those in a list by their number, from 1."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += flat_rows(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            rows += flat_rows({str(number): item for number, item in enumerate(value, 1)}, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", cell_text(value)))
    return rows
