"""The sections about data: what comes in, what is wrong with it, what is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stages.issue_kinds import PixelKind, ShapeKind
from stages.params.base import (
    Architecture,
    Count,
    Name,
    Positive,
    Probability,
    Section,
    Seed,
    Share,
    Target,
)


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
