"""The training step, and all of the state that the next one follows from."""

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
from stages.learning.compiling import choose_network
from stages.learning.criterion import Criterion, Network
from stages.learning.devices import Autocast, is_out_of_memory
from stages.learning.models import Classifier, build_model
from stages.learning.networks.zoo import stages_of
from stages.learning.optimisers import Lookahead, MovingAverage, Optimisation
from stages.learning.parallel import world
from stages.learning.recipe import Recipe

_SHOWN = 5000  # images, at most, that a network is initialised from
_ALONE = "Expected more than 1 value per channel"  # what torch says of batches of one


class Trainer:
    """Networks, optimiser, moving average, losses and random numbers of one training.

    Parameters
    ----------
    model : on the device, trained in place
    name : stands before what is said on stderr
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
        self._average = MovingAverage(model, recipe.average) if recipe.average > 0 else None
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
        """The classifier that is scored and kept: the moving average where there is one."""
        return self.models[0] if self._average is None else cast(Classifier, self._average.module)

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return self.epoch * self.recipe.steps_per_epoch + self.position

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Train with all processes that share the batches, from the same weights; see `World.together`."""
        alone = self.networks
        with contextlib.ExitStack() as stack:
            self.networks = [stack.enter_context(self._here.together(network)) for network in alone]
            yield
        self.networks = alone

    def choose_networks(self) -> None:
        """Compile the networks where a probe says that it pays; see `probe.choose_network`."""
        self._set_modes()
        self._finish()
        for number, network in enumerate(self.networks):
            self.networks[number], note = choose_network(
                network,
                self.feed.preview(),
                steps=self._total - self.steps,
                device=self._device,
                mode=self.recipe.compile,
                context=self._autocast.context,
            )
            if note:
                self.note(f"the network is {note}")

    def step(self) -> None:
        """One update. The host reads nothing off the device: it may run ahead."""
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
        """Close the epoch, and return its mean loss.

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
        """Say on stderr what did not go as ordered, and remember it."""
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        """Say on stderr, beside a progress bar."""
        if self._here.is_main:
            tqdm.write(f"{self._name or 'train'}: {text}", file=sys.stderr)

    def _backward(self, batch: Batch) -> None:
        """Gradients of a batch, in as many parts as memory needs."""
        loss = self._losses[self.position]
        while True:
            try:
                for part in batch.split(self.parts):
                    loss += self._backward_part(part, len(batch))
                return
            except ValueError as error:
                if _ALONE not in str(error):
                    raise
                raise WinnowError(
                    f"batch normalisation cannot compute with one image at a time (batches of {len(batch)}, "
                    f"in {self.parts} part(s)): raise batch_size, or choose another normalisation"
                ) from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
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

    def _backward_part(self, batch: Batch, size: int) -> Tensor:
        """Add the gradients of a part of a batch of `size` images; its share of the loss."""
        pixels = batch.pixels
        if batch.unlabeled is not None:
            pixels = torch.cat([pixels, batch.unlabeled])
        with self._autocast.context():
            outputs = [network(pixels).of_all(self._here, size) for network in self.networks]
            total, own = self.criterion(outputs, batch, self.steps, size)
        total.backward()
        return own.detach()

    def _halve(self, size: int) -> None:
        """Divide batches into twice as many parts from now on."""
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
        """Leave alone in this epoch what a network says has learnt enough."""
        each = [getattr(model.backbone, "finished", None) for model in self.models]
        done = self.epoch / self.recipe.epochs
        self._finished = [own for say in each if say is not None for own in say(done)]
        # Several processes were told at the start which gradients there will be.
        if self._here.size == 1:
            for parameter in self._finished:
                parameter.requires_grad_(False)

    def _initialise_from(self, images: NDArray[np.uint8]) -> None:
        """Show images to networks that take more than chance from them before they learn."""
        for model in self.models:
            initialise = getattr(model.backbone, "initialise_from", None)
            if initialise is not None:
                some = np.array(images[:: max(1, len(images) // _SHOWN)][:_SHOWN])
                initialise(model.normalise(torch.from_numpy(some).to(self._device)))

    def _set_modes(self) -> None:
        """To training, but for what is frozen: that keeps its batch statistics too."""
        for model in self.models:
            model.train()
            if self.recipe.backbone_lr_factor == 0:
                model.backbone.eval()
            elif self.recipe.frozen_stages:
                for stage in stages_of(model.backbone)[: self.recipe.frozen_stages]:
                    stage.eval()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step follows from, but for data and recipe."""
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
        for model, own in zip(self.models, state["models"], strict=True):
            model.load_state_dict(own)
        for slow, own in zip(self._slow, state["slow"], strict=True):
            slow.load_state_dict(own)
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        self.optimisation.load_state_dict(state["optimisation"])
        self.criterion.load_state_dict(state["criterion"])
        self.feed.load_state_dict(state["feed"])
        if not self._here.is_main:
            return  # dropout of its own
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
