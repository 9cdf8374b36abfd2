"""Features of a frozen backbone, computed once, in the place of images: what trains the head alone."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.dataset import View
from stages.learning.models import Classifier
from stages.learning.names import Device, Precision
from stages.learning.prediction import predict


class FeatureHead(Classifier):
    """The heads of a model by themselves; their parameters are the model's own.

    It takes what `as_features` gives, float32 N×1×V×D, where a model takes images N×H×W×C: views of an
    image lie side by side, so that a flip takes the mirrored one. The first is what counts.
    """

    def __init__(self, model: Classifier) -> None:
        nn.Module.__init__(self)  # without networks of its own
        self.spec = replace(model.spec, image_shape=(1, 1, model.head.in_features))
        self.backbone = nn.Identity()
        self.head = model.head
        self.second_head = model.second_head

    def normalise(self, images: Tensor) -> Tensor:
        """Features of the first view, N×D, as they are."""
        return images[:, 0, 0].float()


def as_features(
    model: Classifier,
    view: View,
    *,
    flip: bool,
    device: Device = "auto",
    precision: Precision = "auto",
) -> View:
    """`view` with features in the place of images, float32 N×1×V×D; V is 2 with `flip`, else 1.

    Parameters
    ----------
    flip : those of the mirrored images as well
    device, precision : of the backbone's forward passes
    """
    views = [view.images, view.images[:, :, ::-1]] if flip else [view.images]
    features = [predict(model, images, device, precision)[1] for images in views]
    return replace(view, images=cast("NDArray[np.uint8]", np.stack(features, axis=1)[:, None]))
