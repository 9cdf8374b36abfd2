"""Whether the weights that params.yaml names can be had, and fit: before anything runs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from stages.dataset.base import MODELS
from stages.errors import WinnowError
from stages.workflow.models import check_address
from stages.workflow.params import Params
from stages.workflow.schema import DetectNoise, Finetune

if TYPE_CHECKING:
    from torch import nn

    from stages.learning.networks.layers import Layers

_DEFAULT_BACKBONE = MODELS / "train"
MADE_HERE = (MODELS / "baseline", _DEFAULT_BACKBONE)
_OWN_BACKBONE = MODELS / "finetune"
_REGISTRY = "models:/"  # of MLflow: what is in it is looked up when it is needed
_DESCRIPTION, _WEIGHTS = "model.json", "model.safetensors"  # of a model's folder


def check_network(
    key: str, name: str, layers: Layers, params: Params | None = None, batch_size: int = 0
) -> None:
    """The network by itself, and in training on the images of `params` where they are given."""
    from stages.learning.networks.catalogue import OWN_NETWORKS, reason_against

    try:
        why = reason_against(name, layers)
        if why is None and params is not None and (name not in OWN_NETWORKS or batch_size == 1):
            why = _reason_against_training(name, layers, params, batch_size)
    except WinnowError as error:
        raise WinnowError(f"{key} = {name!r}: {error}") from error
    if why is not None:
        raise WinnowError(f"{key} = {name!r}: {why}")


def _reason_against_training(name: str, layers: Layers, params: Params, batch_size: int) -> str | None:
    """Why the network cannot learn from batches of that size; an image that it does not take is an error."""
    import torch

    backbone = backbone_on_meta(name, layers, params)
    if batch_size == 1 and backbone is not None:
        size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
        try:
            with torch.device("meta"), suppress(NotImplementedError):
                backbone.train()(torch.zeros(1, channels, size, size))
        except ValueError:
            return "its batch normalisation cannot learn from one image: raise batch_size"
    return None


def backbone_on_meta(name: str, layers: Layers, params: Params) -> nn.Module | None:
    """A network without weights; None where it cannot be built without memory."""
    import torch

    from stages.learning.networks.catalogue import build_backbone
    from stages.learning.networks.layers import ModelSpec

    size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
    with torch.device("meta"), suppress(NotImplementedError):
        return build_backbone(ModelSpec(name, [], (size, size, channels), [], [], layers=layers))[0]
    return None


def check_judge(detect_noise: DetectNoise, graph: Path) -> list[str]:
    """The weights that detect_noise starts from: a file of others, which DVC watches, or torchvision's."""
    name, key = detect_noise.pretrained, "detect_noise.pretrained"
    if name is None:
        return []
    path = Path(name)
    if any(_inside(path, own) for own in (*MADE_HERE, _OWN_BACKBONE)):
        raise WinnowError(
            f"{key} = {name!r}: this pipeline trains it on the labels in question, which it would repeat; "
            "name weights that come from other data"
        )
    if path.is_dir():
        raise WinnowError(f"{key} = {name!r} is a folder; name a file of weights")
    if not path.exists() and not _pointer(path).is_file():
        architecture = _check_pretrained(key, name, or_file=True)
        if architecture not in detect_noise.models:
            raise WinnowError(
                f"{key} = {name!r} is for {architecture}, which is not in detect_noise.models "
                f"({', '.join(detect_noise.models)}): add it there"
            )
        return []
    if not any(_inside(path, dep) for dep in _deps(graph, "detect_noise")):
        raise WinnowError(
            f"{key} = {name!r}: add {name} to the deps of detect_noise in {graph}, "
            "or DVC does not see it change"
        )
    return present(key, path, "put the weights there")


def _deps(graph: Path, stage: str) -> list[Path]:
    """The paths that DVC watches for a stage; what is a template is not among them."""
    deps = YAML(typ="safe").load(graph.read_text("utf-8"))["stages"][stage]["deps"]
    return [Path(dep if isinstance(dep, str) else next(iter(dep))) for dep in deps]


def _inside(path: Path, place: Path) -> bool:
    """However they are written; what is itself a link counts by where the link is, as DVC sees it."""
    file, folder = (each.parent.resolve() / each.name for each in (path, place))
    return file.is_relative_to(folder)


