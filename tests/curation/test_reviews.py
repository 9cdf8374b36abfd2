from pathlib import Path

import pandas as pd
import pytest

from stages.curation.reviews import COLUMNS, follow_copies, read_duplicates, read_reviews
from stages.errors import WinnowError

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


A, B, C, D = ("aa" * 8, "bb" * 8, "cc" * 8, "dd" * 8)


def decided(*rows: tuple[str, str, str]) -> pd.DataFrame:
    """Reviews of ids, with their decisions and times."""
    return pd.DataFrame([(name, what, "", "r", when, "") for name, what, when in rows], columns=COLUMNS)


def followed(reviews: pd.DataFrame, there: list[str], **copies: str) -> dict[str, str]:
    """Decisions by sample, where each of `copies` gave way to what it is set to."""
    names = {"a": A, "b": B, "c": C, "d": D}
    duplicates = pd.DataFrame(
        [(names[copy], names[kept]) for copy, kept in copies.items()], columns=["sample_id", "kept_id"]
    )
    table = follow_copies(reviews, pd.Series(there, dtype="str"), duplicates)
    assert list(table.columns) == COLUMNS
    assert table["sample_id"].is_unique
    return dict(zip(table["sample_id"], table["decision"], strict=True))


def test_a_decision_on_a_copy_counts_for_the_image_that_is_kept():
    reviews = decided((A, "drop", "2026-01-01"), (D, "keep", "2026-01-02"))
    assert followed(reviews, [B, D], a="b") == {B: "drop", D: "keep"}


@pytest.mark.parametrize(
    ("times", "decision"),
    [
        (("2026-01-01", "2026-01-02"), "keep"),
        (("2026-01-02", "2026-01-01"), "drop"),
        (("2026-01-01T10:00:00+02:00", "2026-01-01T09:00:00+00:00"), "keep"),  # 8 o'clock in UTC
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_decisions_on_several_copies_the_latest_holds(times, decision, turned):
    rows = [(A, "drop", times[0]), (B, "keep", times[1])]
    reviews = decided(*(reversed(rows) if turned else rows))
    assert followed(reviews, [B], a="b") == {B: decision}
    assert followed(reviews, [C], a="c", b="c") == {C: decision}


def test_a_decision_stays_with_its_sample_where_that_is_in_the_data():
    """Equal bytes in two files are copies of one id."""
    reviews = decided((A, "drop", "2026-01-01"), (B, "keep", "2026-01-02"))
    assert followed(reviews, [A, B], a="a", c="b") == {A: "drop", B: "keep"}
    assert followed(reviews, [A, B], a="b") == {A: "drop", B: "keep"}


def test_a_decision_stays_unknown_where_what_was_kept_is_gone_too():
    assert followed(decided((A, "drop", "2026-01-01")), [C], a="b") == {A: "drop"}


def test_without_copies_or_decisions_nothing_moves():
    reviews = decided((A, "drop", "2026-01-01"))
    assert followed(reviews, [B]) == followed(reviews, [B], c="b") == {A: "drop"}
    assert followed(decided(), [B], a="b") == {}


def test_duplicates_are_read_where_ingest_left_them(tmp_path):
    none = read_duplicates(tmp_path)
    assert (len(none), list(none.columns)) == (0, ["sample_id", "kept_id"])
    table = pd.DataFrame({"sample_id": [A], "source": ["x.png"], "kept_id": [B]})
    table.to_parquet(tmp_path / "duplicates.parquet")
    assert read_duplicates(tmp_path).to_numpy().tolist() == [[A, B]]
