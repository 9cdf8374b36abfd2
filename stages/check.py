"""Check: the whole of params.yaml, before anything runs or is deleted for a mistake.

`@stage` has validated the schema by the time the function runs; what is left is what a schema
cannot see. The output is constant on purpose: DVC runs this stage at every change of params.yaml
and, as its output stays the same, nothing after it.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from stages.dataset import MODELS, REPORTS, new_folder, refuse_own_output
from stages.errors import WinnowError
from stages.params import DetectNoise, Finetune, Params
from stages.runtime import stage
from stages.sources.catalogue import is_catalogue_set, refuse_planting
from stages.tracking import StageRun

if TYPE_CHECKING:
    from stages.learning.models import Layers

CATALOGUE = Path("data/raw/dvc.yaml")
GRAPH = Path("dvc.yaml")
REPORT = REPORTS / "check"
_DEFAULT_BACKBONE = MODELS / "train"
_MADE_HERE = (MODELS / "baseline", _DEFAULT_BACKBONE)
_OWN_BACKBONE = MODELS / "finetune"
_REGISTRY = "models:/"  # of MLflow: what is in it is looked up when it is needed


def check_params(params: Params, catalogue: Path = CATALOGUE, graph: Path = GRAPH) -> list[str]:
    """Check what needs more than the file itself.

    Parameters
    ----------
    params : as the schema takes them
    catalogue : the DVC file that lists the public sets
    graph : the DVC file of the pipeline

    Returns
    -------
    Notes: a line each on what is fine but wants something done first.

    Raises
    ------
    WinnowError
        At the first key that cannot work.
    """
    _check_augmentation(params)
    _check_device(params)
    _check_networks(params)
    notes = _check_source(Path(params.ingest.source), catalogue)
    if params.simulate.enabled:
        refuse_planting(Path(params.ingest.source), catalogue)
    return notes + _check_judge(params.detect_noise, graph) + _check_backbone(params.finetune)


def _check_augmentation(params: Params) -> None:
    """A policy that albumentations takes, and that fits the images and the preset; so do `flip`s."""
    from stages.synthesis.augmentation.presets import choose_policy, reason_against, refuse_unfit
    from stages.synthesis.augmentation.transforms import validate_policy

    preset, own = params.augment.preset, params.augment.policy
    size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
    policy, key = choose_policy(preset, None if own is None else [(one.name, one.args) for one in own])
    validate_policy(policy, (size, size, channels), key)
    refuse_unfit(preset, policy, size, key)
    why = reason_against(preset, "mirror")
    for where, flips in (("train", params.train.flip), ("detect_noise", params.detect_noise.flip)):
        if flips and why is not None:
            raise WinnowError(
                f"{where}.flip = True mirrors left and right, which augment.preset = {preset!r} refuses: "
                f"{why}; set it to false, or choose another preset"
            )


def _check_device(params: Params) -> None:
    """A device that is asked for has to be there before a stage's outputs are taken away for it."""
    if params.device in ("cuda", "mps"):
        import torch

        cuda = params.device == "cuda"
        if not (torch.cuda.is_available() if cuda else torch.backends.mps.is_available()):
            raise WinnowError(f"device = {params.device!r}: this machine has none; use auto or cpu")


def _check_networks(params: Params) -> None:
    """Names of networks that there are, of layers that they can be built of, for images of that size."""
    from stages.learning.models import Layers

    layers = Layers(**params.train.layers.model_dump())
    _check_network("train.model", params.train.model, layers, params)
    for name in params.detect_noise.models:
        _check_network("detect_noise.models", name, Layers(), params)
    if params.finetune.architecture is not None:
        _check_network("finetune.architecture", params.finetune.architecture, Layers(), None)


def _check_network(key: str, name: str, layers: Layers, params: Params | None) -> None:
    """The network by itself, and on the images of `params` where they are given."""
    import torch

    from stages.learning.models import ModelSpec
    from stages.learning.networks import OWN, build_backbone, reason_against

    try:
        why = reason_against(name, layers)
        if why is None and params is not None and name not in OWN:
            size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
            with torch.device("meta"), suppress(NotImplementedError):  # some cannot be built without memory
                build_backbone(ModelSpec(name, [], (size, size, channels), [], []))
    except WinnowError as error:
        raise WinnowError(f"{key} = {name!r}: {error}") from error
    if why is not None:
        raise WinnowError(f"{key} = {name!r}: {why}")


