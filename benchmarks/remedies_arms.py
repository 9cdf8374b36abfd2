"""The remedies that `benchmarks.remedies` compares: what each changes in the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASELINE = "cross_entropy"
_NOISE, _TAIL = ("aggregate", "worst"), ("long_tail",)


@dataclass(frozen=True)
class Arm:
    """One remedy.

    Attributes
    ----------
    tasks : where it is tried
    changes : of the recipe's fields
    suspects : whether it starts from what the noise stage says of the labels
    curated : train on what the default policies leave of the labels
    """

    tasks: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    suspects: bool = False
    curated: bool = False


ARMS = {
    BASELINE: Arm(_NOISE + _TAIL),
    "label_smoothing": Arm(_NOISE + _TAIL, {"label_smoothing": 0.1}),
    "mixup": Arm(_NOISE + _TAIL, {"mixup": 0.2}),
    "moving_average": Arm(_NOISE + _TAIL, {"average_weights": 0.99}),
    "generalised_cross_entropy": Arm(_NOISE, {"loss": "generalised_cross_entropy"}),
    "symmetric_cross_entropy": Arm(_NOISE, {"loss": "symmetric_cross_entropy"}),
    "early_learning": Arm(_NOISE, {"loss": "early_learning"}),
    "curated": Arm(_NOISE, suspects=True, curated=True),
    "curated_label_smoothing": Arm(_NOISE, {"label_smoothing": 0.1}, suspects=True, curated=True),
    "forward_correction": Arm(_NOISE, {"loss": "forward_correction"}, suspects=True),
    "co_teaching": Arm(_NOISE, {"loss": "co_teaching"}, suspects=True),
    "class_weights": Arm(_TAIL, {"class_weighting": "balanced"}),
    "effective_number_weights": Arm(_TAIL, {"class_weighting": "effective"}),
    "balanced_sampling": Arm(_TAIL, {"sampling": "balanced"}),
    "focal": Arm(_TAIL, {"loss": "focal"}),
    "balanced_softmax": Arm(_TAIL, {"loss": "balanced_softmax"}),
    "ldam": Arm(_TAIL, {"loss": "ldam"}),
    "ldam_deferred": Arm(_TAIL, {"loss": "ldam", "class_weighting": "effective", "deferred": 0.8}),
    "mixup_balanced_softmax": Arm(_TAIL, {"loss": "balanced_softmax", "mixup": 0.2}),
}
