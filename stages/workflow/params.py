"""Read and validate ``params.yaml``: every choice a user makes, checked before anything runs.

There are deliberately no defaults here. This module is no dependency of any stage in ``dvc.yaml``
(a clearer message must not retrain a model), so it may not hold a value that changes a result:
all of them stand in ``params.yaml``, where DVC sees them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import WinnowError
from stages.learning.names import Device

# The sections are names of this module too.
from stages.workflow.schema import (
    Augment,
    Curate,
    DetectNoise,
    Evaluate,
    Finetune,
    Ingest,
    Section,
    Seed,
    Simulate,
    Synthesize,
    Train,
)

PARAMS_FILE = Path("params.yaml")
_LARGEST_GAN_IMAGE = 64  # pixels


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: Seed
    threads: Annotated[int, Field(ge=1, le=1024)]
    device: Device
    ingest: Ingest
    simulate: Simulate
    detect_noise: DetectNoise
    curate: Curate
    augment: Augment
    synthesize: Synthesize
    train: Train
    finetune: Finetune
    evaluate: Evaluate

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.synthesize.method == "gan" and self.ingest.image_size > _LARGEST_GAN_IMAGE:
            yield (
                f"synthesize.method = 'gan' makes images of up to {_LARGEST_GAN_IMAGE} pixels, and "
                f"ingest.image_size = {self.ingest.image_size}: choose smote or random, or a smaller size"
            )
        side, train = self.ingest.image_size, self.train
        changes = {
            "train.shift": train.shift,
            "train.cutout": train.cutout,
            "detect_noise.shift": self.detect_noise.shift,
        }
        for key, pixels in changes.items():
            if pixels >= side:
                yield (
                    f"{key} = {pixels} leaves nothing of images of ingest.image_size = {side} pixels: "
                    "choose less"
                )


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate ``params.yaml``.

    Raises
    ------
    WinnowError
        In one line: the file, each wrong key with its value, and what is allowed there.
    """
    if not path.is_file():
        raise WinnowError(f"{path} is not here ({Path.cwd()}): run from the root of the repository")
    try:
        # DVC reads the file with the same parser; PyYAML would take 1e-3 for a string.
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise WinnowError(f"{path} is not valid YAML: {detail}") from error
    return parse_params(raw, str(path))


def parse_params(raw: object, where: str = str(PARAMS_FILE)) -> Params:
    """Validate the contents of ``params.yaml`` (a mapping as YAML gives it)."""
    if not isinstance(raw, Mapping):
        raise WinnowError(f"{where} must hold a mapping of sections, not {type(raw).__name__}")
    try:
        return Params.model_validate(dict(raw))
    except ValidationError as error:
        problems = "; ".join(dict.fromkeys(_describe(item) for item in error.errors()))
        raise WinnowError(f"{where}: {problems}") from None


def _describe(error: Any) -> str:
    """Say one pydantic error as ``key = value: what is allowed``."""
    # A union adds the name of its member to the location: only what stands in the file is a key.
    location = [str(part) for part in error["loc"] if not _is_union_tag(str(part))]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(location)}"
    if error["type"] == "missing":
        return f"{key}: missing; every key must be given"
    if location[-1:] == ["[key]"]:
        return f"{'.'.join(location[:-1])}: a class's name is text; write it in quotes"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not key:
        return message
    if isinstance(error["input"], Mapping):
        return f"{key}: {message}"
    return f"{key} = {error['input']!r}: {message}"


def _is_union_tag(part: str) -> bool:
    tags = ("literal[", "list[", "constrained-", "function-")
    return part.startswith(tags) or part in ("int", "str", "float")


def _suggestion(location: list[str]) -> str:
    """List the keys that are allowed in place of the unknown one, the likeliest first."""
    model: type[BaseModel] = Params
    for part in location[:-1]:
        field = model.model_fields.get(part)
        if field is not None:
            model = _section_in(field.annotation) or model
    allowed = sorted(model.model_fields)
    close = difflib.get_close_matches(location[-1], allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} Allowed here: {', '.join(allowed)}" if hint else f"; allowed here: {', '.join(allowed)}"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a key holds, by itself, in a list, by class name, or null."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in inner if section is not None), None)
