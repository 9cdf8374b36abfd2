"""Take training steps, and hold all of the state that the next one follows from."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.batches import Batch, Feed
from stages.learning.criterion import Criterion, Network
from stages.learning.devices import Autocast, is_out_of_memory
from stages.learning.models import Classifier, build_model
from stages.learning.networks.zoo import stages_of
from stages.learning.optimisers import Lookahead, MovingAverage, Optimisation
from stages.learning.parallel import world
from stages.learning.recipe import Recipe

_INITIAL_IMAGES = 5000  # at most, that a network is initialised from
_BATCH_OF_ONE = "Expected more than 1 value per channel"  # what torch says of batches of one


class Trainer:
    """Take the steps of one training, with its networks, optimiser, averages, losses and random numbers.

    Parameters
    ----------
    model : on the device, trained in place
    name : stands before messages on stderr
    transition, unlabeled : see `loop.fit`

    Attributes
    ----------
    models : the classifier, and with co-teaching a second one of the same kind
    networks : what a step calls of each: the place for DistributedDataParallel or torch.compile
    epoch, position : epochs that are done, and steps of the one under way
    parts : into how many a batch is divided, for memory
    notes : a sentence each for what did not go as ordered
    """

    def __init__(
        self,
        model: Classifier,
        data: View,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        autocast: Autocast,
        name: str = "train",
        transition: NDArray[np.float64] | None = None,
        unlabeled: NDArray[np.uint8] | None = None,
    ) -> None:
        self.recipe, self._device, self._autocast, self._name = recipe, device, autocast, name
        self.models = [model]
        if recipe.loss == "co_teaching":
            self.models.append(build_model(model.spec, seed=(seed + 1) % 2**32).to(device))
        self.feed = Feed(
            data.images,
            data.labels,
            recipe,
            seed=seed,
            device=device,
            normalise=model.normalise,
            unlabeled=unlabeled if recipe.coral > 0 else None,
        )
        self._initialise_from(data.images)
        self.criterion = Criterion(data, recipe, device, transition)
        self.optimisation = Optimisation(self.models, recipe)
        self.networks: list[nn.Module] = [Network(each) for each in self.models]
        self._here = world()
        self._average = MovingAverage(model, recipe.average_weights) if recipe.average_weights > 0 else None
        self._total = recipe.epochs * recipe.steps_per_epoch
        slow = self.models if recipe.lookahead else []
        self._slow = [Lookahead(each, recipe.lookahead, self._total) for each in slow]
        self.epoch, self.position, self.parts = 0, 0, 1
        self._losses = torch.zeros(recipe.steps_per_epoch, device=device)
        self._rates: list[float] = []
        self.notes: list[str] = []
        self._finished: list[nn.Parameter] = []
        self._set_modes()

    @property
    def result(self) -> Classifier:
        """Return the classifier that is scored and kept: the moving average where there is one."""
        return self.models[0] if self._average is None else cast(Classifier, self._average.module)

    @property
    def steps(self) -> int:
        """Return the number of steps that were taken."""
        return self.epoch * self.recipe.steps_per_epoch + self.position

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Train with all processes that share the batches, from the same weights; see `World.together`."""
        networks = self.networks
        with contextlib.ExitStack() as stack:
            self.networks = [stack.enter_context(self._here.together(network)) for network in networks]
            yield
        self.networks = networks

    def compile_networks(self) -> None:
        """Compile the networks where the recipe says so; in several processes they stay as they are."""
        if self.recipe.compile == "off":
            return
        if self._here.size > 1:
            self.note("networks are not compiled in several processes")
            return
        # All batches are of one size.
        self.networks = [cast(nn.Module, torch.compile(network, dynamic=False)) for network in self.networks]

    def step(self) -> None:
        """Take one step. The host reads nothing off the device: it may run ahead."""
        if self.position == 0:
            self._losses.zero_()
            self._rates = []
            self._set_modes()  # validation has set them otherwise
            self._finish()
        self._rates.append(self.optimisation.rate)
        self._backward(self.feed.next())
        for parameter in self._finished:
            parameter.grad = None
        self.optimisation.apply()
        self.position += 1
        for slow in self._slow:
            slow.after(self.steps)
        if self._average is not None:
            self._average.update_parameters(self.models[0])

    def end_epoch(self) -> float:
        """End the epoch, and return its mean loss.

        Raises
        ------
        WinnowError
            Where a loss or a weight is no longer a number; with the step and its learning rate.
        """
        losses = self._losses.tolist()
        first = self.steps - self.position
        for number, (loss, rate) in enumerate(zip(losses, self._rates, strict=True), start=1):
            if not math.isfinite(loss):
                raise WinnowError(
                    f"the loss is not a number in step {first + number} (learning rate {rate:.2g}): lower it"
                )
        weights = [weight.detach() for model in self.models for weight in model.parameters()]
        norms = torch._foreach_norm(weights)
        if not torch.stack(norms).isfinite().all():
            raise WinnowError(
                f"weights are not numbers after step {self.steps} "
                f"(learning rate {self._rates[-1]:.2g}): lower it"
            )
        self.epoch, self.position = self.epoch + 1, 0
        return math.fsum(losses) / len(losses)

    def note(self, text: str) -> None:
        """Print to stderr what did not go as ordered, and remember it."""
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        """Print to stderr, above a progress bar."""
        if self._here.is_main:
            tqdm.write(f"{self._name or 'train'}: {text}", file=sys.stderr)

    def _backward(self, batch: Batch) -> None:
        """Compute the gradients of a batch, in as many parts as memory needs."""
        loss = self._losses[self.position]
        while True:
            try:
                for part in batch.split(self.parts):
                    loss += self._backward_part(part, len(batch))
                return
            except ValueError as error:
                if _BATCH_OF_ONE not in str(error):
                    raise
                raise WinnowError(
                    f"batch normalisation cannot compute with one image at a time (batches of {len(batch)}, "
                    f"in {self.parts} part(s)): raise batch_size, or choose another normalisation"
                ) from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    self._explain_compiler(error)
                    raise
                if self._here.size > 1:
                    # The others wait for this one within the step, and cannot be told to begin again.
                    raise WinnowError(
                        f"memory is too small for batches of {len(batch)} on {self._here.size} devices: "
                        "lower batch_size"
                    ) from error
            # Outside of `except`: the error holds on to the step's tensors.
            self._halve(len(batch))
            loss.zero_()

    def _explain_compiler(self, error: Exception) -> None:
        """Raise a WinnowError where it was torch.compile that failed; its own message may be pages."""
        if self.recipe.compile == "off":
            return
        from torch._dynamo.exc import TorchDynamoException  # loaded where something is compiled

        if isinstance(error, TorchDynamoException):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WinnowError(f"torch.compile failed ({first[:200]}): set train.compile to off") from error

    def _backward_part(self, batch: Batch, size: int) -> Tensor:
        """Add the gradients of a part of a batch of `size` images, and return its share of the loss."""
        pixels = batch.pixels
        if batch.unlabeled is not None:
            pixels = torch.cat([pixels, batch.unlabeled])
        with self._autocast.context():
            outputs = [network(pixels).of_all(self._here, size) for network in self.networks]
            total, first = self.criterion(outputs, batch, self.steps, size)
        total.backward()
        return first.detach()

    def _halve(self, size: int) -> None:
        """Split batches into twice as many parts from now on."""
        most = size if self.recipe.coral == 0 else max(1, size // 2)  # a covariance needs two images
        if self.parts >= most:
            raise WinnowError(
                "memory is too small for a single image: take a smaller model, smaller images, or device: cpu"
            )
        for model in self.models:
            model.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.parts = min(2 * self.parts, most)
        self.note(
            f"memory was too small: from step {self.steps + 1} on a batch of {size} is computed in "
            f"{self.parts} parts, with statistics for batch normalisation of their own"
        )

    def _finish(self) -> None:
        """Freeze for this epoch the parameters that a network declares as finished."""
        share = self.epoch / self.recipe.epochs
        backbones: list[Any] = [
            model.backbone for model in self.models if hasattr(model.backbone, "finished")
        ]
        self._finished = [each for backbone in backbones for each in backbone.finished(share)]
        # Several processes were told at the start which gradients there will be.
        if self._here.size == 1:
            for parameter in self._finished:
                parameter.requires_grad_(False)

    def _initialise_from(self, images: NDArray[np.uint8]) -> None:
        """Initialise the networks that take statistics from images before they learn."""
        for model in self.models:
            initialise = getattr(model.backbone, "initialise_from", None)
            if initialise is not None:
                every = max(1, len(images) // _INITIAL_IMAGES)
                sample = np.array(images[::every][:_INITIAL_IMAGES])
                initialise(model.normalise(torch.from_numpy(sample).to(self._device)))

    def _set_modes(self) -> None:
        """Set the networks to training mode, but for frozen parts, which keep their batch statistics."""
        for model in self.models:
            model.train()
            if self.recipe.backbone_lr_factor == 0:
                model.backbone.eval()
            elif self.recipe.frozen_stages:
                for stage in stages_of(model.backbone)[: self.recipe.frozen_stages]:
                    stage.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step follows from, but for data and recipe."""
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "position": self.position,
            "parts": self.parts,
            "losses": self._losses,
            "rates": self._rates,
            "notes": self.notes,
            "models": [model.state_dict() for model in self.models],
            "slow": [slow.state_dict() for slow in self._slow],
            "average": None if self._average is None else self._average.state_dict(),
            "optimisation": self.optimisation.state_dict(),
            "criterion": self.criterion.state_dict(),
            "feed": self.feed.state_dict(),
            "random": torch.get_rng_state(),  # dropout's
        }
        if self._device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.epoch, self.position, self.parts = state["epoch"], state["position"], state["parts"]
        self._losses.copy_(state["losses"])
        self._rates, self.notes = list(state["rates"]), list(state["notes"])
        for model, part in zip(self.models, state["models"], strict=True):
            model.load_state_dict(part)
        for slow, part in zip(self._slow, state["slow"], strict=True):
            slow.load_state_dict(part)
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.optimisation.load_state_dict(state["optimisation"])
        self.criterion.load_state_dict(state["criterion"])
        self.feed.load_state_dict(state["feed"])
        self._finish()
        if not self._here.is_main:
            return  # dropout of its own
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
