"""Send what could not be logged while the server did not answer: `python -m stages.workflow.send`."""

from __future__ import annotations

import argparse
import os
import shutil

from stages.errors import WinnowError
from stages.workflow.executions import Execution, record_execution
from stages.workflow.records import send, spool, spool_folder, spooled_records
from stages.workflow.stage import clean_exit
from stages.workflow.store import brief, open_store, report_unknown, shown_uri, warn


def send_spool() -> tuple[int, int]:
    """Send every record that waits in the spool, oldest first; count those that went, and that did not.

    Raises
    ------
    WinnowError
        Where the server still does not answer, or a record cannot be read.
    """
    waiting = list(spooled_records())
    if not waiting:
        return 0, 0
    try:
        store = open_store()
    except Exception as error:
        raise WinnowError(
            f"MLflow at {shown_uri()} does not answer ({brief(error)}); {len(waiting)} records stay in "
            f"{os.path.relpath(spool_folder())}"
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
            warn(f"{os.path.relpath(folder)} could not be sent: {brief(error)}")
            spool(record, folder)
            continue
        shutil.rmtree(folder)
    return len(waiting) - failed, failed


def main(argv: list[str] | None = None) -> None:
    """Send what could not be logged while the MLflow server did not answer."""
    parser = argparse.ArgumentParser(prog="python -m stages.workflow.send", description=main.__doc__)
    parser.parse_args(argv)
    with clean_exit("tracking"):
        sent, failed = send_spool()
    print(f"tracking: {sent} sent to {shown_uri()}" if sent else "tracking: nothing was sent")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
