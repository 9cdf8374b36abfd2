"""MLflow runs and DVC lineage: what a stage logs, and how its run is found again.

Tracking never fails a stage. Where the server does not answer, one warning says so, and what
would have been logged waits in `.winnow/spool`; ``python -m stages.tracking send`` sends it.
``WINNOW_TRACKING=off`` switches all of it off. No stage depends on this code: a new log line
retrains nothing.
"""

from stages.tracking.runs import StageRun, stage_run

__all__ = ["StageRun", "stage_run"]