def check_backbone(finetune: Finetune) -> list[str]:
    """The weights that finetune starts from; a note where they have to be fetched first."""
    backbone = Path(finetune.backbone)
    if finetune.pretrained is not None:
        if backbone != _DEFAULT_BACKBONE:
            raise WinnowError(
                f"finetune.pretrained = {finetune.pretrained!r} and finetune.backbone = "
                f"{finetune.backbone!r}: only one can be used; "
                f"set pretrained to null, or backbone to {_DEFAULT_BACKBONE}"
            )
        architecture = check_start("finetune.pretrained", finetune.pretrained)
        if architecture is not None and finetune.architecture not in (None, architecture):
            raise WinnowError(
                f"finetune.architecture = {finetune.architecture!r}: the weights {finetune.pretrained} "
                f"are for {architecture}; set it to null"
            )
        if architecture is None:
            _refuse_architecture(finetune, finetune.pretrained)
        return []
    if backbone in MADE_HERE:
        _refuse_architecture(finetune, finetune.backbone)
        return []
    if backbone.is_relative_to(_OWN_BACKBONE):
        raise WinnowError(
            f"finetune.backbone = {finetune.backbone!r}: finetune cannot start from its own output"
        )
    notes = present("finetune.backbone", backbone, "put the weights there, or set it to models/train")
    if not notes:
        _check_description(finetune, backbone)
    return notes


def _check_description(finetune: Finetune, backbone: Path) -> None:
    """A model's folder says which network it holds; for a file of other weights the user has to."""
    folder = backbone if backbone.is_dir() else backbone.parent
    if (folder / _DESCRIPTION).is_file() and (backbone.is_dir() or backbone.name == _WEIGHTS):
        _refuse_architecture(finetune, finetune.backbone)
    elif backbone.is_dir():
        raise WinnowError(
            f"finetune.backbone = {finetune.backbone!r}: the folder holds no model of Winnow's "
            f"({_DESCRIPTION}); name a file of weights"
        )
    elif finetune.architecture is None:
        raise WinnowError(
            f"finetune.backbone = {finetune.backbone!r} does not say which network it is for: name it in "
            "finetune.architecture, such as resnet18"
        )


def _refuse_architecture(finetune: Finetune, weights: str) -> None:
    if finetune.architecture is not None:
        raise WinnowError(
            f"finetune.architecture = {finetune.architecture!r} is for a file that does not say so itself, "
            f"and {weights} does: set it to null"
        )


def check_start(key: str, name: str) -> str | None:
    """The architecture of weights by their name; None where only the registry knows it."""
    if name.startswith(_REGISTRY):
        try:
            check_address(name)
        except WinnowError as error:
            raise WinnowError(f"{key} = {error}") from error
        return None
    if name.startswith("timm/"):
        from stages.learning.networks.layers import Layers

        architecture, _, tag = name.partition(".")  # behind the dot: what it was trained on
        check_network(key, architecture, Layers())
        _check_tag(key, name, architecture.removeprefix("timm/"), tag)
        return architecture
    return _check_pretrained(key, name)


def _check_tag(key: str, name: str, network: str, tag: str) -> None:
    """Weights that timm has of the network."""
    import timm

    known = timm.list_pretrained(f"{network}.*")
    if not known or (tag and f"{network}.{tag}" not in known):
        theirs = ", ".join(f"timm/{one}" for one in known) or "none"
        raise WinnowError(f"{key} = {name!r}: timm has no such weights; of {network} it has {theirs}")


def _check_pretrained(key: str, name: str, *, or_file: bool = False) -> str:
    """The architecture of torchvision's weights of that name."""
    from torchvision.models import get_model_weights, get_weight

    from stages.learning.networks.zoo import torchvision_names

    try:
        weights = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        no_file = "there is no such file, and " if or_file else ""
        others = (
            ""
            if or_file
            else ", timm's like timm/resnet18.a1_in1k, registered models like models:/winnow@champion"
        )
        raise WinnowError(
            f"{key} = {name!r}: {no_file}torchvision has no weights of this name; "
            f"they are called like ResNet18_Weights.IMAGENET1K_V1{others}"
        ) from None
    classifiers = {get_model_weights(model): model for model in torchvision_names()}
    if type(weights) not in classifiers:
        raise WinnowError(
            f"{key} = {name!r}: these weights are not for a classifier of images; "
            f"those of torchvision are {', '.join(torchvision_names())}"
        )
    if str(weights) != name:
        raise WinnowError(f"{key} = {name!r}: say {weights}, for which it stands in this version")
    return classifiers[type(weights)]


def present(key: str, path: Path, remedy: str) -> list[str]:
    """Nothing to say where `path` exists, a note where DVC can bring it."""
    if path.exists():
        return []
    pointer = _pointer(path)
    if pointer.is_file():
        return [
            f"{key} = {str(path)!r} is tracked but not here: "
            f"`dvc pull {pointer}`, or `dvc checkout {pointer}`"
        ]
    raise WinnowError(f"{key} = {str(path)!r}: there is no such path; {remedy}")


def _pointer(path: Path) -> Path:
    return path.with_name(path.name + ".dvc")
