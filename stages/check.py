"""Check the whole of params.yaml before anything runs or is deleted for a mistake.

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

from stages.dataset.base import MODELS, REPORTS, refuse_own_output
from stages.dataset.catalogue import is_catalogue_set, refuse_planting
from stages.dataset.files import new_folder
from stages.errors import WinnowError
from stages.workflow import processes
from stages.workflow.models import SCHEME, check_address
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import DetectNoise, Finetune
from stages.workflow.stage import stage

if TYPE_CHECKING:
    from torch import nn

    from stages.learning.networks.layers import Layers

CATALOGUE = Path("data/raw/dvc.yaml")
GRAPH = Path("dvc.yaml")
REPORT = REPORTS / "check"
_DEFAULT_BACKBONE = MODELS / "train"
MADE_HERE = (MODELS / "baseline", _DEFAULT_BACKBONE)
_OWN_BACKBONE = MODELS / "finetune"
_DESCRIPTION, _WEIGHTS = "model.json", "model.safetensors"  # of a model's folder


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
    _check_statistics(params)
    _check_unlabeled(params, catalogue)
    notes = _notes_on_losses(params) + _check_source(Path(params.ingest.source), catalogue)
    if params.simulate.enabled:
        refuse_planting(Path(params.ingest.source), catalogue)
    return notes + check_judge(params.detect_noise, graph) + check_backbone(params.finetune)


def _check_augmentation(params: Params) -> None:
    """Refuse a policy that albumentations does not take, or that does not fit images and preset."""
    from stages.augmentation.presets import choose_policy, reason_against, refuse_unfit
    from stages.augmentation.transforms import validate_policy

    preset, steps = params.augment.preset, params.augment.policy
    size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
    policy, key = choose_policy(preset, None if steps is None else [(step.name, step.args) for step in steps])
    validate_policy(policy, (size, size, channels), key)
    refuse_unfit(preset, policy, size, key)
    why = reason_against(preset, "mirror")
    test_time = params.evaluate.test_time
    flips = {
        "train.flip = True": params.train.flip,
        "detect_noise.flip = True": params.detect_noise.flip,
        f"evaluate.test_time = {test_time!r}": "flip" in test_time,
    }
    for option, flipped in flips.items():
        if flipped and why is not None:
            other = "none or shift" if option.startswith("evaluate") else "false"
            raise WinnowError(
                f"{option} mirrors left and right, which augment.preset = {preset!r} refuses: "
                f"{why}; set it to {other}, or choose another preset"
            )


def _check_device(params: Params) -> None:
    """Refuse devices that are not there before a stage's outputs are deleted for them."""
    from stages.learning.devices import choose_device

    choose_device(params.device)
    processes.count(params.train.devices, params.device)


def _check_networks(params: Params) -> None:
    """Refuse names of networks and layers that there are not, or that do not fit the images."""
    from stages.learning.networks.layers import Layers

    layers = Layers(**params.train.layers.model_dump())
    check_network("train.model", params.train.model, layers, params, params.train.batch_size)
    for name in params.detect_noise.models:
        check_network("detect_noise.models", name, Layers(), params, params.detect_noise.batch_size)
    if params.finetune.architecture is not None:
        check_network("finetune.architecture", params.finetune.architecture, Layers())


def _check_statistics(params: Params) -> None:
    """Refuse `adapt_batch_norm` for a backbone without batch normalisation, as far as it is known here."""
    from torch import nn

    from stages.learning.networks.catalogue import OWN_NETWORKS
    from stages.learning.networks.layers import Layers

    finetune = params.finetune
    if not finetune.adapt_batch_norm:
        return
    name, layers = params.train.model, Layers(**params.train.layers.model_dump())
    if finetune.pretrained is not None:
        architecture = check_start("finetune.pretrained", finetune.pretrained)
    else:
        architecture = name if Path(finetune.backbone) in MADE_HERE else finetune.architecture
    if architecture is None:
        return
    backbone = backbone_on_meta(architecture, layers if architecture in OWN_NETWORKS else Layers(), params)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if backbone is not None and not any(isinstance(layer, kinds) for layer in backbone.modules()):
        raise WinnowError(
            f"finetune.adapt_batch_norm = True, and {architecture}, where finetune starts, has no batch "
            "normalisation: set it to false"
        )


