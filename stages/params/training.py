"""The sections about training: networks, the loop, transfer, and how models are scored."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.learning.names import (
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
from stages.params.base import (
    Architecture,
    Chance,
    Count,
    NotNegative,
    Positive,
    Section,
    Share,
)


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


# The loss, or the class weighting, that takes each constant.
_TAKEN_BY = {
    "gce_q": "generalised_cross_entropy",
    "sce_alpha": "symmetric_cross_entropy",
    "sce_beta": "symmetric_cross_entropy",
    "elr_strength": "early_learning",
    "elr_memory": "early_learning",
    "forget_rate": "co_teaching",
    "focal_gamma": "focal",
    "ldam_margin": "ldam",
    "ldam_scale": "ldam",
    "effective_beta": "effective",
}


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
