"""Serve the review page on this machine until Ctrl-C: `python -m stages.review`."""

from __future__ import annotations

import argparse
import getpass
import os
import socket
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

from stages.curation.reviews import follow_copies, read_duplicates
from stages.dataset.base import CURATED, INGESTED, NOISE, REVIEWS, read_conflicts, read_dataset, read_ledger
from stages.dataset.files import read_array, read_table
from stages.errors import WinnowError
from stages.review.decisions import ReviewLog, one_line
from stages.review.suspects import KINDS, Evidence
from stages.workflow.stage import LOCKS, clean_exit

if TYPE_CHECKING:
    from fastapi import FastAPI

ADDRESS = "127.0.0.1"
_NAME_LENGTH = 100


def main(argv: list[str] | None = None) -> None:
    """Review suspected, conflicting and missing labels in the browser.

    Shows what detect_noise found in data/ingested, with what curate did about it. Every decision is
    a row in data/reviews.csv; `dvc repro` then takes it over.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.review", description=main.__doc__)
    parser.add_argument("--port", type=_port, default=8765, help="on 127.0.0.1 (default: %(default)s)")
    parser.add_argument("--reviewer", help="name in data/reviews.csv (default: the user's name)")
    options = parser.parse_args(argv)
    with clean_exit("review"):
        evidence = read_evidence()
        log = open_log(evidence, reviewer_name(options.reviewer))
        reviewed = log.latest()
        with closing(listen(options.port)) as listener:
            port = listener.getsockname()[1]
            for kind, title in KINDS.items():
                queue = evidence.queue(kind)
                done = sum(name in reviewed for name in queue)
                if queue or kind in ("label_error", "outlier", "near_duplicate"):
                    print(f"{title + ':':<24}{len(queue):>6} to look at, {done} decided")
            print(f"Review them at http://{ADDRESS}:{port} (Ctrl-C ends)", flush=True)
            from stages.review.app import create_app

            serve(create_app(evidence, log), listener)
        count = len(log.written)
        print(f"\n{count} decision{'' if count == 1 else 's'} written to {REVIEWS.as_posix()}.", end=" ")
        print("Next: dvc repro" if count else "Nothing to do for dvc repro.")


def read_evidence() -> Evidence:
    """Read what the last run left in data/; without a ledger where `curate` has not run.

    Raises
    ------
    WinnowError
        Where data/ingested or data/noise is missing, or one is older than the other or than this code.
    """
    base = read_dataset(INGESTED)
    issues = read_table(NOISE / "issues.parquet")
    embeddings = read_array(NOISE / "embeddings.npy", mapped=True)
    pred_probs = read_array(NOISE / "pred_probs.npy", mapped=True)
    ledger = read_ledger(CURATED) if (CURATED / "ledger.parquet").is_file() else None
    return Evidence(base, issues, embeddings, ledger, read_conflicts(INGESTED), pred_probs)


def open_log(evidence: Evidence, reviewer: str) -> ReviewLog:
    """Open data/reviews.csv, where a decision on a copy counts for the image that `ingest` kept."""
    sample_ids, duplicates = evidence.base.samples["sample_id"], read_duplicates()
    follow = partial(follow_copies, sample_ids=sample_ids, duplicates=duplicates)
    return ReviewLog(REVIEWS, LOCKS / "reviews.csv.lock", evidence.classes, reviewer, follow)


def reviewer_name(given: str | None) -> str:
    """Return the name to sign with: the one given, else the user's on this machine."""
    name = given
    if name is None:
        # Python before 3.13 raises KeyError or ImportError where the user has no name.
        with suppress(OSError, KeyError, ImportError):
            name = getpass.getuser()
    name = one_line(name or "")
    if not name or len(name) > _NAME_LENGTH:
        raise WinnowError(f"who reviews? Give a name of 1 to {_NAME_LENGTH} characters with --reviewer")
    return name


def listen(port: int) -> socket.socket:
    """Open a socket on 127.0.0.1; port 0 takes any free one.

    Raises
    ------
    WinnowError
        Where the port is taken or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name != "nt":  # there it would let two servers share the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise WinnowError(
            f"cannot listen on {ADDRESS}:{port} ({error.strerror}): choose another port with --port"
        ) from error
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has shut down
        uvicorn.Server(config).run(sockets=[listener])


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


if __name__ == "__main__":
    main()
