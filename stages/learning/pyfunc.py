"""The classifier as MLflow loads it: this file is logged as code, with the weights as its artifact.

Nothing is pickled. `mlflow.pyfunc.load_model(uri).predict(images)` works in any process that has the
listed requirements; Winnow's own modules that it needs travel with the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from stages.errors import WinnowError
from stages.learning.models import Classifier
from stages.learning.store import load_model

PROBABILITY = "p_"  # before a class name: the column of its probability
_BATCH = 512


class WinnowModel(PythonModel):
    """Image classifier with the artifact `model`: a folder that `store.save_model` wrote."""

    classifier: Classifier
    device: torch.device

    def load_context(self, context: PythonModelContext) -> None:
        """Read the weights; on a GPU where there is one."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classifier = load_model(Path(context.artifacts["model"])).to(self.device)

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Classify images.

        Parameters
        ----------
        context : MLflow's; not needed after `load_context`
        model_input : uint8 array N×H×W×C of the size that the model was trained on. One image
            H×W×C is taken too, where MLflow's signature does not stand before it
            (`load_model(uri).unwrap_python_model().predict(None, image)`).
        params : none are known

        Returns
        -------
        A row an image: `label`, and `p_<class>` for every class, which sum to 1.

        Raises
        ------
        WinnowError
            For an array of another type or shape; it names what the model takes.
        """
        height, width, channels = self.classifier.spec.image_shape
        images = np.asarray(model_input)
        if images.ndim == 3:
            images = images[None]
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels):
            raise WinnowError(
                f"the model takes uint8 images N×{height}×{width}×{channels}, "
                f"not {images.dtype} {'×'.join(map(str, images.shape))}"
            )
        classes = self.classifier.spec.classes
        probabilities = np.zeros((len(images), len(classes)), np.float32)
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                batch = torch.from_numpy(np.array(images[start : start + _BATCH])).to(self.device)
                logits = self.classifier(batch)
                probabilities[start : start + _BATCH] = logits.softmax(1).float().cpu().numpy()
        table = pd.DataFrame(probabilities, columns=[f"{PROBABILITY}{name}" for name in classes])
        table.insert(0, "label", np.asarray(classes, dtype=object)[probabilities.argmax(1)])
        return table


mlflow.models.set_model(WinnowModel())
