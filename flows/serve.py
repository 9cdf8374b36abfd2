"""Serve the flow as a deployment that a Prefect server starts by the clock: `python -m flows.serve`.

The schedule lives on the server, so there has to be one: a temporary server would forget it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from flows.pipeline import check_server, pipeline
from stages.errors import WinnowError
from stages.workflow.params import load_params
from stages.workflow.stage import clean_exit


def check_cron(text: str) -> str:
    """Return a cron expression of five fields.

    Raises
    ------
    WinnowError
        For anything else.
    """
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=text)
    except ValidationError as error:
        raise WinnowError(
            f'--cron {text!r} is no cron expression: five fields are needed, such as "0 3 * * *" (every '
            "night at three)"
        ) from error
    return text


def main(argv: list[str] | None = None) -> None:
    """Serve the pipeline on a schedule until Ctrl-C; needs a Prefect server (`make ui`)."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=main.__doc__)
    when = parser.add_mutually_exclusive_group(required=True)
    when.add_argument(
        "--every", type=float, metavar="SECONDS", help="run each time so many seconds have passed"
    )
    when.add_argument("--cron", metavar="EXPRESSION", help='run by the clock, such as "0 3 * * *"')
    parser.add_argument("--name", default="scheduled", help="of the deployment (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="stages at the same time (default: %(default)s)")
    parser.add_argument("--promote", action="store_true", help="let flows.promote decide after each run")
    options = parser.parse_args(argv)
    with clean_exit("serve"):
        if options.every is not None and not options.every > 0:
            raise WinnowError(f"--every {options.every:g}: seconds must be more than 0")
        if options.cron is not None:
            check_cron(options.cron)
        load_params()
        check_server(needed=True)
        # The runner starts each run as a process of its own, which has to find `stages` and `flows`.
        root = str(Path.cwd())
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        pipeline.serve(
            name=options.name,
            interval=options.every,
            cron=options.cron,
            limit=1,
            parameters={"jobs": options.jobs, "promote": options.promote},
        )


if __name__ == "__main__":
    main()
