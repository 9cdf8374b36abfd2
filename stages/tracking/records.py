"""Records for MLflow: sent at once, or kept in a spool folder until the server answers again.

A `Record` holds what has not been sent yet. Nothing here raises to a stage: `tracking` catches,
warns once, and keeps the record.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import WinnowError
from stages.tracking.lineage import DIGEST_LENGTH
from stages.tracking.messages import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "winnow"
TAG = "winnow."  # before the name of every tag of ours
_FIRST_CALL = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
LATER_CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100  # of one `log_batch`
_MAX_VALUE = 6000  # characters of a parameter
_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


def tracking_off() -> bool:
    """Whether `WINNOW_TRACKING` says so."""
    return os.environ.get("WINNOW_TRACKING", "").strip().lower() in ("off", "0", "false", "no")


def tracking_root() -> Path:
    """The repository that holds database and spool.

    `DVC_ROOT`, because `dvc exp run --temp` works in a copy that is thrown away.
    """
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or SQLite at the root of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(tracking_root() / 'mlflow.db').as_posix()}"


def shown_uri() -> str:
    """The tracking URI as it may be shown."""
    return without_password(tracking_uri())


def experiment_name() -> str:
    """`MLFLOW_EXPERIMENT_NAME`, or `winnow`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def spool_folder() -> Path:
    """Where records wait for a server that did not answer."""
    return tracking_root() / ".winnow" / "spool"


@dataclass(frozen=True)
class Store:
    """An MLflow server or database, and the experiment in it."""

    client: MlflowClient
    experiment_id: str
    uri: str


def open_store() -> Store:
    """Connect, and make database and experiment where they are missing.

    A server that does not answer is given up after some seconds, by whatever exception MLflow has
    for it.
    """
    quieten()
    from filelock import FileLock
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    uri = tracking_uri()
    locks = tracking_root() / ".winnow" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    # Two processes must not migrate a fresh database at once.
    with patience(_FIRST_CALL), FileLock(locks / "mlflow.lock", timeout=120):
        client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        experiment_id = _experiment(client, uri)
    return Store(client, experiment_id, uri)


def quieten() -> None:
    """Keep MLflow's start-up messages and usage data to itself; call it before MLflow is imported."""
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@contextmanager
def patience(settings: Mapping[str, str]) -> Iterator[None]:
    """MLflow's retries and timeouts for a while, except where the user chose them.

    MLflow's own (7 retries, 120 s) would hold a stage up for minutes. In the environment only for
    a while, because stages inherit it from the flow.
    """
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _experiment(client: MlflowClient, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    found = client.get_experiment_by_name(name)
    if found is None:
        local = uri.startswith("sqlite:")
        place = (tracking_root() / "mlartifacts").as_uri() if local else None
        try:
            # Without the kind MLflow's UI opens on its pages for language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return client.create_experiment(name, artifact_location=place, tags=kind)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    return found.experiment_id


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
    """What is to be logged about a stage and has not been sent yet.

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
        """The inverse of `dataclasses.asdict`."""
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
        from stages.tracking.model import log_model

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
    """Dependencies as MLflow inputs: the UI shows them and `search_runs` finds them by digest.

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
    """A name as MLflow takes it."""
    return _NOT_IN_KEYS.sub("_", name)[:250]


def keep(record: Record, folder: Path) -> None:
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


def new_spool_folder(name: str) -> Path:
    """A folder for one record; their names sort in the order of time."""
    safe = re.sub(r"[^\w\-]", "-", name)
    return spool_folder() / f"{time.time_ns():020d}-{safe}"


def kept_records() -> Iterator[tuple[Path, Record]]:
    """The records in the spool, oldest first, less those whose stage is still running."""
    import psutil

    for path in sorted(spool_folder().glob("*/record.json")):
        try:
            record = Record.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise WinnowError(f"{path} is not a record of Winnow's ({error}): move it away") from error
        if record.status is None and record.pid is not None and psutil.pid_exists(record.pid):
            continue
        yield path.parent, record
