from pathlib import Path

import pytest

from stages.errors import WinnowError
from stages.review.reviews import COLUMNS, read_reviews

HEADER = ",".join(COLUMNS) + "\n"
GOOD = "00000000000000aa,relabel,cat,r,2026-01-02T10:00:00+00:00,a note\n"


def read(tmp_path: Path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "reviews.csv"
    path.write_bytes(text.encode(encoding))
    return read_reviews(path, ["cat", "dog"])


def test_a_header_alone_is_no_review(tmp_path):
    assert len(read(tmp_path, HEADER)) == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_rows_are_read_as_spreadsheets_write_them(tmp_path, encoding, newline):
    table = read(tmp_path, (HEADER + GOOD + "\n").replace("\n", newline), encoding)
    assert table.to_dict("records") == [
        {"sample_id": "00000000000000aa", "decision": "relabel", "label": "cat", "reviewer": "r",
         "decided_at": "2026-01-02T10:00:00+00:00", "note": "a note"}
    ]  # fmt: skip


def test_the_last_decision_on_a_sample_holds_wherever_it_stands(tmp_path):
    later = GOOD.replace("relabel,cat", "drop,").replace("2026-01-02", "2026-02-02")
    assert read(tmp_path, HEADER + later + GOOD)["decision"].tolist() == ["drop"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("00000000000000aa,drop\n", "line 3: 2 fields"),
        (GOOD.replace("cat", "cow"), "line 3: unknown class 'cow'; the classes are cat, dog"),
        (GOOD.replace("relabel", "burn"), "line 3: decision 'burn'"),
        (GOOD.replace("cat", ""), "line 3: relabel needs"),
        (GOOD.replace("00000000000000aa", "../x"), "line 3: sample_id"),
        (GOOD.replace("2026-01-02T10:00:00+00:00", "yesterday"), "line 3: decided_at"),
        ('00000000000000aa,"drop,,r,2026-01-02,', "not CSV"),
    ],
)
def test_a_malformed_row_is_an_error_with_its_line(tmp_path, row, message):
    with pytest.raises(WinnowError, match=message) as error:
        read(tmp_path, HEADER + GOOD + row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "id,decision\n"])
def test_a_file_without_the_header_says_what_it_must_be(tmp_path, text):
    with pytest.raises(WinnowError, match="line 1: the header must be sample_id,decision"):
        read(tmp_path, text)


def test_a_missing_file_and_foreign_bytes_are_named(tmp_path):
    with pytest.raises(WinnowError, match="is not there"):
        read_reviews(tmp_path / "gone.csv", ["cat"])
    with pytest.raises(WinnowError, match="not UTF-8"):
        read(tmp_path, HEADER + GOOD.replace("a note", "café"), "latin-1")
