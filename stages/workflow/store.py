"""Connect to MLflow, and say in one line what is wrong where it does not answer.

Messages hold no passwords.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "winnow"
TAG = "winnow."  # before the name of every tag of ours
LATER_CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_FIRST_CALL = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_CAUSES = ("Connection refused", "Name or service not known", "timed out")
_LENGTH = 160  # characters of an error


# --- messages ----------------------------------------------------------------------------------


def warn(message: str) -> None:
    """Print one line on stderr."""
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
    """Say an error in a few words."""
    text = without_password(" ".join(str(error).split())) or type(error).__name__
    for cause in _CAUSES:
        if cause in text:
            return cause.lower()
    return text[:_LENGTH] + ("…" if len(text) > _LENGTH else "")


def without_password(text: str) -> str:
    """Return `text` with the user part taken out of its URLs."""
    return re.sub(r"(\w://)[^/@\s]*@", r"\1", text)


# --- the server or database --------------------------------------------------------------------


def tracking_off() -> bool:
    """Tell whether `WINNOW_TRACKING` switches tracking off."""
    return os.environ.get("WINNOW_TRACKING", "").strip().lower() in ("off", "0", "false", "no")


def tracking_root() -> Path:
    """Return the repository that holds database and spool.

    `DVC_ROOT`, because `dvc exp run --temp` works in a copy that is thrown away.
    """
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or SQLite at the root of the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(tracking_root() / 'mlflow.db').as_posix()}"


def shown_uri() -> str:
    """Return the tracking URI as it may be shown."""
    return without_password(tracking_uri())


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
    # Before MLflow is imported: it keeps start-up messages and usage data to itself.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
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


@contextmanager
def patience(settings: Mapping[str, str]) -> Iterator[None]:
    """Set MLflow's retries and timeouts for a while, except where the user chose them.

    MLflow's own (7 retries, 120 s) would hold a stage up for minutes. In the environment only for
    a while, because stages inherit it from the flow.
    """
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _experiment(client: MlflowClient, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = uri.startswith("sqlite:")
        artifacts = (tracking_root() / "mlartifacts").as_uri() if local else None
        try:
            # Without the kind MLflow's UI opens on its pages for language models.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return client.create_experiment(name, artifact_location=artifacts, tags=kind)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    return experiment.experiment_id
