"""What all sections of ``params.yaml`` have in common.

The sections about data: what comes in, what is wrong with it, what is made.

The sections about training: networks, the loop, transfer, and how models are scored.
"""

from __future__ import annotations

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
SimpleMethod = Literal["random", "smote", "borderline_smote", "adasyn", "smote_enn", "smote_tomek"]

# The loss, or the class weighting, that takes each constant.
_TAKEN_BY = {constant: loss for loss, traits in LOSSES.items() for constant in traits.constants}
_TAKEN_BY["effective_beta"] = "effective"


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


def _source_format(name: str) -> str:
    from stages.ingestion.opening import FORMAT_NAMES

    if name not in FORMAT_NAMES:
        *names, last = map(repr, FORMAT_NAMES)
        raise ValueError(f"should be {', '.join(names)} or {last}")
    return name


class Ingest(Section):
    """Where the images come from, the shape they are brought to, and how they are split."""

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
    ensemble: EnsembleChoices
    use_augmented: bool
    use_synthetic: bool
    max_made: Positive

    @model_validator(mode="after")
    def _flips_to_alternate(self) -> Self:
        if self.alternate_flips and not self.flip:
            raise ValueError("alternate_flips says how images are flipped: set flip to true, or it to false")
        return self

    @model_validator(mode="after")
    def _deferred_weights(self) -> Self:
        if self.deferred and self.class_weighting == "none":
            raise ValueError(
                "deferred says when class weights come in: choose a class_weighting, or set it to 0"
            )
        if self.deferred and self.loss == "balanced_softmax":
            raise ValueError(
                "loss = 'balanced_softmax' evens out what class weights leave: deferred ones would come on "
                "top of it; set deferred to 0, or take another loss"
            )
        return self

    @model_validator(mode="after")
    def _classes_evened_out_once(self) -> Self:
        twice = self.sampling == "balanced" and self.class_weighting != "none"
        if twice and self.loss != "balanced_softmax":  # which takes out whatever the two make of the classes
            raise ValueError(
                f"sampling = 'balanced' and class_weighting = {self.class_weighting!r} even the classes out "
                "twice, so that rare ones outweigh the others: choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _constants_that_something_takes(self) -> Self:
        for name, value in self.loss_options:
            if value is not None and _TAKEN_BY[name] not in (self.loss, self.class_weighting):
                key = "class_weighting" if name == "effective_beta" else "loss"
                raise ValueError(
                    f"loss_options.{name} is for {key} = {_TAKEN_BY[name]!r}, not {getattr(self, key)!r}: "
                    "take it out"
                )
        return self

    @model_validator(mode="after")
    def _an_image_for_each_device(self) -> Self:
        if self.devices != "auto" and self.devices > self.batch_size:
            raise ValueError(
                f"devices = {self.devices} share each batch, and batch_size = {self.batch_size} is less: "
                "some would have no image"
            )
        return self

    @model_validator(mode="after")
    def _unmixed_where_samples_are_remembered(self) -> Self:
        if LOSSES[self.loss].by_sample and (self.mixup or self.cutmix):
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
    def _a_backbone_that_can_move(self) -> Self:
        if self.mode in ("gradual", "layer_wise", "full") and self.backbone_lr_factor == 0:
            raise ValueError(
                f"mode = {self.mode!r} trains the backbone, and backbone_lr_factor = 0 freezes it: choose "
                "feature_extraction, or a factor above 0"
            )
        if self.coral and self.backbone_lr_factor == 0:
            raise ValueError(
                "coral moves features, and backbone_lr_factor = 0 freezes the backbone: set coral to 0, or "
                "choose a factor above 0"
            )
        return self

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

    @model_validator(mode="after")
    def _features_that_coral_moves(self) -> Self:
        if self.coral and (self.mode == "feature_extraction" or self.epochs == 0):
            raise ValueError(
                "coral moves the features of unlabelled images, and with "
                + ("epochs = 0" if self.mode != "feature_extraction" else "mode = 'feature_extraction'")
                + " the backbone stays as it is: set coral to 0, or train the backbone too"
            )
        return self


class Evaluate(Section):
    """How the test split is scored."""

    bootstrap: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    calibration_bins: Annotated[int, Field(ge=2)]
    test_time: TestTime
