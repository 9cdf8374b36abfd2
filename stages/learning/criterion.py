"""Compute what a step minimises: losses, weights and the choice of co-teaching, as one number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stages.dataset.base import View
from stages.learning.batches import Batch
from stages.learning.losses import class_weighted, coral, make_objective
from stages.learning.models import Classifier
from stages.learning.parallel import World
from stages.learning.recipe import Recipe

_UNKNOWN = -1  # label of a sample in the second column
# Share of the budget in which co-teaching comes to leave out as much as it will.
_FORGETTING = 0.2


class Outputs(NamedTuple):
    """The outputs of a network for a batch.

    Attributes
    ----------
    features : N×D
    logits : N×K
    second : N×L; the second head's logits; None without one
    """

    features: Tensor
    logits: Tensor
    second: Tensor | None

    def of_all(self, here: World, size: int) -> Outputs:
        """Put the rows of all processes together, `size` in all; features only where they are needed."""
        if here.size == 1:
            return self
        own = here.rows(size)
        count = own.stop - own.start

        def every(rows: Tensor) -> Tensor:
            return torch.cat([here.gather(part, size) for part in rows.split(count)])

        adapted = len(self.features) > count  # unlabelled images follow
        return Outputs(
            every(self.features) if adapted else self.features,
            here.gather(self.logits[:count], size),
            None if self.second is None else here.gather(self.second[:count], size),
        )


class Network(nn.Module):
    """Call a classifier as a step does: from normalised pixels to all of its outputs, in one call."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Outputs:
        """Return features and logits of pixels N×C×H×W."""
        features = self.model.backbone(pixels)
        second = None if self.model.second_head is None else self.model.classify_second(features)
        return Outputs(features, self.model.classify(features), second)


class Criterion:
    """Compute the loss from the outputs; the host reads neither.

    Parameters
    ----------
    data : labels, second labels and weights; the weights of classes come on top
    """

    def __init__(
        self,
        data: View,
        recipe: Recipe,
        device: torch.device,
        transition: NDArray[np.float64] | None = None,
    ) -> None:
        weighted = class_weighted(data, recipe.class_weighting, recipe.loss_options.effective_beta)
        first = data if recipe.deferred > 0 else weighted
        self.objective = make_objective(recipe, first, transition).to(device)
        self._recipe = recipe
        self._labels = torch.from_numpy(data.labels).to(device)
        self._weights = [
            torch.from_numpy(view.weights / view.weights.mean()).to(device) for view in (first, weighted)
        ]
        second = data.second_labels
        self._second = None if second is None else torch.from_numpy(second).to(device)
        self._total = recipe.epochs * recipe.steps_per_epoch

    def __call__(self, outputs: list[Outputs], batch: Batch, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Return what to minimise, and the first network's share of it.

        Parameters
        ----------
        outputs : of the network, or of both that teach each other; for the unlabelled images after those
            for the batch
        step : how many were taken before
        size : images of the whole batch, of which `batch` may be a part: the parts' losses add up
        """
        share = len(batch) / size
        losses = [self._losses(each, batch, step) for each in outputs]
        if len(outputs) == 1:
            own = [losses[0][1].sum() / size]
        else:
            own = [loss * share for loss in self._co_taught(losses, step)]
        if batch.unlabeled is not None:
            apart = [each.features.float().tensor_split([len(batch)]) for each in outputs]
            own = [
                loss + share * self._recipe.coral * coral(ours, others)
                for loss, (ours, others) in zip(own, apart, strict=True)
            ]
        return (own[0], own[0]) if len(own) == 1 else (own[0] + own[1], own[0])

    def _losses(self, outputs: Outputs, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Return for each image, float32 N: the first head's loss, and the weighted loss of both heads."""
        plain, weighted = self._losses_for(outputs, batch.index, step)
        if batch.partner is not None and batch.share is not None:
            other, other_weighted = self._losses_for(outputs, batch.partner, step)
            plain = torch.lerp(other, plain, batch.share)
            weighted = torch.lerp(other_weighted, weighted, batch.share)
        return plain, weighted

    def _losses_for(self, outputs: Outputs, index: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the same with the labels and weights of the samples `index`."""
        count = len(index)
        plain = self.objective(outputs.logits[:count], self._labels[index], index)
        both = plain
        if outputs.second is not None and self._second is not None:
            # A mean over all images, not over those with a label: then parts of a batch add up.
            second = functional.cross_entropy(
                outputs.second[:count].float(), self._second[index], ignore_index=_UNKNOWN, reduction="none"
            )
            both = plain + self._recipe.second_weight * second
        late = step >= self._recipe.deferred * self._total
        return plain, both * self._weights[late][index]

    def _co_taught(self, losses: list[tuple[Tensor, Tensor]], step: int) -> list[Tensor]:
        """Return the mean loss of each of two networks over the images that the other finds easiest.

        Han et al., arXiv 1804.06872: early in training what is easy is what is labelled rightly, and
        another network does not repeat one's own mistakes. How many are left out rises to `forget_rate`
        over the first fifth of the budget.
        """
        count = len(losses[0][0])
        rising = min(1.0, step / max(1.0, _FORGETTING * self._total))
        kept = max(1, round(count * (1 - self._recipe.loss_options.forget_rate * rising)))
        easy = [plain.detach().topk(kept, largest=False).indices for plain, _ in losses]
        return [weighted[chosen].mean() for (_, weighted), chosen in zip(losses, easy[::-1], strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return what the objective remembers of the samples."""
        return self.objective.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.objective.load_state_dict(state)
