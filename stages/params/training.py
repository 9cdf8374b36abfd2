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
