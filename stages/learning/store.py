"""Write and read models: `model.safetensors` beside `model.json`, nothing to unpickle."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.errors import WinnowError
from stages.learning.models import Classifier, build_model
from stages.learning.networks.layers import ModelSpec

WEIGHTS, SPEC = "model.safetensors", "model.json"


def save_model(folder: Path, model: Classifier) -> None:
    """Write weights and description into `folder`. No metadata in safetensors: its order is random."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / SPEC).write_text(json.dumps(model.spec.to_json(), indent=2) + "\n", "utf-8")


def load_model(folder: Path) -> Classifier:
    """Rebuild a model that `save_model` wrote.

    Raises
    ------
    WinnowError
        Where a file is missing or damaged, or the two do not belong together.
    """
    model = build_model(read_spec(folder), seed=0)
    try:
        model.load_state_dict(read_weights(folder / WEIGHTS))
    except RuntimeError as error:
        raise WinnowError(
            f"{folder / WEIGHTS} does not fit {SPEC} beside it: {' '.join(str(error).split())[:200]}"
        ) from error
    return model.eval()


def read_spec(folder: Path) -> ModelSpec:
    """Read the description beside the weights."""
    path = folder / SPEC
    if not path.is_file():
        raise WinnowError(f"{path} is not there: {folder} does not hold a Winnow model; run `dvc repro`")
    try:
        return ModelSpec.from_json(json.loads(path.read_text("utf-8")))
    except json.JSONDecodeError as error:
        raise WinnowError(f"{path} is not JSON: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from torch's own format without unpickling objects.

    Raises
    ------
    WinnowError
        Where there is no such file, or it holds anything but tensors by name.
    """
    if not path.is_file():
        raise WinnowError(f"weights file {path} is not there")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WinnowError(f"{path} is not a weights file: {str(error)[:200]}") from error
    except Exception as error:  # torch raises pickle's own errors, and changes them between versions
        # Not torch's text, which advises to unpickle whatever is there.
        raise WinnowError(
            f"{path} is not a weights file (.safetensors, or a torch state dict of tensors alone): nothing "
            "else in it is loaded, since that could run code"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WinnowError(f"{path} does not hold weights: a mapping from names to tensors is needed")
    return state
