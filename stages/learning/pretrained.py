"""Load a backbone: from a trained model, a file of weights, torchvision's or timm's zoo."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import Tensor

from stages.errors import WinnowError
from stages.learning.models import Classifier, build_model, members_of
from stages.learning.networks.catalogue import OWN_NETWORKS, reason_against
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.networks.zoo import TIMM, torchvision_names
from stages.learning.store import SPEC, WEIGHTS, read_spec, read_weights

_COLOUR = 3
# torchvision's networks that take other pixels than their weights say, and convert them themselves.
_HALVED = ("googlenet", "inception_v3")
# Keys of densenet's files, which are older than torchvision's network.
_OLD_KEYS = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# Of batch normalisation; not in files from before 2018, such as torchvision's first weights of most ResNets.
_COUNTS = "num_batches_tracked"

Weights = Mapping[str, Tensor]


def backbone_from(
    source: Path, spec: ModelSpec, *, architecture: str | None, seed: int
) -> tuple[Classifier, str]:
    """Build a model for `spec`'s classes around the backbone in `source`; also say where it came from.

    Parameters
    ----------
    source : a folder that `store.save_model` wrote, or a file of weights (`.safetensors`, or a
        torch state dict; torchvision's own names, or those of `Classifier`). Of an ensemble each member
        is taken over.
    spec : the classes, image shape and pixel statistics to train for
    architecture : of the file, where no `model.json` stands beside it
    seed : of fresh heads

    Raises
    ------
    WinnowError
        Where there are no weights, or they fit neither the architecture nor the images.
    """
    folder = source if source.is_dir() else source.parent
    described = source.is_dir() or (source.name == WEIGHTS and (folder / SPEC).is_file())
    trained = read_spec(folder) if described else None
    weights = read_weights(source / WEIGHTS if source.is_dir() else source)
    if trained is None:
        if architecture is None:
            raise WinnowError(f"{source} does not say of which architecture it is: name it in `architecture`")
        layers = spec.layers if architecture in OWN_NETWORKS else Layers()
        spec = replace(spec, architecture=architecture, layers=layers, members=1)
        return _around(weights, spec, seed, str(source)), str(source)
    spec = replace(spec, architecture=trained.architecture, layers=trained.layers, members=trained.members)
    if not source.is_dir() or (trained.classes, trained.image_shape) != (spec.classes, spec.image_shape):
        spec = _with_own_stem(spec) if trained.pretrained_stem else spec
        return _around(weights, spec, seed, str(source)), str(source)
    spec = replace(spec, mean=trained.mean, std=trained.std, pretrained_stem=trained.pretrained_stem)
    model = _around(weights, spec, seed, str(source))
    kept = ["head", *(["second_head"] if trained.second_classes == spec.second_classes else [])]
    model.load_state_dict({key: value for key, value in weights.items() if _part(key) in kept}, strict=False)
    return model, f"{source} with its head"


def pretrained_backbone(name: str, spec: ModelSpec, *, seed: int) -> tuple[Classifier, str]:
    """Build a model around a pretrained backbone of a library, downloaded or from its cache.

    Parameters
    ----------
    name : as in torchvision's list of weights, ``ResNet18_Weights.IMAGENET1K_V1``; or ``timm/`` and a name
        of timm's, ``timm/resnet18.a1_in1k``
    spec : the classes and image shape to train for; pixel statistics are those of the weights
    seed : of fresh heads

    Raises
    ------
    WinnowError
        For an unknown name, and where there is neither a network nor a cached file.
    """
    if name.startswith(TIMM):
        return pretrained_from_timm(name, spec, seed=seed)
    return pretrained_from_torchvision(name, spec, seed=seed)


def pretrained_from_torchvision(name: str, spec: ModelSpec, *, seed: int) -> tuple[Classifier, str]:
    """Build a model around weights of torchvision's; see `pretrained_backbone`."""
    architecture = torchvision_architecture(name)
    import torch
    import torchvision

    weights = torchvision.models.get_weight(name)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except UnpicklingError as error:
        raise WinnowError(
            f"the file of {name} in {torch.hub.get_dir()} holds more than weights: nothing in it is loaded, "
            "since that could run code; take it away"
        ) from error
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise _not_downloaded(name, error, f"bring {weights.url} to {cache}") from error
    transform = weights.transforms()
    mean, std = list(transform.mean), list(transform.std)
    if architecture in _HALVED:
        mean, std = [0.5] * _COLOUR, [0.5] * _COLOUR
    return _around(state, _of_zoo(spec, architecture, mean, std), seed, name), name


def torchvision_architecture(name: str) -> str:
    """Return the network that torchvision's weights `name` are for.

    Raises
    ------
    WinnowError
        For an unknown name; the message lists the known ones, the likeliest first.
    """
    import torchvision

    known = {
        f"{weights.__name__}.{member}": architecture
        for architecture in torchvision_names()
        for weights in [torchvision.models.get_model_weights(architecture)]
        for member in (weight.name for weight in weights)
    }
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
        names = [*near, *(other for other in known if other not in near)]
        raise WinnowError(f"{name!r} is no known name; known: {', '.join(names)}")
    return known[name]


def pretrained_from_timm(name: str, spec: ModelSpec, *, seed: int) -> tuple[Classifier, str]:
    """Build a model around weights of timm's (`pip install winnow[timm]`); see `pretrained_backbone`."""
    own = name.removeprefix(TIMM)
    architecture = TIMM + own.partition(".")[0]
    why = reason_against(architecture, Layers())
    if why is not None:
        raise WinnowError(f"{name!r}: {why}")
    timm: Any = import_module("timm")

    base = own.partition(".")[0]
    known = timm.list_pretrained(f"{base}.*")
    if not known or own not in (base, *known):
        raise WinnowError(
            f"timm has no weights called {own!r}; of {base} it has {', '.join(known) or 'none'}"
        )
    configuration = timm.get_pretrained_cfg(own)
    # Positional embeddings fit one size of images: timm resizes them.
    size: dict[str, Any] = {"img_size": spec.image_shape[:2]} if configuration.fixed_input_size else {}
    try:
        network = timm.create_model(own, pretrained=True, num_classes=0, **size)
    except (OSError, RuntimeError) as error:
        file = f"https://huggingface.co/{configuration.hf_hub_id}/resolve/main/model.safetensors"
        raise _not_downloaded(name, error, f"bring {file}") from error
    pretrained = _of_zoo(spec, architecture, list(configuration.mean), list(configuration.std))
    return _around(network.state_dict(), pretrained, seed, name), name


def _of_zoo(spec: ModelSpec, architecture: str, mean: list[float], std: list[float]) -> ModelSpec:
    """One network as the zoo has it, normalising as its weights were trained."""
    return replace(
        spec,
        architecture=architecture,
        layers=Layers(),
        members=1,
        mean=mean,
        std=std,
        pretrained_stem=True,
    )


def _not_downloaded(name: str, error: Exception, remedy: str) -> WinnowError:
    return WinnowError(
        f"{name} could not be downloaded ({' '.join(str(error).split())[:200]}): {remedy}, or name a file of "
        "weights that is here instead"
    )


def _around(weights: Weights, spec: ModelSpec, seed: int, where: str) -> Classifier:
    """A fresh model with the backbones in `weights`; every tensor of a backbone must be there and fit.

    Counts of batches alone may be missing: batch normalisation goes by them only without a momentum.
    """
    weights = _as_built(weights, spec)
    model = build_model(spec, seed=seed)
    missing, wrong = _misfits(model, weights)
    if wrong and not spec.pretrained_stem and spec.architecture not in OWN_NETWORKS:
        model = build_model(_with_own_stem(spec), seed=seed)
        missing, wrong = _misfits(model, weights)
    if missing or wrong:
        detail = f"no {missing[0]}" if missing else f"another shape of {wrong[0]}"
        raise WinnowError(
            f"{where} does not fit {spec.architecture} for images of {spec.image_shape}: {detail} "
            f"({len(missing)} tensors missing, {len(wrong)} of another shape)"
        )
    for member, own in _members(model, weights):
        taken = {key: own[key] for key in member.backbone.state_dict() if key in own}
        bad = [key for key, value in taken.items() if not value.isfinite().all()]
        if bad:
            raise WinnowError(f"{where} has no numbers for some weights of {spec.architecture}: {bad[0]}")
        member.backbone.load_state_dict(taken, strict=False)
    return model


def _as_built(weights: Weights, spec: ModelSpec) -> Weights:
    """Files of torchvision's as its networks are for these images: names, and positional embeddings."""
    weights = {_OLD_KEYS.sub(r"\1\2.", key): value for key, value in weights.items()}
    if spec.architecture.startswith("vit_") and "encoder.pos_embedding" in weights:
        from torchvision.models.vision_transformer import interpolate_embeddings

        patch = int(weights["conv_proj.weight"].shape[-1])
        return dict(interpolate_embeddings(spec.image_shape[0], patch, OrderedDict(weights)))
    return weights


def _with_own_stem(spec: ModelSpec) -> ModelSpec:
    """With the stem and the colours that weights of the zoos have, also where images are small or grey."""
    grey = spec.image_shape[2] == 1
    mean = spec.mean * _COLOUR if grey else spec.mean
    std = spec.std * _COLOUR if grey else spec.std
    return replace(spec, pretrained_stem=True, mean=mean, std=std)


def _misfits(model: Classifier, weights: Weights) -> tuple[list[str], list[str]]:
    """Names of the backbones' tensors that are missing, and of those that have another shape."""
    missing, wrong = [], []
    for member, own in _members(model, weights):
        target: dict[str, Any] = member.backbone.state_dict()
        missing += sorted(key for key in target if key not in own and not key.endswith(_COUNTS))
        wrong += sorted(key for key in target if key in own and own[key].shape != target[key].shape)
    return missing, wrong


def _members(model: Classifier, weights: Weights) -> list[tuple[Classifier, dict[str, Tensor]]]:
    """Each network of `model` with the tensors of its backbone, by their names there.

    Files of the zoos hold a network by itself, and a head besides, of which nothing is taken; ours may
    stand in a wrapper (grey images as colour ones).
    """
    found = []
    members = members_of(model)
    for number, member in enumerate(members):
        before = f"members.{number}." if len(members) > 1 else ""
        own = {key.removeprefix(before): value for key, value in weights.items() if key.startswith(before)}
        if any(key.startswith("backbone.") for key in own):
            own = {key.removeprefix("backbone."): value for key, value in own.items() if "backbone." in key}
        found.append((member, _wrapped(own, list(member.backbone.state_dict()))))
    return found


def _wrapped(own: dict[str, Tensor], target: list[str]) -> dict[str, Tensor]:
    if not target or set(own) & set(target):
        return own
    parts = target[0].split(".")
    for depth in range(1, len(parts)):
        if ".".join(parts[depth:]) in own:
            return {".".join([*parts[:depth], key]): value for key, value in own.items()}
    return own


def _part(key: str) -> str:
    """Which part of a model, or of a member, a tensor belongs to: backbone, head or second_head."""
    names = key.split(".")
    return names[2] if names[0] == "members" else names[0]
