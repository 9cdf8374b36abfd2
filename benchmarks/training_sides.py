"""One training of the same network in three ways; what is done by hand here is what a good loop would do."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.cifar_images import Cifar
from stages.dataset.base import View
from stages.learning.devices import choose_autocast
from stages.learning.loop import fit
from stages.learning.models import Classifier, build_model, pixel_statistics
from stages.learning.networks.layers import ModelSpec
from stages.learning.optimisers import share_of_peak
from stages.learning.recipe import Recipe
from stages.learning.transforms import augment

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What all sides train on, and how.

    Attributes
    ----------
    images : uint8, N×H×W×C
    labels : int64, N
    folder : the same images as PNG files, in a folder a class
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: list[str]
    folder: Path
    recipe: Recipe

    def model(self, seed: int) -> Classifier:
        """The network that all sides begin with."""
        shape = self.images.shape[1:]
        spec = ModelSpec(
            "small_cnn", self.classes, (shape[0], shape[1], shape[2]), *pixel_statistics(self.images)
        )
        return build_model(spec, seed=seed)

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        total = self.recipe.epochs * self.recipe.steps_per_epoch
        return self.recipe.learning_rate * share_of_peak("one_cycle", step, total, self.recipe.warm_up)


def write_files(data: Cifar, rows: NDArray[np.int64], folder: Path) -> None:
    """The training images at `rows` as PNG files, in a folder a class; nothing where they are there."""
    from PIL import Image

    done = folder / "complete"
    if done.is_file():
        return
    for row in rows:
        place = folder / "images" / data.classes[data.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[row]).save(place / f"{row:05d}.png")
    done.touch()


def ours(task: Task, seed: int, on_epoch: Callable[[], None]) -> Classifier:
    """Winnow's loop."""
    weights, names = np.ones(len(task.labels), np.float32), np.arange(len(task.labels)).astype(object)
    view = View(task.images, task.labels, weights, names, task.classes)
    result = fit(
        task.model(seed),
        view,
        task.recipe,
        seed=seed,
        device="cpu",
        description="",
        on_epoch=lambda _: on_epoch(),
    )
    return result.model


def bare(task: Task, seed: int) -> Generator[Classifier, None, None]:
    """Tensors in memory and the fastest steps that plain PyTorch has, and nothing else; a value an epoch."""
    model, autocast = task.model(seed).train(), choose_autocast(CPU, "auto")
    recipe, generator = task.recipe, torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(task.images), torch.from_numpy(task.labels)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for index in order.split(recipe.batch_size)[: recipe.steps_per_epoch]:
            batch = augment(images[index], recipe, generator)
            with autocast.context():
                loss = functional.cross_entropy(model(batch), labels[index])
            _update(model, optimiser, loss, task.rate(step), recipe.clip_norm)
            step += 1
        yield model


def files(task: Task, seed: int, workers: int) -> Generator[Classifier, None, None]:
    """`ImageFolder`, `DataLoader` and torchvision's transforms, in fp32, as tutorials have it."""
    model, recipe = task.model(seed).to(memory_format=torch.contiguous_format).train(), task.recipe
    torch.manual_seed(seed)  # the transforms' too: workers are seeded from it
    loader = make_loader(task, workers)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    step = 0
    for _ in range(recipe.epochs):
        for pixels, labels in islice(loader, recipe.steps_per_epoch):
            loss = functional.cross_entropy(model.head(model.backbone(pixels)), labels)
            _update(model, optimiser, loss, task.rate(step), recipe.clip_norm)
            step += 1
        yield model


def make_loader(task: Task, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of normalised pixels, N×C×H×W, and labels."""
    from torchvision import datasets, transforms

    spec, recipe = task.model(0).spec, task.recipe
    change = transforms.Compose(
        [
            transforms.RandomCrop(task.images.shape[1], padding=recipe.shift, padding_mode="edge"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    return DataLoader(
        datasets.ImageFolder(str(task.folder / "images"), change),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )


def _update(
    model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float, clip_norm: float | None
) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
