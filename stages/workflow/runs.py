"""Record a stage as a run in MLflow: what it may log, and what becomes of the run.

Tracking never fails a stage. Where the server does not answer, one warning says so, and what
would have been logged waits in `.winnow/spool`; ``python -m stages.workflow.send`` sends it.
``WINNOW_TRACKING=off`` switches all of it off. No stage depends on this code: a new log line
retrains nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import WinnowError
from stages.workflow.executions import (
    PARENT_TAG,
    Execution,
    context_tags,
    end_left_open,
    entry_of,
    record_execution,
    text_params,
    workspace_id,
)
from stages.workflow.lineage import Lineage, open_repo, pipeline_nodes, stage_lineage
from stages.workflow.params import Params
from stages.workflow.records import (
    Folder,
    Model,
    Record,
    new_spool_folder,
    now,
    refused_message,
    send,
    spool,
)
from stages.workflow.store import (
    TAG,
    Store,
    brief,
    open_store,
    report_unknown,
    tracking_off,
    warn,
    warn_only,
)

EXECUTION = "WINNOW_EXECUTION"  # set by the flow for its stages: the execution that they belong to
PARENT_RUN = "WINNOW_PARENT_RUN"  # likewise: the run that they are nested under
_SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh"}


class StageRun:
    """Takes what a stage logs. Tracking never fails a stage: every method only warns.

    This class itself logs nothing; it is what `WINNOW_TRACKING=off` gives.
    """

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final figures by name."""

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log curves: one row an epoch; `epoch` is the step, the other keys are metric names."""

    def log_artifacts(self, folder: Path) -> None:
        """Log pictures and tables: every file in `folder` (a stage's report)."""

    def log_model(self, folder: Path, example: NDArray[np.uint8]) -> None:
        """Log the model in `folder` (`store.save_model`), with an input example N×H×W×C."""

    def adopt_stages(self) -> None:
        """Make the parent run of this execution when this stage ends well.

        For the last stage of the pipeline: it also adopts the runs of its upstreams, found by
        key. Under the flow, which makes the parent itself, it does nothing.
        """


class TrackedRun(StageRun):
    """A stage's run in MLflow, or in the spool from the first failure on.

    Attributes
    ----------
    record : what has not been sent
    store : None once the server has failed
    """

    def __init__(self, name: str, params: Params | None) -> None:
        self.store: Store | None = None
        self.record = Record(name, now(), pid=os.getpid())
        self._lineage: Lineage | None = None
        self._spool: Path | None = None
        self._adopts = False
        warn_only("what DVC knows of this stage is not recorded", lambda: self._describe(name, params))
        try:
            self.store = open_store()
            tags = {"kind": "stage", "stage": self.record.tags[f"{TAG}stage"], "workspace": workspace_id()}
            end_left_open(self.store, tags)
        except Exception as error:
            self._lose_store(error)
        self._flush()

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final figures by name."""
        when = now()
        self.record.metrics += [(name, float(value), when, 0) for name, value in metrics.items()]
        self._flush()

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log curves in one batch."""
        when = now()
        for number, row in enumerate(rows, start=1):
            step = int(row.get("epoch", number))
            self.record.metrics += [
                (name, float(value), when, step) for name, value in row.items() if name != "epoch"
            ]
        self._flush()

    def log_artifacts(self, folder: Path) -> None:
        """Log the files of `folder` under its own path."""
        if not folder.is_dir():
            warn(f"{folder} is not logged: there is no such folder")
            return
        # A folder that is still being written (`files.new_folder`) is logged by its later name.
        path = folder.with_name(folder.name.removesuffix(".partial"))
        target = path.name if path.is_absolute() else path.as_posix()
        self.record.folders.append(Folder(str(folder.absolute()), target))
        self._flush()

    def log_model(self, folder: Path, example: NDArray[np.uint8]) -> None:
        """Log the model as code with its weights as an artifact; at most two examples are kept."""
        from stages.workflow.models import check_model

        try:
            check_model(folder, example)
        except WinnowError as error:  # no server could take it: nothing for the spool
            warn(f"the model is not logged: {error}")
            return
        with tempfile.TemporaryDirectory(prefix="winnow-example-") as temporary:
            path = Path(temporary) / "example.npy"
            np.save(path, np.asarray(example[:2]), allow_pickle=False)
            self.record.models.append(Model(str(folder.absolute()), str(path), self.record.name))
            self._flush()

    def adopt_stages(self) -> None:
        """Make the parent run when this stage ends well."""
        self._adopts = EXECUTION not in os.environ and self._lineage is not None

    def finish(self, status: str, error: BaseException | None = None) -> None:
        """End the run, and complete the execution where this stage is its last."""
        self.record.status, self.record.end = status, now()
        if error is not None:
            text = " ".join(str(error).split()) or type(error).__name__
            self.record.tags[f"{TAG}error"] = text[:500]
        self._flush()
        if status != "FINISHED" or not self._adopts:
            return
        try:
            execution = _execution_of(self._lineage)
        except Exception as problem:
            warn(f"no parent run for this execution: {brief(problem)}")
            return
        if self.store is not None:
            try:
                report_unknown(record_execution(execution, self.store))
                return
            except Exception as problem:
                self._lose_store(problem)
        self.record.execution = execution.to_json()
        self._flush()

    def _describe(self, name: str, params: Params | None) -> None:
        """Note tags, parameters and inputs, from DVC where it started this stage."""
        record = self.record
        record.tags = {f"{TAG}stage": name, f"{TAG}lineage": "none: run by hand"}
        record.tags |= context_tags("stage")
        if "DVC_STAGE" not in os.environ:
            values = params.model_dump(mode="json") if params is not None else {}
            relevant = {
                key: value for key, value in values.items() if key == name or not isinstance(value, dict)
            }
            record.params = text_params(relevant)
            return
        address = os.environ["DVC_STAGE"]
        record.name = address.rpartition(":")[2]
        record.tags |= {f"{TAG}stage": address, f"{TAG}execution": execution_id()}
        if os.environ.get(PARENT_RUN):
            record.tags[PARENT_TAG] = os.environ[PARENT_RUN]
        with open_repo() as repo:
            lineage = self._lineage = stage_lineage(repo, address)
        record.tags |= {
            f"{TAG}key": lineage.key,
            f"{TAG}lineage": "dvc",
            "mlflow.source.name": lineage.command,
        }
        record.params, record.inputs = text_params(lineage.params), dict(lineage.inputs)

    def _flush(self) -> None:
        """Send what has gathered; after a failure, keep it."""
        if self.store is not None:
            try:
                send(self.record, self.store)
                return
            except Exception as error:
                self._lose_store(error)
        if self._spool is None:
            self._spool = new_spool_folder(self.record.name)
        folder = self._spool
        warn_only("what this stage logs is lost", lambda: spool(self.record, folder))

    def _lose_store(self, error: Exception) -> None:
        self.store = None
        warn(refused_message(error))


@contextmanager
def stage_run(name: str, params: Params | None) -> Iterator[StageRun]:
    """Open the MLflow run of a stage, and end it as FINISHED, FAILED, or KILLED where it was interrupted.

    Parameters
    ----------
    name : of the stage; DVC's own address takes its place where DVC started it
    params : the whole of `params.yaml`; None for a stage that does without
    """
    if tracking_off():
        yield StageRun()
        return
    run = TrackedRun(name, params)
    try:
        yield run
    except KeyboardInterrupt as error:
        run.finish("KILLED", error)
        raise
    except BaseException as error:
        run.finish("FAILED", error)
        raise
    run.finish("FINISHED")


def execution_id() -> str:
    """Return the id of the execution that this stage belongs to.

    The flow says it; under plain `dvc repro` it is the process of DVC, which all of its stages have
    as their ancestor.
    """
    if os.environ.get(EXECUTION):
        return os.environ[EXECUTION]
    pid, started = _orderer()
    return hashlib.sha256(f"{workspace_id()} {pid} {started}".encode()).hexdigest()[:16]


def _orderer() -> tuple[int, int]:
    """Find the process that ordered this one, shells left out: its id, and its start (ms since 1970)."""
    import psutil

    ancestors = [process for process in psutil.Process().parents() if process.name() not in _SHELLS]
    first = ancestors[0] if ancestors else psutil.Process()
    return first.pid, int(first.create_time() * 1000)


def _execution_of(lineage: Lineage | None) -> Execution:
    """Describe this execution, as the last stage of a plain `dvc repro` sees it."""
    if lineage is None:
        raise WinnowError("DVC did not start this stage")
    with open_repo() as repo:
        entries = [
            entry_of(lineage if node.name == lineage.stage else stage_lineage(repo, node.name))
            for node in pipeline_nodes(repo, [lineage.stage])
        ]
    _, start = _orderer()
    execution = Execution(execution_id(), start, entries, end=now(), tags=context_tags("execution"))
    execution.read_results()
    return execution
