"""The schema of ``params.yaml``: every choice a user makes, checked before anything runs.

There are deliberately no defaults here. This module is no dependency of any stage in ``dvc.yaml``
(a clearer message must not retrain a model), so it may not hold a value that changes a result:
all of them stand in ``params.yaml``, where DVC sees them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import WinnowError
from stages.issue_kinds import PixelKind, ShapeKind
from stages.learning.names import (
    Activation,
    ClassWeighting,
    Compile,
    Device,
    Initialisation,
    Loss,
    Normalisation,
    Optimiser,
    Precision,
    Sampling,
    Schedule,
    TestTime,
    Transfer,
)

PARAMS_FILE = Path("params.yaml")
_LARGEST_GAN_IMAGE = 64  # pixels

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Target = Literal["majority", "median"] | Count
Name = Annotated[str, Field(min_length=1)]
Chance = Annotated[float, Field(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e6)]
Architecture = Name  # torchvision knows some eighty: `check` looks them up


class Section(BaseModel):
    """A section of ``params.yaml``: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Columns(Section):
    """The columns of a manifest: `auto` for the usual names, null for none."""

    path: Name
    label: Name
    split: Name | None
    group: Name | None
    weight: Name | None
    second_label: Name | None


class Ingest(Section):
    """Where the images come from, the shape they are brought to, and how they are split."""

    source: Name
    format: Literal["auto", "folders", "manifest", "huggingface", "arrays", "idx"]
    columns: Columns
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    resize: Literal["crop", "pad", "stretch"]
    color: Literal["grey", "rgb"]
    val_share: Share
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    near_duplicates: Annotated[float, Field(ge=0.5, le=1.0)] | None
    leaked: Literal["leave_out", "keep"]
    max_quarantine: Probability

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.val_share + self.test_share >= 1.0:
            raise ValueError("val_share + test_share must be less than 1: nothing is left to train on")
        return self


class Simulate(Section):
    """Known problems planted in training and validation, so that the pipeline can be scored."""

    enabled: bool
    seed: Seed
    label_noise: Annotated[float, Field(ge=0.0, le=0.9)]
    imbalance: Annotated[float, Field(ge=1.0)]
    max_per_class: Count | None


class DetectNoise(Section):
    """Cross-validated probabilities, and the rules that turn them into issues."""

    models: Annotated[list[Architecture], Field(min_length=1)]
    pretrained: Name | None
    folds: Annotated[int, Field(ge=2, le=50)]
    repeats: Annotated[int, Field(ge=1, le=50)]
    epochs: Count
    batch_size: Count
    learning_rate: Positive
    shift: Annotated[int, Field(ge=0, le=1024)]
    flip: bool
    downweight_suspects: bool
    rule: Literal[
        "auto",
        "margin",
        "corrected_margin",
        "prune_by_class",
        "prune_by_noise_rate",
        "both",
        "confident_learning",
        "predicted_neq_given",
        "low_normalized_margin",
        "low_self_confidence",
    ]
    neighbors: Annotated[int, Field(ge=1, le=100)]
    image_checks: Literal["auto"] | list[Literal[PixelKind, ShapeKind]]

    @model_validator(mode="after")
    def _each_model_once(self) -> Self:
        if len(set(self.models)) < len(self.models):
            raise ValueError("models names an architecture twice; for more of one raise repeats")
        return self


class LabelErrorPolicy(Section):
    """What is done about label errors: `action` from `confidence` on, else `otherwise`."""

    action: Literal["relabel", "drop", "reweight", "keep"]
    confidence: Probability
    otherwise: Literal["drop", "reweight", "keep"]

    @model_validator(mode="after")
    def _milder_where_less_sure(self) -> Self:
        if self.action == "reweight" and self.otherwise == "drop":
            raise ValueError(
                "with action 'reweight', otherwise must be 'reweight' or 'keep': "
                "what is less sure is not dropped"
            )
        return self


class IssuePolicy(LabelErrorPolicy):
    """The same for any other kind of issue, which suggests no label."""

    action: Literal["drop", "reweight", "keep"]


class Curate(Section):
    """What is done about each kind of issue in the training split, and how far it may go."""

    label_error: LabelErrorPolicy
    outlier: IssuePolicy
    near_duplicate: IssuePolicy
    non_iid: IssuePolicy
    underperforming_group: IssuePolicy
    dark: IssuePolicy
    light: IssuePolicy
    blurry: IssuePolicy
    low_information: IssuePolicy
    odd_size: IssuePolicy
    odd_aspect_ratio: IssuePolicy
    relabel_agreement: Probability
    reweight_to: Annotated[float, Field(gt=0.0, lt=1.0)]
    min_per_class: Annotated[int, Field(ge=0, le=10**9)]
    max_lost_per_class: Probability
    rare_below: Probability
    rare_confidence: Probability


class Transform(Section):
    """One albumentations transform, by its own name and with its own arguments."""

    name: Name
    args: dict[str, Any]


class ClassTarget(Section):
    """The size that one class is brought up to, instead of the section's own."""

    to: Target
    max_factor: Annotated[float, Field(ge=0.0)]


class Augment(Section):
    """Transformed copies for the rare classes."""

    preset: Literal["digits", "photos", "medical", "textures"] | None
    policy: list[Transform] | None
    to: Target
    max_factor: Annotated[float, Field(ge=0.0)]
    per_class: dict[str, ClassTarget]
    weight: Positive
    min_recognised: Probability
    destroying: Literal["leave_out", "warn", "stop"]

    @model_validator(mode="after")
    def _some_policy(self) -> Self:
        if self.preset is None and self.policy is None:
            raise ValueError("preset and policy are both null: name a preset, or a policy ([]: no copies)")
        return self


