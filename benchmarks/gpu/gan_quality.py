"""The GAN trained for minutes, and its images compared with held-out ones: the part `quality` of `gan`."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.machine import describe, measured
from benchmarks.gpu.series import as_key, keep
from benchmarks.measuring import ROOT
from benchmarks.planting import kept
from benchmarks.results import Row, read_results
from stages.dataset.base import View
from stages.errors import WinnowError
from stages.workflow.params import PARAMS_FILE, load_params

if TYPE_CHECKING:
    import torch

    from benchmarks.cifar_images import Cifar
    from stages.learning.judge import Judge
    from stages.learning.names import Device
    from stages.synthesis.gan_trainer import GANConfig

PLACE = Path(".winnow/bench/gpu/gan")
_CODE = ("stages/synthesis/gan_*.py", "stages/learning/judge.py", "benchmarks/gan_figures.py")
_LOADING, _PROBED, _FEWEST = 16, 200, 16  # steps
# Seconds in which the command is to end, and what is left of them for the figures.
_TOGETHER, _FIGURES = 9.5 * 60, 75

Images = NDArray[np.uint8]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """All that the figures follow from, beside machine and code.

    Attributes
    ----------
    images, judge_images, held_out : of each class; the reference and the other real images have `held_out`
    width, batch_size, learning_rate : of the GAN; the rate holds for a width of 16, and is lowered in
        proportion above it
    minutes : of training
    seed : of all that is drawn and trained
    """

    images: int = 500
    judge_images: int = 2000
    held_out: int = 1000
    width: int = 64
    batch_size: int = 256
    learning_rate: float = 0.0007
    minutes: float = 7.0
    seed: int = 0


@dataclass(frozen=True)
class Bench:
    """Where it is measured, and where results are kept.

    Attributes
    ----------
    started : `time.monotonic` when the command began
    """

    name: Device
    device: torch.device
    out: Path
    started: float

    def find(self, facts: Facts) -> Row | None:
        """The last result with these facts, measured on this machine; None without one."""
        key = self._key(facts)
        found = read_results(self.out, lambda row: row["key"] == key)
        return found[-1] if found else None

    def keep(self, facts: Facts, **figures: Any) -> Row:
        """Write a result with these facts down."""
        row = {"key": self._key(facts), **figures}
        keep(self.out, row)
        return row

    def _key(self, facts: Facts) -> Row:
        return as_key(machine=describe(self.device), code=_code(), **facts)


@cache
def _code() -> str:
    """Of what is measured: results of other code do not count."""
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def default_config() -> GANConfig:
    """The GAN as params.yaml has it."""
    from stages.synthesis.gan_trainer import GANConfig

    return GANConfig(**load_params(ROOT / PARAMS_FILE).synthesize.gan.model_dump())


def measure_quality(cifar: Cifar, settings: Settings, inception: Path | None, bench: Bench) -> Row:
    """Train, make images and compare; what is in the file of results already is not done again.

    Returns
    -------
    `settings`, `training` (steps, seconds, …), `figures` and `inception` (None without), for
    `gan_tables.quality_table`
    """
    facts: Facts = {"part": "quality", "settings": asdict(settings)}
    work = _Work(cifar, settings, bench, facts)
    row: Row = {"settings": asdict(settings), "classes": cifar.classes, "inception": None}
    row["figures"] = bench.find(facts | {"step": "figures"}) or work.figures()
    if inception is not None:
        named = facts | {"step": "inception", "file": [inception.name, inception.stat().st_size]}
        row["inception"] = bench.find(named) or work.inception_figures(inception, named)
    row["training"] = bench.find(facts | {"step": "training"})
    return row


class _Work:
    """What the figures are made of, each made when it is first asked for."""

    def __init__(self, cifar: Cifar, settings: Settings, bench: Bench, facts: Facts) -> None:
        self.settings, self.bench, self.facts = settings, bench, facts
        self.train, self.judged, self.other = deal(cifar, settings)
        each = np.arange(len(cifar.test_labels))
        rows = [each[cifar.test_labels == k][: settings.held_out] for k in range(len(cifar.classes))]
        chosen = np.concatenate(rows)
        self.reference = _view(cifar.test_images[chosen], cifar.test_labels[chosen], cifar.classes)

    @cached_property
    def judge(self) -> Judge:
        """In whose features images are compared; trained on images that are in no other part."""
        from stages.learning.judge import train_judge

        return train_judge(self.judged, seed=self.settings.seed, device=self.bench.name)

    @cached_property
    def made(self) -> dict[str, Images]:
        """The GAN's images, as many as other held-out ones and in their order, by who chose snapshots."""
        key = {"facts": self.facts, "machine": describe(self.bench.device), "code": _code()}
        return kept("gpu_gan_images", key, self._make)

    def _make(self) -> dict[str, Images]:
        from stages.synthesis.gan_training import train_gan

        unseen = self.judge.fold == 0
        config = replace(self._config(), steps=self._steps())
        place = PLACE / hashlib.sha256(repr(self.facts).encode()).hexdigest()[:16]
        continued = any(place.rglob("*.part"))
        with measured(self.bench.device) as span:
            gan = train_gan(
                self.train.images,
                self.train.labels,
                config,
                seed=self.settings.seed,
                device=self.bench.name,
                validation=(self.judge.real.images[unseen], self.judge.real.labels[unseen]),
                embed=lambda images: self.judge.embed(images, 0),
                keep_in=place,
            )
        self.bench.keep(
            self.facts | {"step": "training"},
            steps=config.steps,
            seconds=span.seconds,
            peak_bytes=span.peak_bytes,
            batch_size=gan.batch_size,
            continued=continued,
            snapshots=gan.steps,
            chosen=gan.chosen.tolist(),
            notes=gan.notes,
        )
        labels, seed = self.other.labels, self.settings.seed
        made = {
            "generated": gan.generate(labels, seed=seed),
            "last snapshot": gan.generate_by(len(gan.steps) - 1, labels, seed=seed),
        }
        shutil.rmtree(place, ignore_errors=True)
        return made

    def _config(self) -> GANConfig:
        settings = self.settings
        return replace(
            default_config(),
            batch_size=settings.batch_size,
            width=settings.width,
            learning_rate=settings.learning_rate,
        )

    def _steps(self) -> int:
        """As many as the minutes are worth, by a short training; once found they stay."""
        from stages.synthesis.gan_training import train_gan

        facts = self.facts | {"step": "plan"}
        if row := self.bench.find(facts):
            return int(row["steps"])
        real = self.train.images, self.train.labels
        probed = min(_PROBED, max(_FEWEST, int(100 * self.settings.minutes)))
        for steps in (_LOADING, probed):  # the first loads cuDNN
            with measured(self.bench.device) as span:
                config = replace(self._config(), steps=steps)
                train_gan(*real, config, seed=self.settings.seed, device=self.bench.name, description="")
        a_step = span.seconds / probed
        left = _TOGETHER - _FIGURES - (time.monotonic() - self.bench.started)
        steps = max(_FEWEST, int(min(60 * self.settings.minutes, left) / a_step))
        print(f"quality: {1000 * a_step:.1f} ms a step: {steps:,} steps", flush=True)
        self.bench.keep(facts, steps=steps, seconds_a_step=a_step)
        return steps

    def figures(self) -> Row:
        """By class and over all, in the judge's features."""
        from benchmarks.gan_figures import Space

        compared = {**self.made, "held-out": self.other.images}
        space = Space(self.judge, self.reference)
        return self.bench.keep(
            self.facts | {"step": "figures"},
            by_class={who: space.figures(images, self.other.labels) for who, images in compared.items()},
            pooled={who: space.pooled(images) for who, images in compared.items()},
        )

    def inception_figures(self, path: Path, facts: Facts) -> Row:
        """Over all, in Inception's features."""
        from benchmarks.gan_figures import pooled_figures
        from benchmarks.gpu.inception import load_inception

        network = load_inception(path, self.bench.device)
        real = network.embed(self.reference.images)
        compared = {**self.made, "held-out": self.other.images}
        pooled = {who: pooled_figures(real, network.embed(images)) for who, images in compared.items()}
        return self.bench.keep(facts, pooled=pooled, is_fid=network.is_fid)


