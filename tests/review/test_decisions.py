import csv
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from stages.curation.reviews import COLUMNS, follow_copies, read_reviews
from stages.errors import WinnowError
from stages.review import decisions
from stages.review.decisions import NOTE_LENGTH, ReviewLog

HEADER = ",".join(COLUMNS) + "\n"
CLASSES = ["cat", "dog", "a,b", "<i>", '"quoted"', "two\nlines"]
OLD = '00000000000000aa,"relabel",cat,r,2026-01-02T10:00:00+00:00,"said ""no"", twice"\n'
ID = "00000000000000bb"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_bytes(HEADER.encode())
    return path


def log_of(path: Path, reviewer: str = "ada") -> ReviewLog:
    return ReviewLog(path, path.with_name("locks") / "reviews.lock", CLASSES, reviewer)


@pytest.mark.parametrize("before", [HEADER, HEADER + OLD, (HEADER + OLD).rstrip("\n"), HEADER.rstrip("\n")])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_row_comes_behind_what_is_there_and_that_keeps_its_bytes(path, before, newline, mark):
    content = mark + before.replace("\n", newline).encode()
    path.write_bytes(content)
    log_of(path).append(ID, "relabel", "dog", "looks like one")
    after = path.read_bytes()
    assert after.startswith(content)
    added = after[len(content) :].decode().strip("\r\n")
    assert added.split(",")[:4] == [ID, "relabel", "dog", "ada"]
    assert after.endswith(b"\n")
    if "\n" in before:  # a bare header does not say which line ends it wants
        assert after.count(b"\n") == after.count(newline.encode())
    latest = read_reviews(path, CLASSES).set_index("sample_id")
    assert latest.loc[ID, ["decision", "label", "note"]].tolist() == ["relabel", "dog", "looks like one"]
    assert len(latest) == (2 if OLD[:16] in before else 1)


def test_the_time_is_utc_to_the_second(path):
    before = datetime.now(UTC).replace(microsecond=0)
    review = log_of(path).append(ID, "keep")
    when = datetime.fromisoformat(review.decided_at)
    assert when.utcoffset() == timedelta(0)
    assert when.microsecond == 0
    assert before <= when <= datetime.now(UTC)


@pytest.mark.parametrize("label", CLASSES)
def test_any_class_name_survives(path, label):
    log_of(path).append(ID, "relabel", label)
    assert read_reviews(path, CLASSES)["label"].tolist() == [label]


def test_a_note_is_one_line_of_bounded_length(path):
    log_of(path).append(ID, "drop", note="  a\r\nb\x00c\t" + "d" * 1000)
    note = read_reviews(path, CLASSES)["note"].item()
    assert note.startswith("a b c ddd")
    assert len(note) == NOTE_LENGTH


def test_a_row_that_curate_would_refuse_is_not_written(path):
    before = path.read_bytes()
    log = ReviewLog(path, path.with_name("lock"), [" cat"], "ada")
    with pytest.raises(WinnowError, match="nothing was written") as error:
        log.append(ID, "relabel", " cat")
    assert path.read_bytes() == before
    assert "partial" not in str(error.value)
    assert log.written == []
    assert not list(path.parent.glob("*.partial"))


def test_a_file_that_is_malformed_meanwhile_is_left_as_it_is(path):
    log = log_of(path)
    log.append(ID, "keep")
    path.write_text(HEADER + "oops\n")
    with pytest.raises(WinnowError, match="line 2: 1 fields"):
        log.append(ID, "drop")
    assert path.read_text() == HEADER + "oops\n"
    path.unlink()
    with pytest.raises(WinnowError, match="is not there"):
        log.append(ID, "drop")
    assert not path.exists()


def test_undo_takes_out_its_own_rows_last_first_and_nothing_else(path):
    mine, theirs = log_of(path), log_of(path, "bob")
    mine.append(ID, "keep")
    one = path.read_bytes()
    mine.append(ID, "drop")
    assert mine.latest()[ID].decision == "drop"
    theirs.append("00000000000000cc", "drop")
    bob = path.read_bytes().splitlines(keepends=True)[-1]
    assert mine.undo().decision == "drop"
    assert path.read_bytes() == one + bob
    assert mine.undo().decision == "keep"
    assert mine.undo() is None
    assert path.read_bytes() == HEADER.encode() + bob


def test_undo_leaves_a_row_that_was_changed_by_hand(path):
    log = log_of(path)
    log.append(ID, "keep")
    edited = path.read_text().replace("keep", "drop")
    path.write_text(edited)
    with pytest.raises(WinnowError, match="no longer holds"):
        log.undo()
    assert path.read_text() == edited


def test_a_decision_that_a_later_one_outranks_is_refused(path):
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    path.write_text(HEADER + f"{ID},keep,,r,{later},\n")
    with pytest.raises(WinnowError, match="from the future"):
        log_of(path).append(ID, "drop")


def test_changes_by_others_are_seen(path):
    log = log_of(path)
    assert log.latest() == {}
    log_of(path, "bob").append(ID, "drop")
    assert log.latest()[ID].reviewer == "bob"


def test_decisions_are_matched_to_samples_as_they_are_followed(path):
    path.write_text(HEADER + OLD)
    here = pd.Series([ID])
    copies = pd.DataFrame({"sample_id": [OLD[:16]], "kept_id": [ID]})
    follow = partial(follow_copies, sample_ids=here, duplicates=copies)
    log = ReviewLog(path, path.with_name("lock"), CLASSES, "ada", follow)
    assert {name: review.label for name, review in log.latest().items()} == {ID: "cat"}
    log.append(ID, "drop")
    assert log.latest()[ID].decision == "drop"
    log.undo()
    assert log.latest()[ID].decision == "relabel"
    assert path.read_text() == HEADER + OLD


@pytest.mark.skipif(os.name == "nt", reason="links and modes are POSIX's")
def test_a_link_stays_a_link_and_modes_stay(path):
    real = path.with_name("real.csv")
    path.rename(real)
    real.chmod(0o640)
    path.symlink_to(real)
    log_of(path).append(ID, "keep")
    assert path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert len(read_reviews(real, CLASSES)) == 1


def test_threads_of_one_log_lose_nothing(path):
    log = log_of(path)
    ids = [f"{number:016x}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: log.append(name, "keep"), ids))
    assert sorted(log.latest()) == ids
    assert sorted(review.sample_id for review in log.written) == ids


def _append_some(path: Path, who: int) -> None:
    decisions._LOCK_SECONDS = 600  # a busy machine is not what is tested
    log = log_of(path, f"reviewer {who}")
    for number in range(10):
        log.append(f"{who * 100 + number:016x}", "drop")


def test_processes_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_some, args=(path, who)) for who in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert len({row["sample_id"] for row in rows}) == 30


@pytest.mark.parametrize("when", ["2026-W01-1", "2026-01-02x10:00", "2026-01-02T10:00:00,5+00:00"])
def test_every_time_that_is_taken_can_be_ordered(path, when):
    path.write_text(HEADER + f'{ID},keep,,r,"{when}",\n{ID},drop,,r,2025-01-02T10:00:00,\n')
    assert read_reviews(path, CLASSES)["decision"].tolist() == ["keep"]
