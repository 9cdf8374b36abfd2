"""Send records to MLflow, or keep them in a spool folder until the server answers again.

A `Record` holds what has not been sent yet. Nothing here raises to a stage: `runs` catches, warns
once, and keeps the record; `python -m stages.workflow.send` sends it later.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import WinnowError
from stages.workflow.lineage import DIGEST_LENGTH
from stages.workflow.store import LATER_CALLS, Store, brief, patience, shown_uri, tracking_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100  # of one `log_batch`
_MAX_VALUE = 6000  # characters of a parameter
_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")


def now() -> int:
    """Return the milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


@dataclass
class Folder:
    """Files to log: everything under `source`, below `target` among the run's artifacts."""

    source: str
    target: str


@dataclass
class Model:
    """A model to log: `store.save_model`'s folder, and an `.npy` file with example images."""

    source: str
    example: str
    name: str


@dataclass
class Record:
    """The part of a stage's log that has not been sent yet.

    Attributes
    ----------
    name : of the run in MLflow; empty where there is only an execution to record
    start, end : milliseconds since 1970
    run_id : of the run, once it was made
    inputs : digest of each dependency by its path
    metrics : key, value, time in milliseconds, step
    status : MLflow's, at the end of the stage
    pid : of the process that still writes this record
    execution : of the parent that is to be made when the run has ended (see `executions`)
    """

    name: str
    start: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    run_id: str | None = None
    status: str | None = None
    end: int | None = None
    pid: int | None = None
    execution: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Record:
        """Make a record of what `dataclasses.asdict` returned."""
        content = dict(content)
        content["metrics"] = [tuple(item) for item in content["metrics"]]
        content["folders"] = [Folder(**item) for item in content["folders"]]
        content["models"] = [Model(**item) for item in content["models"]]
        return cls(**content)


@patience(LATER_CALLS)
def send(record: Record, store: Store) -> None:
    """Send what `record` holds; what was sent leaves it, so that another try repeats nothing."""
    client = store.client
    if record.run_id is None:
        run = client.create_run(
            store.experiment_id, start_time=record.start, tags=record.tags, run_name=record.name
        )
        record.run_id = run.info.run_id
        record.tags = {}
    _send_batches(record, client, record.run_id)
    if record.inputs:
        _send_inputs(client, record.run_id, record.inputs)
        record.inputs = {}
    while record.folders:
        client.log_artifacts(record.run_id, record.folders[0].source, record.folders[0].target or None)
        record.folders.pop(0)
    while record.models:
        from stages.workflow.models import log_model

        log_model(store, record.run_id, record.models[0])
        record.models.pop(0)
    if record.status is not None:
        client.set_terminated(record.run_id, record.status, record.end)
        record.status = None


def _send_batches(record: Record, client: MlflowClient, run_id: str) -> None:
    from mlflow.entities import Metric, Param, RunTag

    while record.tags or record.params or record.metrics:
        tags = list(record.tags.items())[:_MAX_TAGS]
        params = list(record.params.items())[:_MAX_PARAMS]
        metrics = record.metrics[:_MAX_METRICS]
        while len(tags) + len(params) + len(metrics) > _MAX_METRICS:  # the limit of all together
            metrics = metrics[:-_MAX_PARAMS]
        client.log_batch(
            run_id,
            metrics=[Metric(_key(key), value, when, step) for key, value, when, step in metrics],
            params=[Param(_key(key), value[:_MAX_VALUE]) for key, value in params],
            tags=[RunTag(_key(key), value) for key, value in tags],
        )
        record.metrics = record.metrics[len(metrics) :]
        for name, _ in tags:
            del record.tags[name]
        for name, _ in params:
            del record.params[name]


def _send_inputs(client: MlflowClient, run_id: str, inputs: Mapping[str, str]) -> None:
    """Log dependencies as MLflow inputs: the UI shows them and `search_runs` finds them by digest.

    The entities are what `MetaDataset` makes of a local path: a name and a digest, no data.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    client.log_inputs(
        run_id,
        datasets=[
            DatasetInput(
                Dataset(path, digest[:DIGEST_LENGTH], "local", json.dumps({"uri": path})),
                [InputTag(MLFLOW_DATASET_CONTEXT, "dependency")],
            )
            for path, digest in inputs.items()
        ],
    )


def _key(name: str) -> str:
    """Return a name as MLflow takes it."""
    return _NOT_IN_KEYS.sub("_", name)[:250]


def spool(record: Record, folder: Path) -> None:
    """Write what `record` still holds into `folder`, with copies of its files.

    The copies are needed: by the time that they are sent, another run may have replaced the
    originals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items: list[Folder | Model] = [*record.folders, *record.models]
    for number, item in enumerate(items):
        source = Path(item.source)
        if source.is_relative_to(folder):
            continue
        copy = folder / f"{now()}-{number}"
        shutil.copytree(source, copy / "files")
        item.source = str(copy / "files")
        if isinstance(item, Model):
            shutil.copy(item.example, copy / "example.npy")
            item.example = str(copy / "example.npy")
    partial = folder / "record.json.partial"
    partial.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    partial.replace(folder / "record.json")


def spool_folder() -> Path:
    """Return the folder where records wait for a server that did not answer."""
    return tracking_root() / ".winnow" / "spool"


def new_spool_folder(name: str) -> Path:
    """Name a folder for one record; their names sort in the order of time."""
    safe = re.sub(r"[^\w\-]", "-", name)
    return spool_folder() / f"{time.time_ns():020d}-{safe}"


def refused_message(error: BaseException) -> str:
    """Say that MLflow did not take a record, and how to send it from the spool."""
    return (
        f"MLflow at {shown_uri()} does not take this ({brief(error)}); kept in "
        f"{os.path.relpath(spool_folder())}: `python -m stages.workflow.send` sends it"
    )


def spooled_records() -> Iterator[tuple[Path, Record]]:
    """Read the records in the spool, oldest first, less those whose stage is still running."""
    import psutil

    for path in sorted(spool_folder().glob("*/record.json")):
        try:
            record = Record.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise WinnowError(f"{path} is not a record of Winnow's ({error}): move it away") from error
        if record.status is None and record.pid is not None and psutil.pid_exists(record.pid):
            continue
        yield path.parent, record
