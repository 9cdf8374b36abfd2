"""One class-conditional GAN over all classes, by a recipe for small data.

- relativistic pairing loss with zero-centred gradient penalties on real and generated images
  (R3GAN: Huang et al., arXiv 2501.05441, section 2), the penalties only every few steps
  (lazy regularisation: Karras et al., arXiv 1912.04958, section 3.1);
- the same kinds of random translation, cutout and brightness before the discriminator for real and
  generated images (DiffAugment: Zhao et al., arXiv 2006.10738), and no flips;
- a moving average of the generator's weights is what generates (Yazıcı et al., arXiv 1806.04498),
  in the state that validation chooses for each class;
- classes are drawn by the square root of their counts, between as they come and all alike, in groups
  of one class, whose spread the discriminator sees (see `networks`);
- the discriminator learns twice as fast as the generator (two time-scales: Heusel et al.,
  arXiv 1706.08500).

Which state of the generator makes which class: the one whose images come nearest to validation.

Training a GAN has no loss that says how good its images are, and on little data the last state is
often not the best one, for some classes. Test images have no part in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from stages.dataset.checkpoints import Checkpoints
from stages.errors import WinnowError
from stages.learning.devices import choose_device, is_out_of_memory, to_device
from stages.learning.names import Device
from stages.synthesis.gan_networks import MAX_CHANNELS, MAX_SIZE, MIN_SIZE, SIZE_STEP, Generator, supports
from stages.synthesis.gan_trainer import GANConfig, GANConfigError, Record, Trainer, Weights, inputs_digest

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
PER_CLASS = 128  # generated images that a score compares
_FEWEST = 8  # validation images of a class under which its score says too little
_COARSE = 8  # pixels
_GENERATE_BATCH = 256
_CHECK_EVERY = 25  # steps after which to look whether all is numbers; besides those of samples and snapshots
_SAMPLES = 8  # of each class
_KEEP_SHARE = 0.02  # of the time may go into checkpoints
_SCORE_SEED = 0
OnRow = Callable[[dict[str, float]], None]
OnSamples = Callable[[int, NDArray[np.uint8]], None]


def snapshot_steps(steps: int, count: int) -> list[int]:
    """So many steps, evenly spread over the second half of training; the last one is among them."""
    half = steps / 2
    return sorted({max(1, round(half + half * number / count)) for number in range(1, count + 1)})


def kernel_distance(made: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    """Squared maximum mean discrepancy by the cubic polynomial kernel, unbiased: 0 for one distribution.

    The Kernel Inception Distance (Bińkowski et al., arXiv 1801.01401, section 4) in whichever space the
    embeddings, N×D and M×D with at least two rows each, are of. Of all images at once: the subsets of the
    gate's (torchmetrics') would add noise to what little validation says.
    """
    x, y = made.astype(np.float64), real.astype(np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: NDArray[np.float64]) -> float:
        similar = kernel(a, a)
        return float((similar.sum() - np.trace(similar)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def coarse_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels averaged down to 8×8: N×(8·8·C), 0 to 1. What there is without a model to embed with."""
    count, height, width, _ = images.shape
    tall, wide = min(_COARSE, height), min(_COARSE, width)
    rows, columns = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), rows, axis=1), columns, axis=2)
    sizes = np.diff(np.append(rows, height))[:, None] * np.diff(np.append(columns, width))
    return (sums / sizes[..., None] / 255).reshape(count, -1).astype(np.float32)


def score_snapshots(
    made_by: Callable[[int, NDArray[np.int64]], NDArray[np.uint8]],
    snapshots: int,
    classes: int,
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]],
    embed: Embed | None = None,
) -> NDArray[np.float64]:
    """Distance between generated and validation images for each snapshot and class.

    Parameters
    ----------
    made_by : images of one snapshot (by its number) for N labels
    snapshots, classes : how many there are
    validation : uint8 images M×H×W×C and their labels, int64 M
    embed : uint8 images to float32 N×D; default: `coarse_pixels`

    Returns
    -------
    float64, snapshots×classes : less is better; NaN for classes with under 8 validation images
    """
    images, labels = validation
    embed = embed or coarse_pixels
    scores = np.full((snapshots, classes), np.nan)
    counts = np.bincount(labels, minlength=classes)[:classes]
    scored = np.flatnonzero(counts >= _FEWEST)
    if not len(scored):
        return scores
    members = np.flatnonzero(np.isin(labels, scored))
    real, real_labels = embed(images[members]), labels[members]
    # On one scale, whatever the space: the kernel adds 1 to an inner product.
    centre = real.mean(0)
    scale = float(np.sqrt(np.square(real - centre).mean())) or 1.0
    wanted = np.repeat(scored, PER_CLASS)
    for snapshot in range(snapshots):
        made = (embed(made_by(snapshot, wanted)) - centre) / scale
        for label in scored:
            own = (real[real_labels == label] - centre) / scale
            scores[snapshot, label] = kernel_distance(made[wanted == label], own)
    return scores


