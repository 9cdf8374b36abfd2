"""Write `data/reviews.csv`: a decision is a row at its end, there whole or not at all.

Several reviewers may write at once: a file lock makes them take turns. Rows that are there, whoever
wrote them and however they are quoted, keep every byte.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pandas as pd

from stages.curation.reviews import COLUMNS, moment, read_reviews
from stages.dataset.files import new_file
from stages.errors import WinnowError

Decision = Literal["keep", "drop", "relabel"]
NOTE_LENGTH = 500  # characters
_LOCK_SECONDS = 10


@dataclass(frozen=True)
class Review:
    """The last decision on a sample; the fields are the file's columns."""

    sample_id: str
    decision: str
    label: str
    reviewer: str
    decided_at: str
    note: str


class ReviewLog:
    """The file of decisions, and what this process has added to it.

    Parameters
    ----------
    path : the CSV file; it must have its header
    lock : file that is locked while `path` is written
    classes : class names that a sample may be relabelled to
    reviewer : written into every row
    follow : what is made of the rows that are read before they are matched to samples
        (`reviews.follow_copies`); by default nothing
    """

    def __init__(
        self,
        path: Path,
        lock: Path,
        classes: Sequence[str],
        reviewer: str,
        follow: Callable[[pd.DataFrame], pd.DataFrame] = lambda reviews: reviews,
    ) -> None:
        self.path = path
        self.reviewer = reviewer
        self._lock = lock
        self._classes = set(classes)
        self._follow = follow
        self._written: list[tuple[Review, bytes]] = []
        self._read: tuple[tuple[int, ...], dict[str, Review]] | None = None

    @property
    def written(self) -> list[Review]:
        """Return what this process decided and did not take back, oldest first."""
        return [review for review, _ in self._written]

    def latest(self) -> dict[str, Review]:
        """Return the last decision on each sample, by its id, as the file is now.

        Raises
        ------
        WinnowError
            Where the file is not what `read_reviews` wants, in its words.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            status = None
        signature = () if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._read
        if known is None or known[0] != signature or not signature:
            table = self._follow(read_reviews(self.path, self._classes))
            rows = table[COLUMNS].itertuples(index=False, name=None)
            known = self._read = (signature, {row[0]: Review(*row) for row in rows})
        return known[1]

    def append(self, sample_id: str, decision: Decision, label: str = "", note: str = "") -> Review:
        """Write a decision at the end of the file.

        Parameters
        ----------
        sample_id : 16 hex
        decision, label : `label` is the new class of a `relabel`, else empty
        note : made `one_line`; at most `NOTE_LENGTH` characters are kept

        Raises
        ------
        WinnowError
            Where the file is malformed, would be after this row, cannot be written, or holds a
            later decision on the sample, which would outrank this one.
        """
        with self._locked():
            now = datetime.now(UTC).replace(microsecond=0)
            known = self.latest().get(sample_id)
            if known is not None and moment(known.decided_at) > now:
                raise WinnowError(
                    f"{self.path} holds a decision on {sample_id} from the future ({known.decided_at}), "
                    "which would outrank this one: correct its decided_at"
                )
            note = one_line(note)[:NOTE_LENGTH].strip()
            review = Review(sample_id, decision, label, self.reviewer, now.isoformat(), note)
            before = self.path.read_bytes()
            newline = "\r\n" if before.partition(b"\n")[0].endswith(b"\r") else "\n"
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator=newline).writerow(getattr(review, name) for name in COLUMNS)
            row = buffer.getvalue().encode("utf-8")
            ended = not before or before.endswith((b"\n", b"\r"))
            self._write(before + (b"" if ended else newline.encode()) + row)
            self._written.append((review, row))
        return review

    def undo(self) -> Review | None:
        """Take the last row of this process out of the file again; None where there is none left.

        Raises
        ------
        WinnowError
            Where somebody changed or removed that row meanwhile.
        """
        with self._locked():
            if not self._written:
                return None
            review, row = self._written[-1]
            before = self.path.read_bytes()
            at = before.rfind(row)
            if at < 0 or before[max(0, at - 1) : at] not in (b"\n", b"\r"):
                raise WinnowError(
                    f"{self.path} no longer holds the row of {review.sample_id} as it was written: "
                    "change it there by hand"
                )
            self._write(before[:at] + before[at + len(row) :])
            self._written.pop()
        return review

    def _write(self, content: bytes) -> None:
        target = self.path.resolve()  # a link stays a link
        self._read = None
        try:
            with new_file(target) as partial:
                with partial.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # a decision is a person's work: it outlives a power cut
                shutil.copymode(target, partial)
                self._check(partial)
        except OSError as error:
            raise WinnowError(f"{self.path} could not be written: {error.strerror or error}") from error

    def _check(self, partial: Path) -> None:
        """Refuse what `curate` would refuse: a class name that CSV readers strip, for one."""
        try:
            read_reviews(partial, self._classes)
        except WinnowError as error:
            detail = str(error).replace(str(partial), str(self.path))
            raise WinnowError(f"nothing was written, {self.path} would be malformed: {detail}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        self._lock.parent.mkdir(parents=True, exist_ok=True)
        # A lock object of its own each time: one object would let every thread of this process in.
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=_LOCK_SECONDS, poll_interval=0.01)
        except Timeout:
            raise WinnowError(f"{self.path} is being written by another process: try again") from None
        try:
            yield
        finally:
            lock.release()


def one_line(text: str) -> str:
    """Return `text` with line breaks and other control characters as single spaces."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
