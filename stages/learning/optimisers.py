"""Update weights: optimisers and schedules by name, rates by depth, penalties, and averages of weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stages.errors import WinnowError
from stages.learning.models import Classifier
from stages.learning.networks.zoo import NORMALISATIONS, stages_of
from stages.learning.recipe import Recipe

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, steepest at zero
_ITERATIONS = 5
_AS_ADAM = 0.2  # root mean square of Adam's usual step, as a share of the rate
_WITH_MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)
_START = 0.1  # share of the peak that warm-up begins with
_DROPS = (0.6, 0.8)  # of the budget, where the schedule `step` goes down to a tenth
_TRIANGLE = (0.2, 0.07)  # share of the peak that `triangle` begins and ends with
_FUSED = ("cpu", "cuda", "mps")
_DECAYED_HERE = ("sgd", "rmsprop")  # torch's own weight decay of these is not decoupled


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992; Tarvainen & Valpola,
    arXiv 1703.01780); `module` is the average, a model of its own.

    Statistics of batch normalisation are averaged likewise: those of the last step belong to other weights.
    Young averages forget faster, by (1 + n) / (10 + n) after n steps, so that a short training is not
    spent on forgetting how it began.

    Parameters
    ----------
    model : is copied, on its device
    decay : 0 to 1; what is kept of the average in each step
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay
        self.module.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights after a step.

        torch's own hands the count to the device, and waits for it there. Here it stays on the host.
        """
        steps = int(self.n_averaged)
        keep = min(self._decay, (1 + steps) / (10 + steps)) if steps else 0.0
        averaged, current = (list(chain(each.parameters(), each.buffers())) for each in (self.module, model))
        pairs = list(zip(averaged, current, strict=True))
        averages = [average for average, _ in pairs if average.is_floating_point()]
        torch._foreach_lerp_(averages, [value for _, value in pairs if value.is_floating_point()], 1 - keep)
        for average, value in pairs:
            if not average.is_floating_point():  # counts
                average.copy_(value)
        self.n_averaged += 1


class Lookahead:
    """Slow weights that follow a model's, and that it is set back to (Zhang et al., arXiv 1907.08610).

    After every `every` steps the slow weights go a part of the way to the model's, and the model takes their
    place. They keep the share .95^every · (s / n)³ of themselves in step s of n (Jordan, arXiv 2404.00498,
    appendix): the model goes its own way at first. After the last step it takes the slow weights as they are.
    Batch statistics are treated likewise.

    Parameters
    ----------
    model : its weights now are the first slow ones
    every : steps
    total : steps of the whole training
    """

    def __init__(self, model: nn.Module, every: int, total: int) -> None:
        self._model, self._every, self._total = model, every, total
        self._slow = [value.detach().clone() for value in self._fast()]

    def _fast(self) -> list[torch.Tensor]:
        return [value for value in self._model.state_dict().values() if value.is_floating_point()]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Update the weights after a step; `step` is the number of steps that were taken."""
        last = step >= self._total
        if step % self._every and not last:
            return
        fast = self._fast()
        if step % self._every == 0:
            keep = 0.95**self._every * (step / self._total) ** 3
            torch._foreach_lerp_(self._slow, fast, 1 - keep)
        torch._foreach_copy_(fast, self._slow)

    def state_dict(self) -> dict[str, Any]:
        """Return the slow weights."""
        return {"slow": self._slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        torch._foreach_copy_(self._slow, state["slow"])


def parameter_groups(model: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Group parameters by peak rate and `l2`, in the order from image to logits, without frozen ones.

    Sets `requires_grad` of each: a model that was trained with frozen stages before is not frozen for good.
    """
    groups: list[dict[str, Any]] = []
    second = getattr(model, "second_head", None)
    heads = [*model.head.parameters(), *(second.parameters() if second is not None else ())]
    for parameters, factor in [*_backbone(model.backbone, recipe), (heads, 1.0)]:
        for parameter in parameters:
            parameter.requires_grad_(factor > 0)
        if factor > 0 and parameters:
            groups.append({"params": parameters, "lr": recipe.learning_rate * factor, "l2": recipe.l2})
    if recipe.norm_bias_factor == 1:
        return groups
    biases = {id(bias) for bias in normalisation_biases(model)}
    return [part for group in groups for part in _split_biases(group, biases, recipe)]


def normalisation_biases(model: nn.Module) -> list[nn.Parameter]:
    """Return the biases of batch, group and layer normalisation."""
    return [
        module.bias
        for module in model.modules()
        if isinstance(module, NORMALISATIONS) and isinstance(module.bias, nn.Parameter)
    ]


def _split_biases(group: dict[str, Any], biases: set[int], recipe: Recipe) -> list[dict[str, Any]]:
    """Split off a group's biases, with the rate raised and the decay lowered so that a step's decay stays."""
    inside = [parameter for parameter in group["params"] if id(parameter) in biases]
    outside = [parameter for parameter in group["params"] if id(parameter) not in biases]
    factor = recipe.norm_bias_factor
    raised = {
        "params": inside,
        "lr": group["lr"] * factor,
        "l2": group["l2"] / factor,
        "weight_decay": recipe.weight_decay / factor,
    }
    return [part for part in (raised, {**group, "params": outside}) if part["params"]]


