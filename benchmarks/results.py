"""Results of measurements that take hours, a line of JSON each: what is there is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.errors import WinnowError

Row = dict[str, Any]


def read_results(path: Path, wanted: Callable[[Row], bool]) -> list[Row]:
    """The rows of the file that `wanted` says yes to; none where there is no file.

    Raises
    ------
    WinnowError
        For a line that is no result, with its number.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            same = wanted(row)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise WinnowError(f"{path}:{number} is no result ({error}): take the line out") from error
        if same:
            rows.append(row)
    return rows
