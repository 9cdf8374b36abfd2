"""Record one parent run in MLflow for each execution of the pipeline, whoever ordered it.

The flow makes the parent before its first stage and completes it after the last. Under plain
``dvc repro`` nobody of ours runs after the last stage, so ``evaluate`` makes it and adopts the runs
of its upstreams by key. A run has one parent: a stage that was cached belongs to the execution
that ran it, and later executions link to it.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.workflow.lineage import Lineage, flatten, git_state
from stages.workflow.records import Record, now, send
from stages.workflow.store import LATER_CALLS, TAG, Store, patience

if TYPE_CHECKING:
    from mlflow.entities import Run

HEADLINE = Path("reports/evaluate/metrics.json")
LOCK_FILE = Path("dvc.lock")
PARENT_TAG = "mlflow.parentRunId"
# Stages that only draw have no run: their pictures are artifacts of the run of `page`.
DRAWING, PAGE = "report@", "page"
RAN, CACHED, RESTORED, FAILED, SKIPPED = "ran", "cached", "restored", "failed", "skipped"


@dataclass
class Entry:
    """A stage in an execution.

    Attributes
    ----------
    stage : DVC's address
    result : ran, cached, restored, failed or skipped; None where only the runs can tell
    seconds : wall time of what ran
    key, params : of its `Lineage`, where there is one
    metrics : from the stage's `metrics.json`, for a stage whose run is not known here
    run_id : of the run that made its outputs, once it is known
    """

    stage: str
    result: str | None = None
    seconds: float | None = None
    key: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None


@dataclass
class Execution:
    """An execution of the pipeline in plain values, so that it can wait in the spool.

    Attributes
    ----------
    id : stands in the tag `winnow.execution` of every run that it started
    start, end : milliseconds since 1970
    tags : git commit, dirty or not, experiment, workspace
    metrics, labels : figures and texts of `reports/evaluate/metrics.json`
    lock : the text of `dvc.lock`
    run_id : of the parent, once it was made
    """

    id: str
    start: int
    entries: list[Entry] = field(default_factory=list)
    status: str = "FINISHED"
    end: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    lock: str | None = None
    run_id: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Execution:
        """Make an execution of what `to_json` returned."""
        return cls(**{**content, "entries": [Entry(**item) for item in content["entries"]]})

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    def read_results(self) -> None:
        """Take `dvc.lock` and, where `evaluate` is good, its figures from the workspace."""
        if LOCK_FILE.is_file():
            self.lock = LOCK_FILE.read_text(encoding="utf-8")
        good = (None, RAN, CACHED, RESTORED)
        if any(entry.stage == "evaluate" and entry.result in good for entry in self.entries):
            self.metrics, self.labels = read_metrics(HEADLINE)


def entry_of(lineage: Lineage, result: str | None = None, seconds: float | None = None) -> Entry:
    """Make an `Entry` of what `lineage` says, and of the metrics in the stage's outputs."""
    metrics: dict[str, float] = {}
    for output in lineage.outputs:
        path = Path(output)
        metrics |= read_metrics(path if path.name == "metrics.json" else path / "metrics.json")[0]
    return Entry(lineage.stage, result, seconds, lineage.key, text_params(lineage.params), metrics)


def text_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters as MLflow takes them: dotted names, texts."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in flatten(params).items()
    }


