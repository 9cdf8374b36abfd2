from pathlib import Path

import pytest

from benchmarks.results import read_results
from stages.errors import WinnowError


def test_only_what_is_wanted_is_read_and_no_file_holds_nothing(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    assert read_results(file, lambda row: True) == []
    file.write_text('{"arm": "none", "seed": 0}\n{"arm": "gan", "seed": 1}\n', "utf-8")
    assert read_results(file, lambda row: row["arm"] == "gan") == [{"arm": "gan", "seed": 1}]


@pytest.mark.parametrize("line", ["{", '{"seed": 1}', "7"])
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: str):
    file = tmp_path / "results.jsonl"
    file.write_text('{"arm": "none"}\n' + line + "\n", "utf-8")
    with pytest.raises(WinnowError, match=r"results.jsonl:2 is no result"):
        read_results(file, lambda row: row["arm"] == "none")