def choose_snapshots(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The best snapshot of each class, int64 K, from what `score_snapshots` gave.

    A class without scores takes the one that is best on average over those that have some; where none
    has, all take the last.
    """
    snapshots, classes = scores.shape
    scored = np.isfinite(scores).all(0)
    if not scored.any():
        return np.full(classes, snapshots - 1, np.int64)
    chosen = np.full(classes, int(scores[:, scored].mean(1).argmin()), np.int64)
    chosen[scored] = scores[:, scored].argmin(0)
    return chosen


def score_rows(scores: NDArray[np.float64], steps: Sequence[int]) -> list[dict[str, float]]:
    """A row a snapshot and class that has a score: `step`, `class` (index), `score`."""
    return [
        {"step": float(step), "class": float(label), "score": float(scores[number, label])}
        for number, step in enumerate(steps)
        for label in np.flatnonzero(np.isfinite(scores[number]))
    ]


@dataclass
class TrainedGAN:
    """A trained generator, and how it came about.

    Attributes
    ----------
    generator : on the device it was trained on
    states : the averaged weights of each snapshot
    image_shape : height, width and channels
    classes : number of classes; labels are 0 to classes - 1
    steps : of each snapshot
    chosen : int64, K; the step of the snapshot that generates each class
    scores : a row a snapshot and class that validation could judge: `step`, `class`, `score` (less is
        better)
    history : a row every few steps, up to the last snapshot: `step`, `generator_loss`,
        `discriminator_loss`, `penalty`
    notes : a sentence each for what did not go as ordered: a batch that was halved, a training that
        stopped
    batch_size : images a step, as it ended
    """

    generator: Generator = field(repr=False)
    states: list[Weights] = field(repr=False)
    image_shape: tuple[int, int, int]
    classes: int
    latent_dim: int
    steps: list[int]
    chosen: NDArray[np.int64]
    batch_size: int
    scores: list[dict[str, float]] = field(default_factory=list, repr=False)
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)

    def generate(self, labels: NDArray[np.int64], *, seed: int) -> NDArray[np.uint8]:
        """Images uint8 N×H×W×C, one for each label; the same seed gives the same images."""
        return self._generate(labels, self.chosen[labels], seed)

    def generate_by(self, snapshot: int, labels: NDArray[np.int64], *, seed: int) -> NDArray[np.uint8]:
        """As `generate`, all by the snapshot of that number."""
        return self._generate(labels, np.full(len(labels), self.steps[snapshot]), seed)

    def _generate(self, labels: NDArray[np.int64], steps: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
        latents = _latents(len(labels), self.latent_dim, seed)
        images = np.zeros((len(labels), *self.image_shape), np.uint8)
        for step in np.unique(steps):
            rows = np.flatnonzero(steps == step)
            _set_weights(self.generator, self.states[self.steps.index(int(step))])
            images[rows] = _draw(self.generator, latents[torch.from_numpy(rows)], labels[rows])
        return images


def train_gan(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    config: GANConfig,
    *,
    seed: int,
    device: Device = "auto",
    description: str = "gan",
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
    embed: Embed | None = None,
    keep_in: Path | None = None,
    on_row: OnRow | None = None,
    on_samples: OnSamples | None = None,
) -> TrainedGAN:
    """Train one GAN on all classes together.

    When losses or weights are no longer numbers, training stops and goes back to the last state in
    which they were; when memory is too small for the batch, the batch is halved. Both are said on
    stderr and in `notes`.

    Parameters
    ----------
    images : uint8, N×H×W×C; 8 to 64 pixels a side in steps of 8, one to four channels
    labels : int64, N; 0 to K - 1, each with at least one image
    seed : of the weights, batches, latents and random transforms
    description : stands before the progress bar; empty for no bar
    validation : images and labels of the validation split, by which each class gets its snapshot;
        without them all classes take the last
    embed : of uint8 images, float32 N×D: the space in which generated and validation images are
        compared; default: pixels averaged down to 8×8
    keep_in : a folder for what is done so far. A run that was killed goes on from there, and ends
        with the same bits (on a CPU); what was kept from other inputs is removed. The caller removes
        the folder when all is done.
    on_row : called with each row of the history, also with those from before a run was killed
    on_samples : called with the step and uint8 K×8×H×W×C, by the moving average from the same latents
        each time: at each tenth of the steps and at each snapshot

    Raises
    ------
    WinnowError
        For images of a size that the networks do not have. A `GANConfigError` where the losses are no
        longer numbers before there is any state to go back to, and where there is no memory for the
        smallest batch.
    """
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    check_image_shape(shape)
    target = choose_device(device)
    trainer = Trainer(shape, np.bincount(labels), config, seed, target)
    key = inputs_digest(images, labels, config, seed=seed, device=device) if keep_in else ""
    run = _Run(trainer, Checkpoints(keep_in, key), description, on_row, on_samples)
    run.train(images, labels)
    record = run.record
    result = TrainedGAN(
        trainer.average,
        list(record.snapshots.values()),
        shape,
        len(trainer.chances),
        config.latent_dim,
        list(record.snapshots),
        np.full(len(trainer.chances), max(record.snapshots), np.int64),
        trainer.batch_size,
        history=record.history,
        notes=record.notes,
    )
    if validation is not None:
        _choose(result, validation, embed)
    return result


def check_image_shape(image_shape: tuple[int, int, int]) -> None:
    """Raise a WinnowError for images that the GAN cannot make."""
    if not supports(image_shape):
        height, width, channels = image_shape
        raise WinnowError(
            f"the GAN makes images of {MIN_SIZE} to {MAX_SIZE} pixels in steps of {SIZE_STEP} with 1 to "
            f"{MAX_CHANNELS} channels, not {height}×{width} with {channels}: choose smote or random, or "
            "another image size"
        )


class _Run:
    """One training: its steps, and what is kept of them."""

    def __init__(
        self,
        trainer: Trainer,
        kept: Checkpoints,
        description: str,
        on_row: OnRow | None,
        on_samples: OnSamples | None,
    ) -> None:
        self.trainer, self.kept, self.description = trainer, kept, description
        self.on_row, self.on_samples = on_row, on_samples
        self.record = Record()
        self.kept_at, self.next_keep = 0, 0.0
        steps = trainer.config.steps
        self.snapshot_steps = set(snapshot_steps(steps, trainer.config.snapshots))
        self.sample_steps = self.snapshot_steps | {-(-steps * tenth // 10) for tenth in range(1, 11)}

    def train(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """All steps that are not done yet."""
        trainer, steps = self.trainer, self.trainer.config.steps
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        pixels, on_device = pixels.to(trainer.device), torch.from_numpy(labels).to(trainer.device)
        members = [torch.from_numpy(np.flatnonzero(labels == k)) for k in range(len(trainer.chances))]
        self._resume()
        with tqdm(
            total=steps,
            initial=trainer.steps,
            desc=self.description,
            unit="step",
            disable=not self.description,
        ) as bar:
            while trainer.steps < steps:
                self._step(pixels, on_device, members)
                bar.update()
                done = trainer.steps
                if done % _CHECK_EVERY == 0 or done in self.sample_steps:
                    if not trainer.is_finite():
                        self._go_back()
                        return
                    self._add_row(bar)
                    self._take_stock()
        self._keep(last=True)

    def _resume(self) -> None:
        state = self.kept.read(0)
        if state is None:
            return
        self.trainer.load(state)
        self.record = Record.load(state)
        self.kept_at = self.trainer.steps
        if self.trainer.steps:
            # Not a note: the result is to be the same as that of a run which nobody stopped.
            self._say(f"goes on after step {self.trainer.steps} of a run that did not end")
        for row in self.record.history:
            if self.on_row is not None:
                self.on_row(row)
        for step, made in self.record.samples.items():
            if self.on_samples is not None:
                self.on_samples(step, made)

    def _step(self, pixels: torch.Tensor, labels: torch.Tensor, members: list[torch.Tensor]) -> None:
        """One step, with a smaller batch where memory is too small for it."""
        while True:
            try:
                index = to_device(self.trainer.draw(members), pixels.device)
                self.trainer.step(pixels[index], labels[index])
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of `except`: the error holds on to the step's tensors.
            before = self.trainer.batch_size
            if not self.trainer.halve_batch():
                width = self.trainer.config.width
                raise GANConfigError(
                    f"width = {width}: memory is too small for the GAN even with {before} images a step; "
                    "lower it or the image size"
                )
            self._note(
                f"memory was too small for {before} images a step: from step {self.trainer.steps + 1} on it "
                f"takes {self.trainer.batch_size}"
            )

    def _add_row(self, bar: tqdm[Any]) -> None:
        row = {"step": float(self.trainer.steps), **self.trainer.figures()}
        self.record.history.append(row)
        bar.set_postfix({name: f"{value:.3f}" for name, value in row.items() if name != "step"})
        if self.on_row is not None:
            self.on_row(row)

    def _take_stock(self) -> None:
        """Of a step after which all was numbers: the state to go back to, snapshot, samples, checkpoint."""
        step, weights = self.trainer.steps, self.trainer.averaged()
        self.record.good = (step, weights)
        if step in self.snapshot_steps:
            self.record.snapshots[step] = weights
        if step in self.sample_steps and self.on_samples is not None:
            made = self._samples()
            self.record.samples[step] = made
            self.on_samples(step, made)
        self._keep()

    def _samples(self) -> NDArray[np.uint8]:
        classes = len(self.trainer.chances)
        labels = np.repeat(np.arange(classes), _SAMPLES)
        latents = _latents(len(labels), self.trainer.config.latent_dim, _SCORE_SEED)
        made = _draw(self.trainer.average, latents, labels)
        return made.reshape(classes, _SAMPLES, *made.shape[1:])

    def _keep(self, *, last: bool = False) -> None:
        """A checkpoint, where the last is long ago for what it cost."""
        now = time.monotonic()
        if self.kept_at == self.trainer.steps or (now < self.next_keep and not last):
            return
        self.kept.write(0, self.trainer.state() | self.record.state())
        end = time.monotonic()
        self.kept_at, self.next_keep = self.trainer.steps, end + (end - now) / _KEEP_SHARE

    def _go_back(self) -> None:
        step, rate = self.trainer.steps, self.trainer.config.learning_rate
        if self.record.good is None:
            raise GANConfigError(
                f"learning_rate = {rate:g}: the GAN's losses are not numbers after step {step}; lower it"
            )
        good, weights = self.record.good
        self.record.snapshots[good] = weights
        self._note(
            f"losses or weights were not numbers after step {step}: training stopped there and went back to "
            f"step {good}; a lower learning_rate ({rate:g}) may help"
        )

    def _note(self, text: str) -> None:
        self.record.notes.append(text)
        self._say(text)

    def _say(self, text: str) -> None:
        tqdm.write(f"{self.description or 'gan'}: {text}", file=sys.stderr)


def _choose(
    gan: TrainedGAN, validation: tuple[NDArray[np.uint8], NDArray[np.int64]], embed: Embed | None
) -> None:
    """Give each class the snapshot whose images are nearest to its validation images."""
    scores = score_snapshots(
        lambda snapshot, labels: gan.generate_by(snapshot, labels, seed=_SCORE_SEED),
        len(gan.steps),
        gan.classes,
        validation,
        embed,
    )
    gan.chosen = np.asarray(gan.steps, np.int64)[choose_snapshots(scores)]
    gan.scores = score_rows(scores, gan.steps)


def _latents(count: int, latent_dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))


def _set_weights(generator: Generator, weights: Weights) -> None:
    with torch.no_grad():
        for parameter, weight in zip(generator.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(weight))


@torch.inference_mode()
def _draw(generator: Generator, latents: torch.Tensor, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images uint8 N×H×W×C by the generator as it is."""
    device = next(generator.parameters()).device
    batches = []
    for start in range(0, len(labels), _GENERATE_BATCH):
        part = slice(start, start + _GENERATE_BATCH)
        wanted = torch.from_numpy(np.ascontiguousarray(labels[part])).to(device)
        pixels = generator(latents[part].to(device), wanted)
        scaled = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
        batches.append(scaled.to(torch.uint8).cpu().numpy())
    return np.concatenate(batches)