def read_metrics(path: Path) -> tuple[dict[str, float], dict[str, str]]:
    """Read figures and texts of a JSON file of metrics, by dotted names; nothing without the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}, {}
    flat = flatten(content) if isinstance(content, dict) else {}
    figures = {
        name: float(value)
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return figures, {name: value for name, value in flat.items() if isinstance(value, str)}


def workspace_id() -> str:
    """Return 12 hex that name this folder on this machine."""
    return hashlib.sha256(f"{platform.node()}:{Path.cwd().resolve()}".encode()).hexdigest()[:12]


def context_tags(kind: str) -> dict[str, str]:
    """Return the tags of every run: where it ran, on which commit, in which experiment of DVC."""
    commit, dirty = git_state()
    tags = {f"{TAG}kind": kind, f"{TAG}workspace": workspace_id()}
    if commit is not None:
        tags |= {"mlflow.source.git.commit": commit, f"{TAG}git_dirty": str(dirty).lower()}
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if os.environ.get(name):
            tags[name.lower()] = os.environ[name]
    with contextlib.suppress(OSError, KeyError):  # a container without an entry for its user
        tags["mlflow.user"] = getpass.getuser()
    return tags


# --- in MLflow ---------------------------------------------------------------------------------


@patience(LATER_CALLS)
def end_left_open(store: Store, tags: Mapping[str, str]) -> int:
    """Mark runs with these tags that still say RUNNING as KILLED, and count them.

    Call it only where nobody else can be at work on them: with the stage's lock, or the
    workspace's, or after their processes have ended.
    """
    runs = _search(store, tags, "RUNNING")
    for run in runs:
        store.client.set_terminated(run.info.run_id, "KILLED")
    return len(runs)


def begin_execution(execution: Execution, store: Store) -> str:
    """Make the parent run, so that stages can be nested under it while they run."""
    tags = {**execution.tags, f"{TAG}kind": "execution", f"{TAG}execution": execution.id}
    record = Record(_run_name(execution), execution.start, tags=tags)
    send(record, store)
    if record.run_id is None:
        raise RuntimeError("MLflow made no run")
    execution.run_id = record.run_id
    return record.run_id


@patience(LATER_CALLS)
def record_execution(execution: Execution, store: Store) -> list[str]:
    """Complete the parent: find every stage's run, adopt or link it, and log what came out.

    Returns
    -------
    The stages whose outputs no known run made: each got a stub run, tagged as restored.
    """
    parent = execution.run_id or begin_execution(execution, store)
    unknown = [entry.stage for entry in execution.entries if _resolve(entry, execution, store, parent)]
    tags = {
        f"{TAG}stage.{entry.stage}": f"{entry.result} {entry.run_id or ''}".strip()
        for entry in execution.entries
        if entry.result
    }
    tags |= {f"{TAG}{name}": value for name, value in execution.labels.items()}
    tags["mlflow.note.content"] = _note(execution, store)
    params = {name: value for entry in execution.entries for name, value in entry.params.items()}
    when = execution.end or now()
    _log_documents(execution, store, parent)
    send(
        Record(
            _run_name(execution),
            execution.start,
            tags=tags,
            params=params,
            metrics=[(name, value, when, 0) for name, value in execution.metrics.items()],
            run_id=parent,
            status=execution.status,
            end=when,
        ),
        store,
    )
    return unknown


def _search(store: Store, tags: Mapping[str, str], status: str) -> Sequence[Run]:
    """Find the runs with these tags and this status, the newest first."""
    conditions = [f"tags.`{TAG}{name}` = '{value}'" for name, value in tags.items()]
    return store.client.search_runs(
        [store.experiment_id],
        " and ".join([*conditions, f"attributes.status = '{status}'"]),
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )


def _resolve(entry: Entry, execution: Execution, store: Store, parent: str) -> bool:
    """Find the run of a stage; return True where a stub had to be made for it."""
    if entry.result == FAILED:
        runs = _search(store, {"execution": execution.id, "stage": entry.stage}, "FAILED")
        entry.run_id = runs[0].info.run_id if runs else None
        return False
    if entry.result == SKIPPED or entry.key is None or entry.stage.startswith(DRAWING):
        return False
    runs = _search(store, {"kind": "stage", "key": entry.key}, "FINISHED")
    # The newest, and a stub only where there is no other.
    run = min(runs, key=lambda run: run.data.tags.get(f"{TAG}restored") == "true", default=None)
    if run is None:
        if entry.result == RAN:
            return False  # it ran with tracking off, or its record waits in a spool
        entry.result = RESTORED
        entry.run_id = _stub(entry, execution, store, parent)
        return True
    entry.run_id = run.info.run_id
    if entry.result is None:
        ran_here = run.data.tags.get(f"{TAG}execution") == execution.id
        stub = run.data.tags.get(f"{TAG}restored") == "true"
        entry.result = RAN if ran_here else RESTORED if stub else CACHED
    if PARENT_TAG not in run.data.tags:
        store.client.set_tag(run.info.run_id, PARENT_TAG, parent)
    return False


def _stub(entry: Entry, execution: Execution, store: Store, parent: str) -> str | None:
    """Make a run for outputs from elsewhere: a colleague's cache, or a time without tracking."""
    tags = {
        f"{TAG}kind": "stage",
        f"{TAG}stage": entry.stage,
        f"{TAG}key": str(entry.key),
        f"{TAG}restored": "true",
        f"{TAG}workspace": execution.tags.get(f"{TAG}workspace", ""),
        PARENT_TAG: parent,
        "mlflow.note.content": "The outputs were restored from a cache; the run that made them is not "
        "known to this server. The metrics are those of the restored files.",
    }
    when = now()
    record = Record(entry.stage, when, tags=tags, params=dict(entry.params), status="FINISHED", end=when)
    record.metrics = [(name, value, when, 0) for name, value in entry.metrics.items()]
    send(record, store)
    return record.run_id


def _run_name(execution: Execution) -> str:
    commit = execution.tags.get("mlflow.source.git.commit", "")[:7]
    dirty = "+" if execution.tags.get(f"{TAG}git_dirty") == "true" else ""
    return execution.tags.get("dvc_exp_name") or f"pipeline {commit}{dirty}".strip()


def _note(execution: Execution, store: Store) -> str:
    """Write the table that MLflow shows in a run's description, with links to the stages' runs."""
    lines = ["| stage | result | run |", "| --- | --- | --- |"]
    for entry in execution.entries:
        link = f"#/experiments/{store.experiment_id}/runs/{entry.run_id}"
        shown = f"[{entry.run_id[:8]}]({link})" if entry.run_id else "–"
        lines.append(f"| {entry.stage} | {entry.result or '–'} | {shown} |")
        if entry.stage == PAGE and entry.run_id:
            lines.insert(0, f"[All pictures and pages of this execution]({link}/artifacts)\n")
    return "\n".join(lines)


def _log_documents(execution: Execution, store: Store, parent: str) -> None:
    """Log the table of stages and `dvc.lock` as artifacts, whole, so that a repetition is harmless."""
    rows = [[entry.stage, entry.result, entry.run_id, entry.seconds] for entry in execution.entries]
    table = {"columns": ["stage", "result", "run_id", "seconds"], "data": rows}
    # The layout of MLflow's own tables (pandas' `orient="split"`), which its UI shows as one.
    store.client.log_text(parent, json.dumps(table), "stages.json")
    listed = json.dumps([{"path": "stages.json", "type": "table"}])
    store.client.set_tag(parent, "mlflow.loggedArtifacts", listed)
    if execution.lock is not None:
        store.client.log_text(parent, execution.lock, "dvc.lock")