class Gan(Section):
    """The class-conditional GAN."""

    steps: Count
    batch_size: Annotated[int, Field(ge=2)]
    latent_dim: Count
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    learning_rate: Positive
    snapshots: Annotated[int, Field(ge=1, le=100)]


class Gate(Section):
    """What generated images have to pass before they may be trained on."""

    min_agreement: Probability
    copy_quantile: Probability
    min_accepted: Probability
    min_density: Probability
    min_coverage: Probability
    min_diversity: Probability
    max_kid: Positive


SimpleMethod = Literal["random", "smote", "borderline_smote", "adasyn", "smote_enn", "smote_tomek"]


class Synthesize(Section):
    """Synthetic over-sampling of the rare classes."""

    method: Literal["gan", SimpleMethod, "none"]
    fallback: Literal[SimpleMethod, "none"]
    neighbors_in: Literal["pixels", "embedding"]
    to: Target
    max_factor: Annotated[float, Field(ge=0.0)]
    per_class: dict[str, ClassTarget]
    weight: Positive
    min_real_per_class: Annotated[int, Field(ge=2)]
    gan: Gan
    gate: Gate


class LayerChoices(Section):
    """What networks of our own are built of."""

    activation: Activation
    initialisation: Initialisation
    normalisation: Normalisation
    dropout: Chance
    stochastic_depth: Chance
    residual: bool


class LossConstants(Section):
    """Constants of losses; None: the loss's own default."""

    gce_q: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    sce_alpha: NotNegative | None = None
    sce_beta: NotNegative | None = None
    elr_strength: NotNegative | None = None
    elr_memory: Chance | None = None
    forget_rate: Chance | None = None
    focal_gamma: NotNegative | None = None
    ldam_margin: Positive | None = None
    ldam_scale: Positive | None = None
    effective_beta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None


class EnsembleChoices(Section):
    """Networks that are saved as one model."""

    members: Annotated[int, Field(ge=1, le=100)]
    over: Literal["seeds", "folds"]

    @model_validator(mode="after")
    def _two_folds(self) -> Self:
        if self.over == "folds" and self.members < 2:
            raise ValueError("over = 'folds' needs at least 2 members: each leaves one fold out")
        return self


class Train(Section):
    """The training loop; ``baseline`` uses the same section on the untreated split."""

    model: Architecture
    layers: LayerChoices
    epochs: Count
    batch_size: Count
    optimiser: Optimiser
    learning_rate: Positive
    momentum: Chance
    schedule: Schedule
    warm_up: Share
    weight_decay: NotNegative
    l1: NotNegative
    l2: NotNegative
    clip_norm: Positive | None
    clip_value: Positive | None
    average_weights: Chance
    loss: Loss
    loss_options: LossConstants
    label_smoothing: Share
    class_weighting: ClassWeighting
    deferred: Share
    sampling: Sampling
    shift: Annotated[int, Field(ge=0, le=1024)]
    flip: bool
    cutout: Annotated[int, Field(ge=0, le=1024)]
    mixup: NotNegative
    cutmix: NotNegative
    precision: Precision
    compile: Compile
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    early_stopping: bool
    ensemble: EnsembleChoices
    use_augmented: bool
    use_synthetic: bool
    max_made: Positive

    @model_validator(mode="after")
    def _deferred_weights(self) -> Self:
        if self.deferred and self.class_weighting == "none":
            raise ValueError(
                "deferred says when class weights come in: choose a class_weighting, or set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _unmixed_where_samples_are_remembered(self) -> Self:
        if self.loss in ("early_learning", "co_teaching") and (self.mixup or self.cutmix):
            raise ValueError(
                f"loss = {self.loss!r} judges each image by itself: it does not go with mixup or cutmix"
            )
        return self


class Finetune(Section):
    """Transfer to real curated data with balanced classes."""

    backbone: Annotated[str, Field(min_length=1)]
    architecture: Architecture | None
    pretrained: Annotated[str, Field(min_length=1)] | None
    mode: Transfer
    head_epochs: Annotated[int, Field(ge=0)]
    epochs: Annotated[int, Field(ge=0)]
    learning_rate: Positive
    backbone_lr_factor: Annotated[float, Field(ge=0.0, le=1.0)]
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)]
    adapt_batch_norm: bool
    coral: NotNegative
    second_weight: NotNegative

    @model_validator(mode="after")
    def _train_at_all(self) -> Self:
        if self.mode == "feature_extraction":
            if self.head_epochs == 0:
                raise ValueError(
                    "mode = 'feature_extraction' trains the head: head_epochs must be at least 1"
                )
        elif self.mode in ("layer_wise", "full"):
            if self.epochs == 0:
                raise ValueError(f"mode = {self.mode!r} trains everything at once: epochs must be at least 1")
        elif self.head_epochs + self.epochs == 0:
            raise ValueError("head_epochs + epochs must be at least 1")
        return self


class Evaluate(Section):
    """How the test split is scored."""

    bootstrap: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    calibration_bins: Annotated[int, Field(ge=2)]
    test_time: TestTime


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

    @model_validator(mode="after")
    def _images_the_gan_can_make(self) -> Self:
        if self.synthesize.method == "gan" and self.ingest.image_size > _LARGEST_GAN_IMAGE:
            raise ValueError(
                f"synthesize.method = 'gan' makes images of up to {_LARGEST_GAN_IMAGE} pixels, and "
                f"ingest.image_size = {self.ingest.image_size}: choose smote or random, or a smaller size"
            )
        return self


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
    """One pydantic error as ``key = value: what is allowed``."""
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
    """The keys that are allowed beside the unknown one, the likeliest first."""
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
    """The section that a key holds, by itself, in a list, by class name, or null."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section_in(argument) for argument in get_args(annotation))
    return next((section for section in inner if section is not None), None)
