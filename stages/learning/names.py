"""The catalogue: every name that a recipe, a network or `params.yaml` may use.

No import of torch: `params.yaml` is checked by these names before anything slow is loaded.
"""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

# Networks of our own; any classifier of torchvision goes by torchvision's name, and timm's by `timm/NAME`.
OwnNetwork = Literal["mlp", "small_cnn", "resnet9", "resnet20", "resnet32", "airbench94", "lstm", "gru"]
Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "prelu", "elu", "silu", "gelu"]
Initialisation = Literal["auto", "he", "xavier", "orthogonal"]
Normalisation = Literal["batch", "group", "layer", "none"]

Optimiser = Literal["adamw", "adam", "sgd", "rmsprop", "muon"]
Schedule = Literal["one_cycle", "triangle", "cosine", "step", "constant"]

Loss = Literal[
    "cross_entropy",
    "generalised_cross_entropy",
    "symmetric_cross_entropy",
    "forward_correction",
    "early_learning",
    "co_teaching",
    "focal",
    "balanced_softmax",
    "ldam",
]
ClassWeighting = Literal["none", "balanced", "sqrt", "effective"]
Sampling = Literal["shuffle", "balanced"]

Transfer = Literal["feature_extraction", "probe_then_full", "gradual", "layer_wise", "full"]
TestTime = Literal["none", "flip", "shift", "flip_shift"]
Compile = Literal["auto", "off", "probe"]