def deal(cifar: Cifar, settings: Settings) -> tuple[View, View, View]:
    """The GAN's part of the training images, the judge's, and another held-out one: none in two of them.

    Raises
    ------
    WinnowError
        Where a class has too few training or test images.
    """
    sizes = (settings.images, settings.judge_images, settings.held_out)
    counts = np.bincount(cifar.labels), np.bincount(cifar.test_labels)
    if counts[0].min() < sum(sizes) or counts[1].min() < settings.held_out:
        raise WinnowError(
            f"the smallest class has {counts[0].min()} training and {counts[1].min()} test images, asked for "
            f"are {sum(sizes)} and {settings.held_out}: lower --images, --judge-images or --held-out"
        )
    rng = np.random.default_rng(settings.seed)
    ends = np.cumsum(sizes)
    drawn = [rng.permutation(np.flatnonzero(cifar.labels == k)) for k in range(len(cifar.classes))]
    parts = [np.split(rows, ends)[:-1] for rows in drawn]
    train, judged, other = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    return tuple(  # type: ignore[return-value]
        _view(cifar.images[rows], cifar.labels[rows], cifar.classes) for rows in (train, judged, other)
    )


def _view(images: Images, labels: NDArray[np.int64], classes: list[str]) -> View:
    names = np.array([f"{row:05d}" for row in range(len(labels))], dtype=object)
    return View(images, labels, np.ones(len(labels), np.float32), names, classes)
