"""Define the sections of ``params.yaml``: their keys, and the values that each takes.

What sections have in common comes first, then those about data, then those about training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from stages.dataset.issue_kinds import PixelKind, ShapeKind
from stages.learning.names import (
    LOSSES,
    Activation,
    ClassWeighting,
    Compile,
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
from stages.noise.labels import RULES

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


def _known_rule(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"must be one of {', '.join(map(repr, RULES))}")
    return name


NoiseRule = Annotated[str, AfterValidator(_known_rule)]
SimpleMethod = Literal["random", "smote", "borderline_smote", "adasyn", "smote_enn", "smote_tomek"]

# The loss, or the class weighting, that takes each constant.
_TAKEN_BY = {constant: loss for loss, traits in LOSSES.items() for constant in traits.constants}
_TAKEN_BY["effective_beta"] = "effective"


class Section(BaseModel):
    """A section of ``params.yaml``: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in self.problems():
            raise ValueError(problem)
        return self

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys, each by itself being right; the first is reported."""
        yield from ()


class Columns(Section):
    """The columns of a manifest: `auto` for the usual names, null for none."""

    path: Name
    label: Name
    split: Name | None
    group: Name | None
    weight: Name | None
    second_label: Name | None


def _source_format(name: str) -> str:
    from stages.ingestion.opening import FORMAT_NAMES

    if name not in FORMAT_NAMES:
        *names, last = map(repr, FORMAT_NAMES)
        raise ValueError(f"should be {', '.join(names)} or {last}")
    return name


class Ingest(Section):
    """The source of the images, the shape they are brought to, and how they are split."""

    source: Name
    format: Annotated[str, AfterValidator(_source_format)]
    columns: Columns
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    resize: Literal["crop", "pad", "stretch"]
    color: Literal["grey", "rgb"]
    val_share: Share
    test_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    near_duplicates: Annotated[float, Field(ge=0.5, le=1.0)] | None
    leaked: Literal["leave_out", "keep"]
    max_quarantine: Probability

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.val_share + self.test_share >= 1.0:
            yield "val_share + test_share must be less than 1: nothing is left to train on"


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
    rule: NoiseRule
    neighbors: Annotated[int, Field(ge=1, le=100)]
    image_checks: Literal["auto"] | list[Literal[PixelKind, ShapeKind]]

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if len(set(self.models)) < len(self.models):
            yield "models names an architecture twice; for more of one raise repeats"


class LabelErrorPolicy(Section):
    """The policy for label errors: `action` from `confidence` on, else `otherwise`."""

    action: Literal["relabel", "drop", "reweight", "keep"]
    confidence: Probability
    otherwise: Literal["drop", "reweight", "keep"]

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.action == "reweight" and self.otherwise == "drop":
            yield (
                "with action 'reweight', otherwise must be 'reweight' or 'keep': "
                "what is less sure is not dropped"
            )


class IssuePolicy(LabelErrorPolicy):
    """The policy for any other kind of issue, which suggests no label."""

    action: Literal["drop", "reweight", "keep"]


class Curate(Section):
    """The policy for each kind of issue in the training split, and how far it may go."""

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

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.preset is None and self.policy is None:
            yield "preset and policy are both null: name a preset, or a policy ([]: no copies)"


class Gan(Section):
    """The class-conditional GAN."""

    steps: Count
    batch_size: Annotated[int, Field(ge=2)]
    latent_dim: Count
    width: Annotated[int, Field(ge=8, multiple_of=8)]
    learning_rate: Positive
    snapshots: Annotated[int, Field(ge=1, le=100)]


class Gate(Section):
    """The gate that generated images have to pass before they may be trained on."""

    min_agreement: Probability
    copy_quantile: Probability
    min_accepted: Probability
    min_density: Probability
    min_coverage: Probability
    min_diversity: Probability
    max_kid: Positive


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


class LayerOptions(Section):
    """The layers of networks of our own."""

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


class EnsembleOptions(Section):
    """Networks that are saved as one model."""

    members: Annotated[int, Field(ge=1, le=100)]
    over: Literal["seeds", "folds"]

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.over == "folds" and self.members < 2:
            yield "over = 'folds' needs at least 2 members: each leaves one fold out"


class Train(Section):
    """The training loop; ``baseline`` uses the same section on the untreated split."""

    model: Architecture
    layers: LayerOptions
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
    norm_bias_factor: Positive
    lookahead: Annotated[int, Field(ge=0)]
    average_weights: Chance
    loss: Loss
    loss_options: LossConstants
    label_smoothing: Share
    class_weighting: ClassWeighting
    deferred: Share
    sampling: Sampling
    shift: Annotated[int, Field(ge=0, le=1024)]
    flip: bool
    alternate_flips: bool
    cutout: Annotated[int, Field(ge=0, le=1024)]
    mixup: NotNegative
    cutmix: NotNegative
    precision: Precision
    compile: Compile
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    early_stopping: bool
    ensemble: EnsembleOptions
    use_augmented: bool
    use_synthetic: bool
    max_made: Positive

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.alternate_flips and not self.flip:
            yield "alternate_flips says how images are flipped: set flip to true, or it to false"
        if self.deferred and self.class_weighting == "none":
            yield "deferred says when class weights come in: choose a class_weighting, or set it to 0"
        if self.deferred and self.loss == "balanced_softmax":
            yield (
                "loss = 'balanced_softmax' evens out what class weights leave: deferred ones would come on "
                "top of it; set deferred to 0, or take another loss"
            )
        twice = self.sampling == "balanced" and self.class_weighting != "none"
        if twice and self.loss != "balanced_softmax":  # which takes out whatever the two make of the classes
            yield (
                f"sampling = 'balanced' and class_weighting = {self.class_weighting!r} even the classes out "
                "twice, so that rare ones outweigh the others: choose one of them"
            )
        for name, value in self.loss_options:
            if value is not None and _TAKEN_BY[name] not in (self.loss, self.class_weighting):
                key = "class_weighting" if name == "effective_beta" else "loss"
                yield (
                    f"loss_options.{name} is for {key} = {_TAKEN_BY[name]!r}, not {getattr(self, key)!r}: "
                    "take it out"
                )
        if self.devices != "auto" and self.devices > self.batch_size:
            yield (
                f"devices = {self.devices} share each batch, and batch_size = {self.batch_size} is less: "
                "some would have no image"
            )
        if LOSSES[self.loss].by_sample and (self.mixup or self.cutmix):
            yield f"loss = {self.loss!r} judges each image by itself: it does not go with mixup or cutmix"


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

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.mode in ("gradual", "layer_wise", "full") and self.backbone_lr_factor == 0:
            yield (
                f"mode = {self.mode!r} trains the backbone, and backbone_lr_factor = 0 freezes it: choose "
                "feature_extraction, or a factor above 0"
            )
        if self.coral and self.backbone_lr_factor == 0:
            yield (
                "coral moves features, and backbone_lr_factor = 0 freezes the backbone: set coral to 0, or "
                "choose a factor above 0"
            )
        if self.mode == "feature_extraction":
            if self.head_epochs == 0:
                yield "mode = 'feature_extraction' trains the head: head_epochs must be at least 1"
        elif self.mode in ("layer_wise", "full"):
            if self.epochs == 0:
                yield f"mode = {self.mode!r} trains everything at once: epochs must be at least 1"
        elif self.head_epochs + self.epochs == 0:
            yield "head_epochs + epochs must be at least 1"
        if self.coral and (self.mode == "feature_extraction" or self.epochs == 0):
            yield (
                "coral moves the features of unlabelled images, and with "
                + ("epochs = 0" if self.mode != "feature_extraction" else "mode = 'feature_extraction'")
                + " the backbone stays as it is: set coral to 0, or train the backbone too"
            )


class Evaluate(Section):
    """The scoring of the test split."""

    bootstrap: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    calibration_bins: Annotated[int, Field(ge=2)]
    test_time: TestTime
