"""Serve the classifier through MLflow: this file is logged as code, with the weights as its artifact.

Nothing is pickled. `mlflow.pyfunc.load_model(uri).predict(images)` works in any process that has the
listed requirements; Winnow's own modules that it needs travel with the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from stages.errors import WinnowError
from stages.learning.models import Classifier
from stages.learning.names import TestTime
from stages.learning.prediction import predict
from stages.learning.store import load_model
from stages.serving.inputs import image_batches

PROBABILITY = "p_"  # before a class name: the column of its probability


class RefusedError(WinnowError, MlflowException):
    """An input that the model cannot take; as MLflow's own exception, its server passes the message on."""


class WinnowModel(PythonModel):
    """Image classifier with the artifact `model`: a folder that `store.save_model` wrote."""

    classifier: Classifier
    read_files: bool = False

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights, and from the configuration whether text may name files."""
        self.classifier = load_model(Path(context.artifacts["model"]))
        self.read_files = (context.model_config or {}).get("read_files") is True

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: np.ndarray,  # or what else is taken: MLflow warns of wider types, and of none
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify images.

        Parameters
        ----------
        context : MLflow's; not needed after `load_context`
        model_input : an array N×H×W×C or H×W×C; a `Path` or the bytes of an image file; a list of those;
            or a table with them in the column `image`, where text is base64 of a file's bytes. What is
            not of the model's size is brought to it as `ingest` does. Text names a file only where the
            model was loaded with `model_config={"read_files": True}`.
        params : `test_time`, one of `names.TestTime`: average over shifted or flipped views

        Returns
        -------
        A row an image: `label`, and `p_<class>` for every class, which sum to 1.

        Raises
        ------
        WinnowError
            For what is no image, naming its row, and for an array of another type.
        """
        try:
            return self._table(model_input, _test_time((params or {}).get("test_time", "none")))
        except WinnowError as error:
            raise RefusedError(str(error), error_code=BAD_REQUEST) from error

    def _table(self, model_input: Any, views: TestTime) -> pd.DataFrame:
        spec = self.classifier.spec
        probabilities = [np.zeros((0, len(spec.classes)), np.float32)]
        for images in image_batches(model_input, spec, read_files=self.read_files):
            probabilities.append(predict(self.classifier, images, views=views)[0])
        table = pd.DataFrame(
            np.concatenate(probabilities), columns=[f"{PROBABILITY}{name}" for name in spec.classes]
        )
        best = table.to_numpy().argmax(1)
        table.insert(0, "label", np.asarray(spec.classes, dtype=object)[best])
        return table


def _test_time(name: str) -> TestTime:
    for known in get_args(TestTime):
        if name == known:
            return cast(TestTime, known)
    raise WinnowError(f"test_time = {name!r} is unknown; known: {', '.join(get_args(TestTime))}")


mlflow.models.set_model(WinnowModel())
