"""Log a trained classifier as an MLflow model, and bring a registered one back.

A logged model is code, weights, signature, example and requirements; what comes back is the folder of
description and weights, of the version that a name stands for now.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from modulefinder import ModuleFinder
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from stages.errors import WinnowError
from stages.workflow.store import Store, brief, open_store, shown_uri, tracking_root

if TYPE_CHECKING:
    from stages.learning.networks.layers import ModelSpec
    from stages.workflow.records import Model
    from stages.workflow.store import Store


_STAGES = Path(__file__).resolve().parent.parent
_ENTRY = _STAGES / "serving" / "pyfunc.py"
_REQUIRED = ("mlflow", "numpy", "pandas", "pillow", "psutil", "safetensors", "simplejpeg", "torch")
SCHEME = "models:/"
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]+)")


def log_model(store: Store, run_id: str, model: Model) -> str:
    """Log `model` as an output of the run, and return MLflow's id of it."""
    import mlflow.pyfunc
    from mlflow.models import Model as MlflowModel

    example = np.load(model.example, allow_pickle=False)
    spec = check_model(Path(model.source), example)
    logged = store.client.create_logged_model(
        store.experiment_id,
        name=re.sub(r"[/:.%\"']", "-", model.name),
        source_run_id=run_id,
        params=store.client.get_run(run_id).data.params,
    )
    with as_tracking_uri(store.uri), tempfile.TemporaryDirectory(prefix="winnow-model-") as folder:
        MlflowModel.log(
            None,
            model_id=logged.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(_ENTRY),
            artifacts={"model": model.source},
            code_paths=[str(_code(Path(folder)))],
            signature=_signature(spec.classes),
            input_example=_example(example, spec),
            model_config={"read_files": False},  # a key that is not here could not be set when it is loaded
            pip_requirements=requirements(spec.architecture),
            metadata={"classes": spec.classes, "architecture": spec.architecture},
        )
    return str(logged.model_id)


def check_model(folder: Path, example: NDArray[np.uint8]) -> ModelSpec:
    """Return the description of the model in `folder`.

    Raises
    ------
    WinnowError
        Where the folder holds no model, or the example (N×H×W×C) does not fit it.
    """
    from stages.learning.store import WEIGHTS, read_spec

    spec = read_spec(folder)
    if not (folder / WEIGHTS).is_file():
        raise WinnowError(f"{folder / WEIGHTS} is not there")
    if example.dtype != np.uint8 or example.shape[1:] != spec.image_shape:
        raise WinnowError(f"the example, {example.dtype} {example.shape}, is not what {folder} takes")
    return spec


@contextmanager
def as_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI for a while.

    MLflow also puts it into the environment, where it would look like the user's choice.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(cast(str, before))  # None is its own default, whatever it declares
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def model_folder(where: str) -> Iterator[Path]:
    """Open a folder with a trained model: `where` itself, or a copy of the registered model it names.

    Raises
    ------
    WinnowError
        For an address (``models:/NAME@ALIAS``) that tracking's server or database does not know.
    """
    if not where.startswith(SCHEME):
        yield Path(where)
        return
    database = tracking_root() / "mlflow.db"
    # MLflow would make one where there is none.
    if not database.exists() and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise WinnowError(
            f"{where}: there is no {database}: run from the repository's root, or set MLFLOW_TRACKING_URI"
        )
    with tempfile.TemporaryDirectory(prefix="winnow-model-") as folder:
        yield download_model(where, Path(folder) / "model").folder


def requirements(architecture: str) -> list[str]:
    """Return the pinned requirements of a model, without the local part of a version (`+cu128`)."""
    from stages.learning.networks.catalogue import OWN_NETWORKS

    names = _REQUIRED if architecture in OWN_NETWORKS else (*_REQUIRED, "torchvision")
    if architecture.startswith("timm/"):
        names = (*names, "timm")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def code() -> list[str]:
    """List the modules of Winnow's that `serving/pyfunc.py` imports: paths below `stages`, sorted."""
    finder = ModuleFinder([str(_STAGES.parent)])
    finder.run_script(str(_ENTRY))
    files = (getattr(module, "__file__", None) for module in finder.modules.values())
    paths = [Path(file) for file in files if file is not None]
    return sorted({path.relative_to(_STAGES).as_posix() for path in paths if path.is_relative_to(_STAGES)})


def _example(images: NDArray[np.uint8], spec: ModelSpec) -> object:
    """Make the example of a request that MLflow keeps: encoded images, where the model can read them."""
    if spec.preprocessing is None:
        return images
    import pandas as pd
    from PIL import Image

    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG")
        encoded.append(file.getvalue())
    return pd.DataFrame({"image": encoded})


def _signature(classes: Sequence[str]) -> object:
    """Describe what comes out, and the parameters of a request.

    What goes in is not fixed: MLflow would let through either tables with a column of bytes or arrays, and
    `serving.inputs` says better what is wrong with what.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    columns = [ColSpec(DataType.float, f"p_{name}") for name in classes]
    return ModelSignature(
        outputs=Schema([ColSpec(DataType.string, "label"), *columns]),
        params=ParamSchema([ParamSpec("test_time", DataType.string, "none")]),
    )


def _code(folder: Path) -> Path:
    """Copy only the modules that prediction needs, as a package of the same name."""
    package = folder / "stages"
    for name in code():
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_STAGES / name, target)
    return package


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
        if alias := _ALIAS.fullmatch(uri):
            model_version = store.client.get_model_version_by_alias(alias["name"], alias["alias"])
        else:
            model_version = store.client.get_model_version(*uri.removeprefix(SCHEME).split("/"))
    except Exception as error:
        raise WinnowError(f"{uri} is not on {shown_uri()}: {brief(error)}") from error
    name, number = str(model_version.name), str(model_version.version)
    _copy_model(store, f"{SCHEME}{name}/{number}", into)
    return Registered(name, number, into)


def _copy_model(store: Store, uri: str, into: Path) -> None:
    """Copy only description and weights, not the code and pictures beside them."""
    from mlflow.artifacts import download_artifacts

    from stages.learning.store import SPEC, WEIGHTS

    with tempfile.TemporaryDirectory(prefix="winnow-registered-") as temporary:
        try:
            with as_tracking_uri(store.uri):
                downloaded = Path(download_artifacts(artifact_uri=uri, dst_path=temporary))
        except Exception as error:
            raise WinnowError(
                f"the files of {uri} cannot be had from {shown_uri()}: {brief(error)}"
            ) from error
        folders = [
            path.parent for path in sorted(downloaded.rglob(SPEC)) if (path.parent / WEIGHTS).is_file()
        ]
        if not folders:
            raise WinnowError(f"{uri} is no model of Winnow's: there is no {SPEC} with a {WEIGHTS} in it")
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        for file in (SPEC, WEIGHTS):
            shutil.copy(folders[0] / file, into / file)
