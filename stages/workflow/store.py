"""What tracking says to people: warnings of one line, without passwords."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient


_CAUSES = ("Connection refused", "Name or service not known", "timed out")
_LENGTH = 160
EXPERIMENT = "winnow"
TAG = "winnow."  # before the name of every tag of ours
_FIRST_CALL = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
LATER_CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"tracking: {message}", file=sys.stderr, flush=True)


def warn_only(what: str, action: Callable[[], None]) -> None:
    """Do something, and only warn where it fails; `what` says what is lost then."""
    try:
        action()
    except Exception as error:
        warn(f"{what}: {brief(error)}")


def report_unknown(stages: Sequence[str], say: Callable[[str], None] = warn) -> None:
    """Say which stages' outputs came from a cache that this server knows nothing of."""
    if stages:
        say(f"no run on this server made the outputs of {', '.join(stages)}: recorded as restored")


def brief(error: BaseException) -> str:
    """An error in a few words."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    for cause in _CAUSES:
        if cause in text:
            return cause.lower()
    return text[:_LENGTH] + ("…" if len(text) > _LENGTH else "")


def without_password(text: str) -> str:
    """`text` with the user part taken out of its URLs."""
    return re.sub(r"(\w://)[^/@\s]*@", r"\1", text)


def shown_path(path: Path) -> str:
    """A path as it is seen from the current folder."""
    return os.path.relpath(path)


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
