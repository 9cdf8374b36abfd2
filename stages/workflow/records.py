"""Records for MLflow: sent at once, or kept in a spool folder until the server answers again.

A `Record` holds what has not been sent yet. Nothing here raises to a stage: `tracking` catches,
warns once, and keeps the record.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import WinnowError
from stages.workflow.lineage import DIGEST_LENGTH
from stages.workflow.store import (
    LATER_CALLS,
    Folder,
    Model,
    Record,
    Store,
    now,
    patience,
    spool_folder,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100  # of one `log_batch`
_MAX_VALUE = 6000  # characters of a parameter
_NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")


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
