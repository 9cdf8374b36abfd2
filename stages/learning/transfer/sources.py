"""Where a backbone comes from: a trained model, a file of weights, or torchvision's zoo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

from torch import Tensor

from stages.errors import WinnowError
from stages.learning.models import Classifier, ModelSpec, build_model
from stages.learning.networks.zoo import TORCHVISION
from stages.learning.store import SPEC, WEIGHTS, load_model, read_spec, read_weights

# Layers of the classifier that a file of weights was trained with: its classes are not ours.
_HEADS = ("head.", "fc.", "classifier.")
_COLOUR = 3


def backbone_from(
    source: Path, spec: ModelSpec, *, architecture: str | None, seed: int
) -> tuple[Classifier, str]:
    """A model for `spec`'s classes around the backbone in `source`, and where it came from.

    Parameters
    ----------
    source : a folder that `store.save_model` wrote, or a file of weights (`.safetensors`, or a
        torch state dict; torchvision's own names, or those of `Classifier`)
    spec : the classes, image shape and pixel statistics to train for
    architecture : of the file, where no `model.json` stands beside it
    seed : of the fresh head

    Raises
    ------
    WinnowError
        Where there are no weights, or they fit neither the architecture nor the images.
    """
    if source.is_dir():
        model = load_model(source)
        if model.spec.classes == spec.classes and model.spec.image_shape == spec.image_shape:
            return model, f"{source} with its head"
        architecture, weights = model.spec.architecture, read_weights(source / WEIGHTS)
    else:
        weights = read_weights(source)
        if architecture is None and (source.parent / SPEC).is_file() and source.name == WEIGHTS:
            architecture = read_spec(source.parent).architecture
    if architecture is None:
        raise WinnowError(f"{source} does not say its architecture: name it in finetune.architecture")
    return _around(weights, replace(spec, architecture=architecture), seed, str(source)), str(source)


def pretrained_from_torchvision(name: str, spec: ModelSpec, *, seed: int) -> tuple[Classifier, str]:
    """A model around a backbone with torchvision's weights `name`, downloaded or from its cache.

    `name` is as in torchvision's list of weights: ``ResNet18_Weights.IMAGENET1K_V1``.

    Raises
    ------
    WinnowError
        For an unknown name, and where there is neither a network nor a cached file.
    """
    import torch
    import torchvision

    known = [
        f"{type(weights).__name__}.{weights.name}"
        for architecture in TORCHVISION
        for weights in torchvision.models.get_model_weights(architecture)
    ]
    if name not in known:
        raise WinnowError(f"finetune.pretrained = {name!r} is no known name; known: {', '.join(known)}")
    weights = torchvision.models.get_weight(name)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise WinnowError(
            f"{name} could not be downloaded ({error}): bring {weights.url} to {cache}, or name a file "
            "in finetune.backbone and set finetune.pretrained to null"
        ) from error
    architecture = name.split("_", maxsplit=1)[0].lower()
    transform = weights.transforms()
    pretrained = replace(
        spec,
        architecture=architecture,
        mean=list(transform.mean),
        std=list(transform.std),
        pretrained_stem=True,
    )
    return _around(state, pretrained, seed, name), name


def _around(weights: dict[str, Tensor], spec: ModelSpec, seed: int, where: str) -> Classifier:
    """A fresh model with the backbone's part of `weights` in it; every backbone tensor must fit."""
    own = {
        key.removeprefix("backbone."): value for key, value in weights.items() if not key.startswith(_HEADS)
    }
    model = _fitting_model(own, spec, seed)
    target = model.backbone.state_dict()
    # A grey image model wraps the colour network in a Sequential, at index 1.
    if own and not set(own) & set(target):
        own = {f"1.{key}": value for key, value in own.items()}
    missing = sorted(set(target) - set(own))
    wrong = sorted(key for key in target if key in own and own[key].shape != target[key].shape)
    if missing or wrong:
        detail = f"no {missing[0]}" if missing else f"another shape of {wrong[0]}"
        raise WinnowError(
            f"{where} does not fit {spec.architecture} for images of {spec.image_shape}: {detail} "
            f"({len(missing)} tensors missing, {len(wrong)} of another shape)"
        )
    model.backbone.load_state_dict({key: own[key] for key in target})
    return model


def _fitting_model(own: dict[str, Tensor], spec: ModelSpec, seed: int) -> Classifier:
    """Fresh weights in the shape that the file's first convolution asks for.

    A 7×7 stem over three channels is torchvision's own, also where our images are small or grey.
    """
    stem = own.get("conv1.weight", own.get("1.conv1.weight"))
    if spec.architecture in TORCHVISION and stem is not None and not spec.pretrained_stem:
        own_stem = build_model(spec, seed=seed).backbone.state_dict()["conv1.weight"]
        if stem.shape != own_stem.shape and stem.shape[1] == _COLOUR:
            grey = spec.image_shape[2] == 1
            mean = spec.mean * _COLOUR if grey else spec.mean
            std = spec.std * _COLOUR if grey else spec.std
            spec = replace(spec, pretrained_stem=True, mean=mean, std=std)
    return build_model(spec, seed=seed)
