"""A trained classifier as an MLflow model: code, weights, signature, example and requirements."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from stages.errors import WinnowError

if TYPE_CHECKING:
    from stages.learning.models import ModelSpec
    from stages.tracking.records import Model, Store

_STAGES = Path(__file__).resolve().parent.parent
# What `learning/pyfunc.py` imports: it travels with the model.
CODE = ("__init__.py", "errors.py", "learning/__init__.py", "learning/models.py", "learning/store.py")
_REQUIRED = ("mlflow", "numpy", "pandas", "safetensors", "torch")


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
            python_model=str(_STAGES / "learning" / "pyfunc.py"),
            artifacts={"model": model.source},
            code_paths=[str(_code(Path(folder)))],
            signature=_signature(spec.image_shape, spec.classes),
            input_example=example,
            pip_requirements=requirements(spec.architecture),
            metadata={"classes": spec.classes, "architecture": spec.architecture},
        )
    return str(logged.model_id)


def check_model(folder: Path, example: NDArray[np.uint8]) -> ModelSpec:
    """The description of the model in `folder`.

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
    """MLflow's global tracking URI for a while.

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


def requirements(architecture: str) -> list[str]:
    """Pinned requirements of a model, without the local part of a version (`+cu128`)."""
    names = _REQUIRED if architecture == "small_cnn" else (*_REQUIRED, "torchvision")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _signature(image_shape: tuple[int, int, int], classes: list[str]) -> object:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    columns = [ColSpec(DataType.float, f"p_{name}") for name in classes]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *image_shape))]),
        outputs=Schema([ColSpec(DataType.string, "label"), *columns]),
    )


def _code(folder: Path) -> Path:
    """Only the modules that prediction needs, as a package of the same name."""
    package = folder / "stages"
    for name in CODE:
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_STAGES / name, target)
    return package
