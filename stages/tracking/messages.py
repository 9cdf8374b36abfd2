"""What tracking says to people: warnings of one line, without passwords."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_CAUSES = ("Connection refused", "Name or service not known", "timed out")
_LENGTH = 160


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"tracking: {message}", file=sys.stderr, flush=True)


def warn_only(what: str, action: Callable[[], None]) -> None:
    """Do something, and only warn where it fails; `what` says what is lost then."""
    try:
        action()
    except Exception as error:
        warn(f"{what}: {brief(error)}")


def report_unknown(stages: Sequence[str], say: Callable[[str], None] = warn) -> None:
    """Say which stages' outputs came from a cache that this server knows nothing of."""
    if stages:
        say(f"no run on this server made the outputs of {', '.join(stages)}: recorded as restored")


def brief(error: BaseException) -> str:
    """An error in a few words."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    for cause in _CAUSES:
        if cause in text:
            return cause.lower()
    return text[:_LENGTH] + ("…" if len(text) > _LENGTH else "")


def without_password(text: str) -> str:
    """`text` with the user part taken out of its URLs."""
    return re.sub(r"(\w://)[^/@\s]*@", r"\1", text)


def shown_path(path: Path) -> str:
    """A path as it is seen from the current folder."""
    return os.path.relpath(path)
