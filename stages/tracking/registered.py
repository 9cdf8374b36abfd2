"""A registered model out of MLflow: which version a name stands for now, and its files."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import WinnowError
from stages.tracking.messages import brief
from stages.tracking.model import as_tracking_uri
from stages.tracking.records import Store, open_store, shown_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCHEME = "models:/"
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]+)")


@dataclass(frozen=True)
class Registered:
    """A version of a registered model.

    Attributes
    ----------
    name, version : in the registry
    folder : with its `model.json` and `model.safetensors`
    """

    name: str
    version: str
    folder: Path


def check_address(uri: str) -> None:
    """Refuse, by a WinnowError, what is neither ``models:/NAME@ALIAS`` nor ``models:/NAME/VERSION``."""
    if _ALIAS.fullmatch(uri) is None and _VERSION.fullmatch(uri) is None:
        raise WinnowError(f"{uri!r} is no registered model: {SCHEME}NAME@ALIAS or {SCHEME}NAME/VERSION")


def download_model(uri: str, into: Path) -> Registered:
    """Bring a Winnow model from the registry that tracking writes to.

    Parameters
    ----------
    uri : ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``
    into : a folder for its files; what is there is replaced

    Raises
    ------
    WinnowError
        Where MLflow does not answer, there is no such version, or it is no model of Winnow's.
    """
    check_address(uri)
    try:
        store = open_store()
    except Exception as error:  # whatever a server, a database or a file system has to say
        raise WinnowError(f"MLflow at {shown_uri()} does not answer: {brief(error)}") from error
    try:
        found = _version(store, uri)
    except Exception as error:
        raise WinnowError(f"{uri} is not on {shown_uri()}: {brief(error)}") from error
    name, version = str(found.name), str(found.version)
    _copy_model(store, f"{SCHEME}{name}/{version}", into)
    return Registered(name, version, into)


def _version(store: Store, uri: str) -> ModelVersion:
    if alias := _ALIAS.fullmatch(uri):
        return store.client.get_model_version_by_alias(alias["name"], alias["alias"])
    name, _, version = uri.removeprefix(SCHEME).partition("/")
    return store.client.get_model_version(name, version)


def _copy_model(store: Store, uri: str, into: Path) -> None:
    """Only the folder of weights and description; not the code and pictures beside it."""
    from mlflow.artifacts import download_artifacts

    from stages.learning.store import SPEC, WEIGHTS

    with tempfile.TemporaryDirectory(prefix="winnow-registered-") as place:
        try:
            with as_tracking_uri(store.uri):
                downloaded = Path(download_artifacts(artifact_uri=uri, dst_path=place))
        except Exception as error:
            raise WinnowError(
                f"the files of {uri} cannot be had from {shown_uri()}: {brief(error)}"
            ) from error
        places = [path.parent for path in sorted(downloaded.rglob(SPEC)) if (path.parent / WEIGHTS).is_file()]
        if not places:
            raise WinnowError(f"{uri} is no model of Winnow's: there is no {SPEC} with a {WEIGHTS} in it")
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        for file in (SPEC, WEIGHTS):
            shutil.copy(places[0] / file, into / file)
