"""List the names that a recipe or `params.yaml` may use, with what the schema has to know of them.

No import of torch: `params.yaml` is checked by these names before anything slow is loaded. The names of
networks are in `networks.catalogue`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class LossTraits:
    """What is known of a loss before it is built.

    Attributes
    ----------
    constants : fields of `LossOptions` that it reads
    balances : it is for classes that are equally common, so that balanced accuracy is what to score by
    by_sample : it judges or remembers each image by itself, and does not go with mixed images
    transfers : it is against wrong labels, and needs neither a second network nor a transition matrix:
        fine-tuning keeps it
    """

    constants: tuple[str, ...] = ()
    balances: bool = False
    by_sample: bool = False
    transfers: bool = False


Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "silu", "gelu"]
Initialisation = Literal["auto", "he", "xavier", "orthogonal"]
Normalisation = Literal["batch", "group", "layer", "none"]

Optimiser = Literal["adamw", "adam", "sgd", "rmsprop", "muon"]
Schedule = Literal["one_cycle", "triangle", "cosine", "step", "constant"]

# Each is built in `losses`, under the same name.
LOSSES: dict[str, LossTraits] = {
    "cross_entropy": LossTraits(),
    "generalised_cross_entropy": LossTraits(("gce_q",), transfers=True),
    "symmetric_cross_entropy": LossTraits(("sce_alpha", "sce_beta"), transfers=True),
    "forward_correction": LossTraits(),
    "early_learning": LossTraits(("elr_strength", "elr_memory"), transfers=True, by_sample=True),
    "co_teaching": LossTraits(("forget_rate",), by_sample=True),
    "focal": LossTraits(("focal_gamma",)),
    "balanced_softmax": LossTraits(balances=True),
    "ldam": LossTraits(("ldam_margin", "ldam_scale"), balances=True),
}
if TYPE_CHECKING:
    Loss = str
else:
    Loss = Literal[tuple(LOSSES)]
ClassWeighting = Literal["none", "balanced", "sqrt", "effective"]
Sampling = Literal["shuffle", "balanced"]

Transfer = Literal["feature_extraction", "probe_then_full", "gradual", "layer_wise", "full"]
TestTime = Literal["none", "flip", "shift", "flip_shift"]
Compile = Literal["off", "on"]
