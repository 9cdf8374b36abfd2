"""Record the flow's own run in MLflow: the parent of the stages that it starts, with links to the others."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from flows.workspace import Outcome
from stages.workflow.executions import (
    CACHED,
    RAN,
    RESTORED,
    Entry,
    Execution,
    begin_execution,
    context_tags,
    end_left_open,
    entry_of,
    record_execution,
    workspace_id,
)
from stages.workflow.lineage import open_repo, stage_lineage
from stages.workflow.records import Record, new_spool_folder, now, refused_message, spool
from stages.workflow.runs import EXECUTION, PARENT_RUN
from stages.workflow.store import Store, brief, open_store, report_unknown, tracking_off


class Parent:
    """The flow's run: begins with the flow and is completed at its end; like all tracking it only warns.

    Parameters
    ----------
    warn : told what could not be recorded

    Attributes
    ----------
    execution : what will be recorded
    environment : tells the stages where they belong
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._store: Store | None = None
        self.execution = Execution(uuid.uuid4().hex[:16], now())
        self.environment = {EXECUTION: self.execution.id}
        if tracking_off():
            return
        self.execution.tags = context_tags("execution")
        try:
            self._store = open_store()
            # The lock of the workspace is ours: what is still RUNNING here was killed.
            end_left_open(self._store, {"kind": "execution", "workspace": workspace_id()})
            self.environment[PARENT_RUN] = begin_execution(self.execution, self._store)
        except Exception as error:
            self._lose_store(error)

    def complete(self, outcomes: Iterable[Outcome], status: str) -> None:
        """Record what became of every stage.

        Parameters
        ----------
        outcomes : one for each stage, in the order of the graph
        status : FINISHED, FAILED or KILLED
        """
        if tracking_off():
            return
        execution = self.execution
        execution.entries = [self._entry(outcome) for outcome in outcomes]
        execution.status, execution.end = status, now()
        execution.read_results()
        if self._store is not None:
            try:
                # After a cancellation no stage is left to end its run itself.
                end_left_open(self._store, {"kind": "stage", "execution": execution.id})
                report_unknown(record_execution(execution, self._store), self._warn)
                return
            except Exception as error:
                self._lose_store(error)
        try:
            record = Record("", execution.start, status=status, execution=execution.to_json())
            spool(record, new_spool_folder("execution"))
        except OSError as error:
            self._warn(f"this execution is not recorded: {error}")

    def _entry(self, outcome: Outcome) -> Entry:
        if outcome.result in (RAN, CACHED, RESTORED):
            try:
                with open_repo() as repo:
                    return entry_of(stage_lineage(repo, outcome.stage), outcome.result, outcome.seconds)
            except Exception as error:
                self._warn(f"what DVC knows of {outcome.stage} is not recorded: {brief(error)}")
        return Entry(outcome.stage, outcome.result, outcome.seconds)

    def _lose_store(self, error: Exception) -> None:
        self._store = None
        self._warn(refused_message(error))
