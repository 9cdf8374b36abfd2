"""Offer the GAN as an imbalanced-learn sampler, for anybody's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from imblearn.over_sampling.base import BaseOverSampler
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from stages.learning.names import Device
from stages.synthesis.gan_networks import MAX_CHANNELS, MAX_SIZE, SIZE_STEP
from stages.synthesis.gan_trainer import GANConfig
from stages.synthesis.gan_training import TrainedGAN, train_gan

SamplingStrategy = float | str | Mapping[Any, int] | Callable[[Any], Mapping[Any, int]]


class GANOverSampler(BaseOverSampler):  # type: ignore[misc]
    """Over-sample images with one class-conditional GAN, trained on all classes together.

    It generates what `sampling_strategy` asks for and judges nothing: put `stages.synthesis.gate`
    behind it. Under some dozens of images a class expect little of any GAN.

    Parameters
    ----------
    image_shape : (height, width, channels) or None, default=None
        What a row of `X` is when it is unflattened: sides of 1 to 64 pixels, one to four channels.
        Sides that are not multiples of 8 are padded for the networks (the edge is repeated) and
        cropped again. None takes rows for square images, grey or RGB, and is an error where their
        length is that of neither.
    sampling_strategy : float, str, dict or callable, default="auto"
        As in all of imbalanced-learn's over-samplers: `auto` brings every class to the size of the
        largest.
    random_state : int, RandomState or None, default=None
        Seed of weights, batches and generated images. The same seed gives the same result on the
        same kind of machine with the same number of threads.
    steps : int, default=800
        Optimiser steps.
    batch_size : int, default=32
        Real images a step.
    latent_dim : int, default=64
        Length of the latent vector.
    width : int, default=16
        Channels of both networks at full resolution.
    learning_rate : float, default=0.0007
        Of the generator, at up to 16 channels; with more it is lowered in proportion. The
        discriminator's is twice it.
    snapshots : int, default=4
        States of the generator among which each class's validation images choose; without them the
        last one generates.
    validation_fraction : float, default=0.0
        Share of the images of each class that is kept from training and chooses among the snapshots.
        Classes of which that leaves under 8 go by the others' choice.
    device : {"auto", "cpu", "cuda", "mps"}, default="auto"
        Where to train.
    verbose : bool, default=False
        Show a progress bar.

    Attributes
    ----------
    sampling_strategy_ : dict
        Class to the number of images generated for it.
    classes_ : ndarray of shape (n_classes,)
        The labels, in the order of the GAN's classes.
    gan_ : TrainedGAN or None
        The generator, to draw more from (padded images), and its history; None where nothing was
        needed.
    image_shape_ : tuple of three ints
        Height, width and channels.
    value_range_ : tuple of two floats
        What black and white are in `X`: the least and the greatest value, whatever the type. Images are
        made in 256 levels between them.
    n_features_in_ : int
        Height × width × channels.

    References
    ----------
    Huang et al., "The GAN is dead; long live the GAN! A modern GAN baseline", arXiv 2501.05441.

    Zhao et al., "Differentiable augmentation for data-efficient GAN training", arXiv 2006.10738.

    Examples
    --------
    >>> import numpy as np
    >>> from stages.synthesis import GANOverSampler
    >>> X = np.random.default_rng(0).integers(0, 256, (30, 64), dtype=np.uint8)
    >>> y = np.repeat(["cat", "dog"], [20, 10])
    >>> sampler = GANOverSampler(image_shape=(8, 8, 1), steps=2, batch_size=8, random_state=0)
    >>> X_resampled, y_resampled = sampler.fit_resample(X, y)
    >>> X_resampled.shape, int((y_resampled == "dog").sum())
    ((40, 64), 20)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseOverSampler._parameter_constraints,
        "image_shape": [tuple, list, None],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "latent_dim": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "snapshots": [Interval(Integral, 1, 100, closed="both")],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "device": [StrOptions({"auto", "cpu", "cuda", "mps"})],
        "verbose": ["boolean"],
    }

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] | None = None,
        sampling_strategy: SamplingStrategy = "auto",
        random_state: int | np.random.RandomState | None = None,
        steps: int = 800,
        batch_size: int = 32,
        latent_dim: int = 64,
        width: int = 16,
        learning_rate: float = 0.0007,
        snapshots: int = 4,
        validation_fraction: float = 0.0,
        device: Device = "auto",
        verbose: bool = False,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.image_shape = image_shape
        self.random_state = random_state
        self.steps = steps
        self.batch_size = batch_size
        self.latent_dim = latent_dim
        self.width = width
        self.learning_rate = learning_rate
        self.snapshots = snapshots
        self.validation_fraction = validation_fraction
        self.device = device
        self.verbose = verbose

    def _check_X_y(self, X: Any, y: Any, accept_sparse: Any = None) -> Any:  # noqa: N802 (the library's name)
        if getattr(X, "ndim", 2) > 2:
            raise ValueError(
                f"X has {X.ndim} dimensions: give it as X.reshape(len(X), -1), "
                "with image_shape=(height, width, channels)"
            )
        return super()._check_X_y(X, y, accept_sparse=False)

    def _fit_resample(
        self, X: NDArray[Any], y: NDArray[Any], **params: Any
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        self.image_shape_ = self._shape(X)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.classes_, indices = np.unique(y, return_inverse=True)
        wanted = {label: count for label, count in self.sampling_strategy_.items() if count > 0}
        self.value_range_ = (float(X.min()), float(X.max()))
        self.gan_ = None
        if not wanted:
            return X, y
        images = _pad(_to_pixels(X, self.value_range_).reshape(-1, *self.image_shape_))
        self.gan_ = self._train(images, indices.astype(np.int64), seed)
        labels = np.repeat(np.fromiter(wanted, dtype=y.dtype), list(wanted.values()))
        made = self.gan_.generate(np.searchsorted(self.classes_, labels).astype(np.int64), seed=seed)
        made = _crop(made, self.image_shape_)
        rows = _from_pixels(made.reshape(len(made), -1), self.value_range_, X.dtype)
        return np.concatenate([X, rows]), np.concatenate([y, labels])

    def _train(self, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> TrainedGAN:
        """Train the GAN on all images but those for validation."""
        config = GANConfig(
            self.steps, self.batch_size, self.latent_dim, self.width, self.learning_rate, self.snapshots
        )
        aside = _set_aside(labels, self.validation_fraction, seed)
        return train_gan(
            images[~aside],
            labels[~aside],
            config,
            seed=seed,
            device=self.device,
            description="gan" if self.verbose else "",
            validation=(images[aside], labels[aside]) if aside.any() else None,
        )

    def _shape(self, X: NDArray[Any]) -> tuple[int, int, int]:
        """Return `image_shape`, when it fits the rows of X and the networks."""
        features = int(X.shape[1])
        shape = self.image_shape
        if shape is None:
            squares = [(math.isqrt(features // channels), channels) for channels in (1, 3)]
            shape = next(((side, side, c) for side, c in squares if side * side * c == features), None)
        if shape is None or len(shape) != 3:
            raise ValueError(
                f"image_shape=(height, width, channels) says what a row of X is: give it (X has {features} "
                "features)"
            )
        height, width, channels = (int(side) for side in shape)
        if height * width * channels != features:
            raise ValueError(
                f"image_shape={self.image_shape} has {height * width * channels} values, "
                f"but X has {features} features"
            )
        if not (1 <= min(height, width) <= max(height, width) <= MAX_SIZE and 1 <= channels <= MAX_CHANNELS):
            raise ValueError(
                f"the GAN makes images of up to {MAX_SIZE} pixels with 1 to {MAX_CHANNELS} channels, not "
                f"{height}×{width} with {channels}: resize them, or use another sampler"
            )
        return height, width, channels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags


def _to_pixels(X: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = value_range
    return ((X.astype(np.float64) - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)


def _from_pixels(
    pixels: NDArray[np.uint8], value_range: tuple[float, float], dtype: np.dtype[Any]
) -> NDArray[Any]:
    low, high = value_range
    values = pixels / 255.0 * (high - low) + low
    return (values if np.issubdtype(dtype, np.floating) else values.round()).astype(dtype)


def _set_aside(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mark the images for validation, that share of each class, rounded down; bool N."""
    random = np.random.default_rng(seed)
    aside = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        aside[members[: int(fraction * len(members))]] = True
    return aside


def _margins(sides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the pixels before and after each side that make it a multiple of what the networks halve."""
    missing = [-side % SIZE_STEP for side in sides]
    return [(pixels // 2, pixels - pixels // 2) for pixels in missing]


def _pad(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pad uint8 N×H×W×C to the size that the networks need; the edge is repeated."""
    return np.pad(images, [(0, 0), *_margins(images.shape[1:3]), (0, 0)], mode="edge")


def _crop(images: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Undo `_pad`."""
    (top, _), (left, _) = _margins(shape[:2])
    return images[:, top : top + shape[0], left : left + shape[1]]