def _backbone(backbone: nn.Module, recipe: Recipe) -> list[tuple[list[nn.Parameter], float]]:
    """Return the backbone's parameters with the factor of their rate, by stage where rates differ."""
    if recipe.layer_decay == 1 and recipe.frozen_stages == 0:
        return [(list(backbone.parameters()), recipe.backbone_lr_factor)]
    stages = stages_of(backbone)
    top = len(stages) - 1
    return [
        (
            list(stage.parameters()),
            0.0
            if number < recipe.frozen_stages
            else recipe.backbone_lr_factor * recipe.layer_decay ** (top - number),
        )
        for number, stage in enumerate(stages)
    ]


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
    """Orthogonalise matrices B×M×N: the same singular vectors, all singular values near 1 (.7 to 1.2).

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
    """Return the weights that Muon is for: of linear, convolutional, recurrent and attention layers.

    Not embeddings, class tokens or positions, whose rows are looked up and not multiplied.
    """
    return [
        parameter
        for layer in module.modules()
        if isinstance(layer, _WITH_MATRICES)
        for parameter in layer.parameters(recurse=False)
        if parameter.ndim >= 2
    ]


def share_of_peak(schedule: str, step: int, total: int, warm_up: float) -> float:
    """Return what the peak rate is multiplied by in `step` (from 0) of `total`: 0 to 1.

    - `one_cycle` (Smith & Topin, arXiv 1708.07120): up along a line in the share `warm_up` of the budget,
      then down to nothing along half a cosine. The momentum is left as it is.
    - `triangle` (Jordan, arXiv 2404.00498): up along a line in the share `warm_up` of the budget, from a
      fifth of the peak, then down along another, to 7 % of it.
    - `cosine` (Loshchilov & Hutter, arXiv 1608.03983): half a cosine over the whole budget.
    - `step`: a tenth from 60 % of the budget on, a hundredth from 80 %.
    - `constant`.

    The last three are multiplied by the line that rises through `warm_up`, from a tenth to 1.

    Raises
    ------
    WinnowError
        For a name that is not in the catalogue; the message lists those that are.
    """
    if schedule not in _SCHEDULES:
        raise WinnowError(f"unknown schedule {schedule!r}; known: {', '.join(_SCHEDULES)}")
    return _SCHEDULES[schedule](step, total, warm_up)


def _one_cycle(step: int, total: int, warm_up: float) -> float:
    # torch's own OneCycleLR divides by zero for some budgets of a few steps.
    peak = max(1.0, warm_up * total)
    if step < peak:
        return _rise(step, peak)
    return _half_cosine((step - peak) / max(1.0, total - peak))


def _triangle(step: int, total: int, warm_up: float) -> float:
    start, end = _TRIANGLE
    peak = int(warm_up * total)
    if step < peak:
        return start + (1 - start) * step / peak
    return 1 - (1 - end) * (step - peak) / max(1, total - peak)


def _cosine(step: int, total: int, warm_up: float) -> float:
    return _half_cosine(step / max(1, total)) * _rise(step, warm_up * total)


def _step(step: int, total: int, warm_up: float) -> float:
    return 0.1 ** sum(step >= drop * total for drop in _DROPS) * _rise(step, warm_up * total)


def _constant(step: int, total: int, warm_up: float) -> float:
    return _rise(step, warm_up * total)


def _rise(step: int, peak: float) -> float:
    return _START + (1 - _START) * step / peak if step < peak else 1.0


def _half_cosine(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


# By the names of `names.Schedule`: of the step (from 0), the steps in all, and the share of warm-up.
_SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "one_cycle": _one_cycle,
    "triangle": _triangle,
    "cosine": _cosine,
    "step": _step,
    "constant": _constant,
}


class Optimisation:
    """Update one or several models, which share nothing: optimiser, schedule, penalties and clipping.

    Nothing in a step waits for the device.

    Parameters
    ----------
    models : on the device where they are trained; their `requires_grad` follows from the recipe
    recipe : see `Recipe`

    Raises
    ------
    WinnowError
        For an optimiser or a schedule that is not in the catalogue; the message lists those that are.
    """

    def __init__(self, models: Sequence[Classifier], recipe: Recipe) -> None:
        self._recipe = recipe
        groups = [parameter_groups(model, recipe) for model in models]
        self._parameters = [[parameter for group in each for parameter in group["params"]] for each in groups]
        self._l2 = [[(group["params"], group.pop("l2")) for group in each] for each in groups]
        matrices = {id(matrix) for model in models for matrix in matrices_of(model.backbone)}
        self._optimisers = _make_optimisers(list(chain.from_iterable(groups)), recipe, matrices)
        self._peaks = [group["lr"] for group in self._groups()]
        self._step = 0
        self._set_rates()

    @property
    def rate(self) -> float:
        """Return the head's learning rate in the next step."""
        return self._recipe.learning_rate * self._share()

    def apply(self) -> None:
        """Take a step along the gradients that are there, and forget them."""
        for parameters, l2 in zip(self._parameters, self._l2, strict=True):
            self._penalise(parameters, l2)
            self._clip(parameters)
        if self._recipe.weight_decay and self._recipe.optimiser in _DECAYED_HERE:
            self._decay()
        for optimiser in self._optimisers:
            optimiser.step()
        self._step += 1
        self._set_rates()
        for parameters in self._parameters:
            for parameter in parameters:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a continued training needs: tensors, numbers and names alone."""
        return {"optimisers": [each.state_dict() for each in self._optimisers], "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for optimiser, part in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(part)
        self._step = int(state["step"])
        self._set_rates()

    @torch.no_grad()
    def _penalise(self, parameters: list[nn.Parameter], l2: list[tuple[list[nn.Parameter], float]]) -> None:
        """Add the gradients of `l1` and `l2` of one model to the loss's, with which they are clipped."""
        moved = _moved(parameters)
        if self._recipe.l1 and moved:
            torch._foreach_add_(_gradients(moved), torch._foreach_sign(moved), alpha=self._recipe.l1)
        for group, share in l2:
            moved = _moved(group)
            if share and moved:
                torch._foreach_add_(_gradients(moved), moved, alpha=share)

    def _clip(self, parameters: list[nn.Parameter]) -> None:
        recipe = self._recipe
        if recipe.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, recipe.clip_value)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)

    @torch.no_grad()
    def _decay(self) -> None:
        for group in self._groups():
            moved = _moved(group["params"])
            if moved:
                decay = group["lr"] * group["decoupled_decay"]
                torch._foreach_mul_(moved, 1 - decay)

    def _share(self) -> float:
        recipe = self._recipe
        total = recipe.epochs * recipe.steps_per_epoch
        return share_of_peak(recipe.schedule, self._step, total, recipe.warm_up)

    def _set_rates(self) -> None:
        share = self._share()
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * share

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimiser in self._optimisers for group in optimiser.param_groups)


