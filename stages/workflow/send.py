"""`python -m stages.workflow.send`: send what could not be logged while the server did not answer."""

from __future__ import annotations

import argparse
import shutil
import sys

from stages.errors import WinnowError
from stages.workflow.executions import Execution, record_execution
from stages.workflow.records import keep, kept_records, send
from stages.workflow.store import brief, open_store, report_unknown, shown_path, shown_uri, spool_folder, warn


def send_spool() -> tuple[int, int]:
    """Send every record that waits in the spool, oldest first; how many went, how many did not.

    Raises
    ------
    WinnowError
        Where the server still does not answer, or a record cannot be read.
    """
    waiting = list(kept_records())
    if not waiting:
        return 0, 0
    try:
        store = open_store()
    except Exception as error:
        raise WinnowError(
            f"MLflow at {shown_uri()} does not answer ({brief(error)}); {len(waiting)} records stay in "
            f"{shown_path(spool_folder())}"
        ) from error
    failed = 0
    for folder, record in waiting:
        if record.status is None and record.run_id is None:
            record.status = "KILLED"  # its process is gone and never said how it ended
        try:
            if record.name:
                send(record, store)
            if record.execution is not None:
                report_unknown(record_execution(Execution.from_json(record.execution), store))
        except Exception as error:
            failed += 1
            warn(f"{shown_path(folder)} could not be sent: {brief(error)}")
            keep(record, folder)
            continue
        shutil.rmtree(folder)
    return len(waiting) - failed, failed


def main(argv: list[str] | None = None) -> None:
    """Send what could not be logged while the MLflow server did not answer."""
    parser = argparse.ArgumentParser(prog="python -m stages.workflow.send", description=main.__doc__)
    parser.parse_args(argv)
    try:
        sent, failed = send_spool()
    except WinnowError as error:
        print(f"tracking: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"tracking: {sent} sent to {shown_uri()}" if sent else "tracking: nothing was sent")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
