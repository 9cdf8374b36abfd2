"""Muon: momentum whose matrices are orthogonalised before the step."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, steepest at zero
_ITERATIONS = 5
_AS_ADAM = 0.2  # root mean square of Adam's usual step, as a share of the rate

_WITH_MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, orthogonalised by Newton–Schulz iterations (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon), with decoupled weight decay.

    torch has a Muon of its own since 2.9, for matrices alone; this one flattens convolution kernels to
    one row an output channel, and takes matrices of one shape in one go. Steps are scaled by
    .2 √max(rows, columns) (Liu et al., arXiv 2502.16982), to be as long as AdamW's, so that one
    rate suits the matrices and the rest.

    Parameters
    ----------
    groups : parameters of at least two dimensions, with their `lr`
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step along the gradients that are there."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, group["momentum"]).flatten(1)
                    by_shape[(update.shape[0], update.shape[1])].append((parameter, update))
            for shape, members in by_shape.items():
                directions = orthogonalised(torch.stack([update for _, update in members]))
                length = -group["lr"] * _AS_ADAM * math.sqrt(max(shape))
                for (parameter, _), direction in zip(members, directions.unbind(), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.view(parameter.shape), alpha=length)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None  # noqa: S101
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices B×M×N with the same singular vectors and all singular values near 1 (about .7 to 1.2).

    In bf16 on GPUs, in float32 elsewhere; float32 comes back.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype, memory_format=torch.contiguous_format)


def matrices_of(module: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon is for: of linear, convolutional, recurrent and attention layers.

    Not embeddings, class tokens or positions, whose rows are looked up and not multiplied.
    """
    return [
        parameter
        for layer in module.modules()
        if isinstance(layer, _WITH_MATRICES)
        for parameter in layer.parameters(recurse=False)
        if parameter.ndim >= 2
    ]