def _check_unlabeled(params: Params, catalogue: Path) -> None:
    """Refuse `coral` on a set of the catalogue: those are labelled throughout."""
    coral, source = params.finetune.coral, params.ingest.source
    if coral and is_catalogue_set(Path(source), catalogue):
        raise WinnowError(
            f"finetune.coral = {coral:g} adapts to unlabelled images, and {source} has none: set it to 0, or "
            "bring data with samples of the split `unlabeled`"
        )


def _notes_on_losses(params: Params) -> list[str]:
    """Note a loss that goes by how labels are wrong, behind a stage that mends them."""
    policy = params.curate.label_error
    if params.train.loss != "forward_correction" or (policy.action, policy.otherwise) == ("keep", "keep"):
        return []
    return [
        "train.loss = 'forward_correction' goes by how labels were wrong before curate mended them: "
        "with it set curate.label_error.action and otherwise to keep"
    ]


def _check_source(source: Path, catalogue: Path) -> list[str]:
    refuse_own_output(source)
    if is_catalogue_set(source, catalogue):
        return []
    remedy = "put images there, or name a set of the catalogue"
    notes = present("ingest.source", source, remedy)
    if source.is_dir() and next((path for path in source.rglob("*") if path.is_file()), None) is None:
        raise WinnowError(f"ingest.source = {str(source)!r}: the folder is empty; {remedy}")
    return notes


# --- networks and the weights that they start from ---------------------------------------------


def check_network(
    key: str, name: str, layers: Layers, params: Params | None = None, batch_size: int = 0
) -> None:
    """Check a network by itself, and in training on the images of `params` where they are given."""
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
    """Say why the network cannot learn from such batches; an image that it does not take is an error."""
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
    """Build a network without weights; None where it cannot be built without memory."""
    import torch

    from stages.learning.networks.catalogue import build_backbone
    from stages.learning.networks.layers import ModelSpec

    size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
    with torch.device("meta"), suppress(NotImplementedError):
        return build_backbone(ModelSpec(name, [], (size, size, channels), [], [], layers=layers))[0]
    return None


def check_judge(detect_noise: DetectNoise, graph: Path) -> list[str]:
    """Check the weights that detect_noise starts from: a file that DVC watches, or torchvision's."""
    name, key = detect_noise.pretrained, "detect_noise.pretrained"
    if name is None:
        return []
    path = Path(name)
    if any(_inside(path, output) for output in (*MADE_HERE, _OWN_BACKBONE)):
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
    deps = YAML(typ="safe").load(graph.read_text("utf-8"))["stages"]["detect_noise"]["deps"]
    if not any(_inside(path, Path(dep if isinstance(dep, str) else next(iter(dep)))) for dep in deps):
        raise WinnowError(
            f"{key} = {name!r}: add {name} to the deps of detect_noise in {graph}, "
            "or DVC does not see it change"
        )
    return present(key, path, "put the weights there")


def _inside(path: Path, place: Path) -> bool:
    """Tell whether `path` lies in `place`, however written; a link counts by where it is, as DVC sees it."""
    file, folder = (each.parent.resolve() / each.name for each in (path, place))
    return file.is_relative_to(folder)


def check_backbone(finetune: Finetune) -> list[str]:
    """Check the weights that finetune starts from; return a note where they must be fetched first."""
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
    """Refuse a folder that is no model's, and a file of weights for which no network is named."""
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
    """Return the architecture of weights by their name; None where only the registry knows it."""
    if name.startswith(SCHEME):
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
    """Refuse weights that timm does not have of the network."""
    import timm

    known = timm.list_pretrained(f"{network}.*")
    if not known or (tag and f"{network}.{tag}" not in known):
        names = ", ".join(f"timm/{weights}" for weights in known) or "none"
        raise WinnowError(f"{key} = {name!r}: timm has no such weights; of {network} it has {names}")


def _check_pretrained(key: str, name: str, *, or_file: bool = False) -> str:
    """Return the architecture of torchvision's weights of that name."""
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
    """Return no note where `path` exists, one where DVC can bring it; else raise a WinnowError."""
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