def _check_source(source: Path, catalogue: Path) -> list[str]:
    refuse_own_output(source)
    if is_catalogue_set(source, catalogue):
        return []
    remedy = "put images there, or name a set of the catalogue"
    notes = _present("ingest.source", source, remedy)
    if source.is_dir() and next((path for path in source.rglob("*") if path.is_file()), None) is None:
        raise WinnowError(f"ingest.source = {str(source)!r}: the folder is empty; {remedy}")
    return notes


def _check_judge(detect_noise: DetectNoise, graph: Path) -> list[str]:
    """The weights that detect_noise starts from: a file of others, which DVC watches, or torchvision's."""
    name, key = detect_noise.pretrained, "detect_noise.pretrained"
    if name is None:
        return []
    path = Path(name)
    if any(_inside(path, own) for own in (*_MADE_HERE, _OWN_BACKBONE)):
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
    return _present(key, path, "put the weights there")


def _deps(graph: Path, stage: str) -> list[Path]:
    """The paths that DVC watches for a stage; what is a template is not among them."""
    deps = YAML(typ="safe").load(graph.read_text("utf-8"))["stages"][stage]["deps"]
    return [Path(dep if isinstance(dep, str) else next(iter(dep))) for dep in deps]


def _inside(path: Path, place: Path) -> bool:
    """However they are written; what is itself a link counts by where the link is, as DVC sees it."""
    file, folder = (each.parent.resolve() / each.name for each in (path, place))
    return file.is_relative_to(folder)


def _check_backbone(finetune: Finetune) -> list[str]:
    backbone = Path(finetune.backbone)
    if finetune.pretrained is not None:
        if backbone != _DEFAULT_BACKBONE:
            raise WinnowError(
                f"finetune.pretrained = {finetune.pretrained!r} and finetune.backbone = "
                f"{finetune.backbone!r}: only one can be used; "
                f"set pretrained to null, or backbone to {_DEFAULT_BACKBONE}"
            )
        architecture = _check_start("finetune.pretrained", finetune.pretrained)
        if architecture is not None and finetune.architecture not in (None, architecture):
            raise WinnowError(
                f"finetune.architecture = {finetune.architecture!r}: the weights {finetune.pretrained} "
                f"are for {architecture}; set it to null"
            )
    if backbone in _MADE_HERE:
        return []
    if backbone.is_relative_to(_OWN_BACKBONE):
        raise WinnowError(
            f"finetune.backbone = {finetune.backbone!r}: finetune cannot start from its own output"
        )
    return _present("finetune.backbone", backbone, "put the weights there, or set it to models/train")


def _check_start(key: str, name: str) -> str | None:
    """The architecture of weights by their name; None where only the registry knows it."""
    if name.startswith(_REGISTRY):
        return None
    if name.startswith("timm/"):
        from stages.learning.models import Layers

        architecture = name.partition(".")[0]  # behind the dot: what it was trained on
        _check_network(key, architecture, Layers(), None)
        return architecture
    return _check_pretrained(key, name)


def _check_pretrained(key: str, name: str, *, or_file: bool = False) -> str:
    """The architecture of torchvision's weights of that name."""
    from torchvision.models import get_model_weights, get_weight

    from stages.learning.networks.zoo import torchvision_names

    try:
        weights = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        no_file = "there is no such file, and " if or_file else ""
        raise WinnowError(
            f"{key} = {name!r}: {no_file}torchvision has no weights of this name; "
            "they are called like ResNet18_Weights.IMAGENET1K_V1"
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


def _present(key: str, path: Path, remedy: str) -> list[str]:
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


@stage("check")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Validate the whole of params.yaml."""
    for note in check_params(params):
        print(f"check: note: {note}", file=sys.stderr)
    with new_folder(REPORT) as report:
        (report / "valid.txt").write_text("params.yaml is valid\n", "utf-8")
    print("check: params.yaml is valid")


if __name__ == "__main__":
    main()
