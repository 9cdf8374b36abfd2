"""What the cross-validated ensemble is made of, and the digest of all that its figures follow from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.dataset import View
from stages.errors import WinnowError
from stages.learning.machine import digest
from stages.learning.models import Classifier, ModelSpec, build_model
from stages.learning.names import Device
from stages.learning.networks import is_torchvision
from stages.learning.recipe import Recipe, steps_per_epoch
from stages.learning.store import SPEC, read_spec
from stages.learning.transfer.sources import backbone_from, pretrained_from_torchvision

_BACKBONE_LR_FACTOR = 0.1  # of pretrained weights, which a fresh head's rate would wash out
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin"}
# In stages/; tests/noise/test_ensemble.py holds it against what folds.py imports.
_CODE = ["checkpoints.py", "learning", "noise/ensemble.py", "noise/folds.py"]
_LIBRARIES = ("numpy", "scikit-learn", "torch", "torchvision")


@dataclass(frozen=True)
class Ensemble:
    """Which models are trained on the folds, and how; everything but data, seed and device.

    Attributes
    ----------
    models : architectures; each is trained on every fold of every repeat
    folds, repeats : k of the cross-validation, and how often it is done with other seeds and folds
    epochs, batch_size, learning_rate : of each model
    shift : random translation in training by up to so many pixels
    flip : random horizontal flips in training, and the mean over an image and its mirror image in
        prediction
    downweight_suspects : from the second repeat on, a label weighs less in training the less plausible
        the repeats before found it
    pretrained : weights to start from instead of afresh: torchvision's name, for the model of that
        architecture, or a file (`.safetensors` or a torch state dict), for the last of `models`
    """

    models: tuple[str, ...]
    folds: int
    repeats: int
    epochs: int
    batch_size: int
    learning_rate: float
    shift: int = 1
    flip: bool = False
    downweight_suspects: bool = False
    pretrained: str | None = None

    @property
    def pretrained_architecture(self) -> str | None:
        """Which of `models` starts from the pretrained weights."""
        if self.pretrained is None:
            return None
        if _is_file(self.pretrained):
            return self.models[-1]
        return self.pretrained.partition(".")[0].removesuffix("_Weights").lower()

    def start(self, architecture: str, spec: ModelSpec, seed: int) -> Classifier:
        """A model to train, around the pretrained backbone where that is of this architecture.

        Raises
        ------
        WinnowError
            Where there are no such weights (and no network to get them), they do not fit, or they
            come from a model that was trained on the labels at hand.
        """
        spec = replace(spec, architecture=architecture)
        if self.pretrained is None or architecture != self.pretrained_architecture:
            return build_model(spec, seed=seed)
        try:
            if not _is_file(self.pretrained):
                return pretrained_from_torchvision(self.pretrained, spec, seed=seed)[0]
            source = Path(self.pretrained)
            _refuse_own_model(source, spec)
            return backbone_from(source, spec, architecture=architecture, seed=seed)[0]
        except WinnowError as error:
            raise WinnowError(f"detect_noise.pretrained: {error}") from error

    def check(self, spec: ModelSpec) -> None:
        """Raise what `start` would, before hours of training."""
        if self.pretrained is None:
            return
        architecture = self.pretrained_architecture
        if is_torchvision(architecture) and architecture not in self.models:
            raise WinnowError(
                f"detect_noise.pretrained = {self.pretrained!r} is for {architecture}, which is not in "
                f"detect_noise.models ({', '.join(self.models)}): add it there"
            )
        self.start(str(architecture), spec, 0)

    def recipe(self, samples: int, architecture: str) -> Recipe:
        """How the project's training loop trains a member on so many samples."""
        return Recipe(
            epochs=self.epochs,
            steps_per_epoch=steps_per_epoch(samples, self.batch_size),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            backbone_lr_factor=_BACKBONE_LR_FACTOR if architecture == self.pretrained_architecture else 1.0,
            shift=self.shift,
            flip=self.flip,
        )


def inputs_digest(
    train: View,
    others: NDArray[np.uint8],
    groups: NDArray[np.int64] | None,
    ensemble: Ensemble,
    *,
    seed: int,
    device: Device,
) -> str:
    """64 hex that name all that the folds' figures follow from, to the bit.

    Data, choices, seed, the code of this room and of the training loop, the libraries, and the
    machine's arithmetic: a fold that was computed from anything else is not this one's.
    """
    arrays = (train.images, train.labels, train.weights, others, groups)
    facts = [train.classes, asdict(ensemble), seed]
    return digest.inputs_digest(
        arrays, _files(ensemble.pretrained), facts, device=device, libraries=_LIBRARIES
    )


def _is_file(name: str) -> bool:
    """Whether it means a file, there or not; torchvision's names have no slash and one dot."""
    return Path(name).exists() or "/" in name or Path(name).suffix in _WEIGHTS


def _refuse_own_model(source: Path, spec: ModelSpec) -> None:
    if source.is_dir():
        raise WinnowError(f"{source} is a folder; name a file of weights")
    if (source.parent / SPEC).is_file() and read_spec(source.parent).classes == spec.classes:
        raise WinnowError(
            f"{source} was trained on these classes, and would repeat the labels it was shown; name weights "
            "that come from other data"
        )


def _files(pretrained: str | None) -> Iterable[Path]:
    yield from digest.code_files(_CODE)
    if pretrained is not None and Path(pretrained).is_file():
        yield Path(pretrained)
