"""Check: the whole of params.yaml, before anything runs or is deleted for a mistake.

`@stage` has validated the schema by the time the function runs; what is left is what a schema
cannot see. The output is constant on purpose: DVC runs this stage at every change of params.yaml
and, as its output stays the same, nothing after it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stages.dataset.base import REPORTS, refuse_own_output
from stages.dataset.catalogue import is_catalogue_set, refuse_planting
from stages.dataset.files import new_folder
from stages.errors import WinnowError
from stages.workflow.backbones import (
    MADE_HERE,
    backbone_on_meta,
    check_backbone,
    check_judge,
    check_network,
    check_start,
    present,
)
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.stage import stage

CATALOGUE = Path("data/raw/dvc.yaml")
GRAPH = Path("dvc.yaml")
REPORT = REPORTS / "check"


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
    """A policy that albumentations takes, and that fits the images and the preset; so do `flip`s."""
    from stages.augmentation.presets import choose_policy, reason_against, refuse_unfit
    from stages.augmentation.transforms import validate_policy

    preset, own = params.augment.preset, params.augment.policy
    size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
    policy, key = choose_policy(preset, None if own is None else [(one.name, one.args) for one in own])
    validate_policy(policy, (size, size, channels), key)
    refuse_unfit(preset, policy, size, key)
    why = reason_against(preset, "mirror")
    test_time = params.evaluate.test_time
    flips = {
        "train.flip = True": params.train.flip,
        "detect_noise.flip = True": params.detect_noise.flip,
        f"evaluate.test_time = {test_time!r}": "flip" in test_time,
    }
    for choice, flipped in flips.items():
        if flipped and why is not None:
            other = "none or shift" if choice.startswith("evaluate") else "false"
            raise WinnowError(
                f"{choice} mirrors left and right, which augment.preset = {preset!r} refuses: "
                f"{why}; set it to {other}, or choose another preset"
            )


def _check_device(params: Params) -> None:
    """Devices that are asked for have to be there before a stage's outputs are taken away for them."""
    import torch

    device, wanted = params.device, params.train.devices
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, True):
        raise WinnowError(f"device = {device!r}: this machine has none; use auto or cpu")
    if wanted in ("auto", 1) or device == "cpu":
        return
    if there["cuda"] and device != "mps":
        if int(wanted) > (count := torch.cuda.device_count()):
            raise WinnowError(
                f"train.devices = {wanted}, but this machine has {count} GPU(s): lower it, or device: cpu"
            )
    elif there["mps"]:
        raise WinnowError(f"train.devices = {wanted} does not go with MPS: take device: cpu, or devices: 1")


def _check_networks(params: Params) -> None:
    """Names of networks that there are, of layers that they can be built of, for images of that size."""
    from stages.learning.networks.layers import Layers

    layers = Layers(**params.train.layers.model_dump())
    check_network("train.model", params.train.model, layers, params, params.train.batch_size)
    for name in params.detect_noise.models:
        check_network("detect_noise.models", name, Layers(), params, params.detect_noise.batch_size)
    if params.finetune.architecture is not None:
        check_network("finetune.architecture", params.finetune.architecture, Layers())


def _check_statistics(params: Params) -> None:
    """Where finetune is to adapt batch normalisation, its backbone has some, as far as it is known here."""
    from torch import nn

    from stages.learning.networks.catalogue import OWN_NETWORKS
    from stages.learning.networks.layers import Layers

    choices = params.finetune
    if not choices.adapt_batch_norm:
        return
    name, layers = params.train.model, Layers(**params.train.layers.model_dump())
    if choices.pretrained is not None:
        architecture = check_start("finetune.pretrained", choices.pretrained)
    else:
        architecture = name if Path(choices.backbone) in MADE_HERE else choices.architecture
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
    """What can be known here of images to adapt to: sets of the catalogue are labelled throughout."""
    coral, source = params.finetune.coral, params.ingest.source
    if coral and is_catalogue_set(Path(source), catalogue):
        raise WinnowError(
            f"finetune.coral = {coral:g} adapts to unlabelled images, and {source} has none: set it to 0, or "
            "bring data with samples of the split `unlabeled`"
        )


def _notes_on_losses(params: Params) -> list[str]:
    """A loss that goes by how labels are wrong, behind a stage that mends them."""
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