def _moved(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter for parameter in parameters if parameter.grad is not None]


def _gradients(moved: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in moved if parameter.grad is not None]


def _make_optimisers(
    groups: list[dict[str, Any]], recipe: Recipe, matrices: set[int]
) -> list[torch.optim.Optimizer]:
    """Build the optimiser that the recipe names; for `muon` a second one for what is not a matrix."""
    if recipe.optimiser not in _OPTIMISERS:
        raise WinnowError(f"unknown optimiser {recipe.optimiser!r}; known: {', '.join(_OPTIMISERS)}")
    return _OPTIMISERS[recipe.optimiser](groups, recipe, matrices)


def _adamw(groups: list[dict[str, Any]], recipe: Recipe, matrices: set[int]) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=_are_fused(groups))]


def _sgd(groups: list[dict[str, Any]], recipe: Recipe, matrices: set[int]) -> list[torch.optim.Optimizer]:
    momentum, fused = recipe.momentum, _are_fused(groups)
    groups = _decayed_here(groups, recipe.weight_decay)
    return [torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0, fused=fused)]


def _rmsprop(groups: list[dict[str, Any]], recipe: Recipe, matrices: set[int]) -> list[torch.optim.Optimizer]:
    return [torch.optim.RMSprop(_decayed_here(groups, recipe.weight_decay), momentum=recipe.momentum)]


def _muon(groups: list[dict[str, Any]], recipe: Recipe, matrices: set[int]) -> list[torch.optim.Optimizer]:
    inside, outside = (_only(groups, matrices, inside=flag) for flag in (True, False))
    optimisers: list[torch.optim.Optimizer] = []
    if inside:
        optimisers.append(Muon(inside, momentum=recipe.momentum, weight_decay=recipe.weight_decay))
    return optimisers + (_adamw(outside, recipe, matrices) if outside else [])


_Build = Callable[[list[dict[str, Any]], Recipe, set[int]], list[torch.optim.Optimizer]]

# By the names of `names.Optimiser`. With decoupled decay adamw and adam are one; the decay of Adam as it was
# published is `l2`.
_OPTIMISERS: dict[str, _Build] = {
    "adamw": _adamw,
    "adam": _adamw,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "muon": _muon,
}


def _are_fused(groups: list[dict[str, Any]]) -> bool:
    """Whether all parameters are on devices on which torch has fused updates."""
    return all(parameter.device.type in _FUSED for group in groups for parameter in group["params"])


def _decayed_here(groups: list[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """Move the decay of the groups to a name that torch does not know."""
    return [
        {**group, "weight_decay": 0.0, "decoupled_decay": group.get("weight_decay", decay)}
        for group in groups
    ]


def _only(groups: list[dict[str, Any]], chosen: set[int], *, inside: bool) -> list[dict[str, Any]]:
    """Reduce the groups to the parameters that are among the chosen, or are not."""
    parts = [
        {**group, "params": [p for p in group["params"] if (id(p) in chosen) == inside]} for group in groups
    ]
    return [part for part in parts if part["params"]]
