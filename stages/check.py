"""Check: the whole of params.yaml, before anything runs or is deleted for a mistake.

`@stage` has validated the schema by the time the function runs; what is left is what a schema
cannot see. The output is constant on purpose: DVC runs this stage at every change of params.yaml
and, as its output stays the same, nothing after it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from stages.dataset import MODELS, REPORTS, new_folder, refuse_own_output
from stages.errors import WinnowError
from stages.params import Architecture, Finetune, Params
from stages.runtime import stage
from stages.sources.catalogue import is_catalogue_set, refuse_planting
from stages.tracking import StageRun

CATALOGUE = Path("data/raw/dvc.yaml")
REPORT = REPORTS / "check"
_DEFAULT_BACKBONE = MODELS / "train"
_MADE_HERE = (MODELS / "baseline", _DEFAULT_BACKBONE)


def check_params(params: Params, catalogue: Path = CATALOGUE) -> list[str]:
    """Check what needs more than the file itself.

    Parameters
    ----------
    params : as the schema takes them
    catalogue : the DVC file that lists the public sets

    Returns
    -------
    Notes: a line each on what is fine but wants something done first.

    Raises
    ------
    WinnowError
        At the first key that cannot work.
    """
    from stages.synthesis.augmentation import validate_policy

    size, channels = params.ingest.image_size, 1 if params.ingest.color == "grey" else 3
    policy = [(transform.name, transform.args) for transform in params.augment.policy]
    validate_policy(policy, image_shape=(size, size, channels))
    _check_device(params)
    notes = _check_source(Path(params.ingest.source), catalogue)
    if params.simulate.enabled:
        refuse_planting(Path(params.ingest.source), catalogue)
    return notes + _check_backbone(params.finetune)


def _check_device(params: Params) -> None:
    """A device that is asked for has to be there before a stage's outputs are taken away for it."""
    if params.device in ("cuda", "mps"):
        import torch

        cuda = params.device == "cuda"
        if not (torch.cuda.is_available() if cuda else torch.backends.mps.is_available()):
            raise WinnowError(f"device = {params.device!r}: this machine has none; use auto or cpu")


def _check_source(source: Path, catalogue: Path) -> list[str]:
    refuse_own_output(source)
    if is_catalogue_set(source, catalogue):
        return []
    remedy = "put images there, or name a set of the catalogue"
    notes = _present("ingest.source", source, remedy)
    if source.is_dir() and next((path for path in source.rglob("*") if path.is_file()), None) is None:
        raise WinnowError(f"ingest.source = {str(source)!r}: the folder is empty; {remedy}")
    return notes


def _check_backbone(finetune: Finetune) -> list[str]:
    backbone = Path(finetune.backbone)
    if finetune.pretrained is not None:
        if backbone != _DEFAULT_BACKBONE:
            raise WinnowError(
                f"finetune.pretrained = {finetune.pretrained!r} and finetune.backbone = "
                f"{finetune.backbone!r}: only one can be used; "
                f"set pretrained to null, or backbone to {_DEFAULT_BACKBONE}"
            )
        _check_pretrained(finetune.pretrained, finetune.architecture)
    if backbone in _MADE_HERE:
        return []
    if backbone.is_relative_to(MODELS / "finetune"):
        raise WinnowError(
            f"finetune.backbone = {finetune.backbone!r}: finetune cannot start from its own output"
        )
    return _present("finetune.backbone", backbone, "put the weights there, or set it to models/train")


def _check_pretrained(name: str, architecture: str | None) -> None:
    from torchvision.models import get_weight

    try:
        get_weight(name)
    except (ValueError, AttributeError, KeyError):
        raise WinnowError(
            f"finetune.pretrained = {name!r}: torchvision has no weights of this name; "
            "they are called like ResNet18_Weights.IMAGENET1K_V1"
        ) from None
    model = name.removesuffix("." + name.rpartition(".")[2]).removesuffix("_Weights").lower()
    known = [known for known in get_args(Architecture) if known != "small_cnn"]
    if model not in known:
        raise WinnowError(
            f"finetune.pretrained = {name!r}: the architecture must be one of {', '.join(known)}"
        )
    if architecture not in (None, model):
        raise WinnowError(
            f"finetune.architecture = {architecture!r}: the weights {name} are for {model}; set it to null"
        )


def _present(key: str, path: Path, remedy: str) -> list[str]:
    """Nothing to say where `path` exists, a note where DVC can bring it."""
    if path.exists():
        return []
    pointer = path.with_name(path.name + ".dvc")
    if pointer.is_file():
        return [
            f"{key} = {str(path)!r} is tracked but not here: "
            f"`dvc pull {pointer}`, or `dvc checkout {pointer}`"
        ]
    raise WinnowError(f"{key} = {str(path)!r}: there is no such path; {remedy}")


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
