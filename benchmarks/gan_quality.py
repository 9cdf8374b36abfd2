"""How good are the GAN's images? KID, density and coverage of each class, against held-out real images.

    python -m benchmarks.gan_quality                       both sets, with two threads
    python -m benchmarks.gan_quality --set cifar10 --grid grids
    python -m benchmarks.gan_quality --set cifar10 --images 1500 --steps 50000 --width 64 --batch-size 256 \\
        --device cuda

Four parts of a set's training images share no image: what the GAN learns from (`--images` a class), what
the judge learns from in whose features images are compared, the held-out reference, and a second held-out
part. The judge's features are those of two small CNNs; every figure is the mean of both. Beside the GAN
stand the second held-out part (no generator can be expected to be better), the real images of the nearest
other class, each class's mean image, and noise. KID, in standardised features, is 0 for images of the same
distribution; density and coverage are near 1 for them.

What is finished is kept under .winnow/bench, and a run that was stopped goes on. Each result is a line in
the file of --out; a set with the same settings is not run again. CIFAR-10 is cifar10.tar.gz in --data,
WINNOW_BENCH_DATA or ../shared/data; the digits are scikit-learn's, brought to 16×16 pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gan_figures import MEASURES, Space, mean_images
from benchmarks.measuring import ROOT, bench_data
from benchmarks.planting import kept
from stages.dataset.base import View
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit

if TYPE_CHECKING:
    from stages.learning.judge import Judge

RESULTS = Path(".winnow/bench/gan_quality.jsonl")
_PLACE = Path(".winnow/bench/gan_quality")
_LATENT_DIM, _SNAPSHOTS = 64, 4
_SHOWN = 16  # generated images of each class in the grid
_SIDE = 16  # pixels that the digits are brought to
_CODE = (
    "stages/synthesis/gan_*.py",
    "stages/learning/judge.py",
    *(f"stages/learning/{name}.py" for name in ("loop", "models")),
)
_MEASURING = ("stages/synthesis/quality.py", "benchmarks/gan_figures.py")

Images = NDArray[np.uint8]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """All that a result follows from, beside the code.

    Attributes
    ----------
    set : `cifar10` or `digits`
    images, judge_images, held_out : of each class, in the GAN's part, the judge's, and each held-out one
    steps, batch_size, width, learning_rate : of the GAN
    seed, device : of all that is drawn and trained
    """

    set: str
    images: int
    judge_images: int
    held_out: int
    steps: int
    batch_size: int
    width: int
    learning_rate: float
    seed: int = 0
    device: str = "cpu"


DEFAULTS = {
    "cifar10": Settings("cifar10", 500, 300, 500, 1000, 32, 32, 0.0007),
    "digits": Settings("digits", 70, 34, 35, 800, 32, 16, 0.0007),
}


@dataclass(frozen=True)
class Parts:
    """Real images of four parts without an image in common; of each part the same number a class."""

    train: View
    judge: View
    reference: View
    other: View


def main(argv: list[str] | None = None) -> None:
    """Measure what is not in the file of results yet, and print the tables."""
    options = _parser().parse_args(argv)
    with clean_exit("gan_quality"):
        import torch

        torch.set_num_threads(options.threads)
        for name in options.set:
            settings = _settings(name, options)
            every = _cifar10(options.data) if name == "cifar10" else _digits()
            if every is None:
                print(
                    "gan_quality: cifar10 skipped: it is not in --data, WINNOW_BENCH_DATA or ../shared/data"
                )
                continue
            parts = deal(every, settings)
            row = _finished(options.out, settings) or measure(parts, settings, options.out)
            print(table(row), flush=True)
            if options.grid is not None:
                _grid(parts, settings, options.grid / f"{name}.png")


def deal(every: View, settings: Settings) -> Parts:
    """Draw the parts from all images of a set.

    Raises
    ------
    WinnowError
        Where a class has too few images.
    """
    sizes = (settings.images, settings.judge_images, settings.held_out, settings.held_out)
    fewest = int(every.class_counts.min())
    if fewest < sum(sizes):
        raise WinnowError(
            f"{settings.set} has {fewest} images in its smallest class, and {sum(sizes)} are asked for: "
            "lower --images, --judge-images or --held-out"
        )
    rng = np.random.default_rng(settings.seed)
    drawn = [rng.permutation(np.flatnonzero(every.labels == k)) for k in range(len(every.classes))]
    ends = np.cumsum((0, *sizes))
    parts = [np.sort(np.concatenate([rows[start:end] for rows in drawn])) for start, end in pairwise(ends)]
    return Parts(*(_view(every.images[rows], every.labels[rows], every.classes) for rows in parts))


def measure(parts: Parts, settings: Settings, out: Path) -> Row:
    """Train judge and GAN, compare, and append the result to `out`."""
    from stages.learning.judge import train_judge

    start = time.perf_counter()
    judge = train_judge(parts.judge, seed=settings.seed, device=settings.device)  # type: ignore[arg-type]
    judged = time.perf_counter()
    made = generated(parts, settings, judge)
    trained = time.perf_counter()
    space = Space(judge, parts.reference)
    labels = np.repeat(np.arange(len(parts.train.classes)), settings.held_out)
    noise = np.random.default_rng(settings.seed).integers(0, 256, made.shape, dtype=np.uint8)
    compared = {
        "generated": space.figures(made, labels),
        "held-out": space.figures(parts.other.images, parts.other.labels),
        "other class": space.nearest_other_class(parts.other.images, parts.other.labels),
        "mean image": space.figures(mean_images(parts.train)[labels], labels),
        "noise": space.figures(noise, labels),
    }
    seconds = {
        "judge": judged - start,
        "gan": trained - judged,
        "figures": time.perf_counter() - trained,
    }
    row = {
        "settings": asdict(settings),
        "code": _digest(_CODE + _MEASURING),
        "classes": parts.train.classes,
        "figures": compared,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def generated(parts: Parts, settings: Settings, judge: Judge | None = None) -> Images:
    """The GAN's images, class by class, as many as held-out ones: uint8, N×H×W×C; kept once made.

    The judge, with what its first model has not seen, chooses the snapshot of each class.
    """
    from stages.synthesis.gan_trainer import GANConfig
    from stages.synthesis.gan_training import train_gan

    place = _PLACE / _key(settings)

    def make() -> dict[str, NDArray[Any]]:
        if judge is None:
            raise WinnowError("the images of this result are no longer there: take its line out of --out")
        config = GANConfig(
            settings.steps,
            settings.batch_size,
            _LATENT_DIM,
            settings.width,
            settings.learning_rate,
            snapshots=_SNAPSHOTS,
        )
        unseen = judge.fold == 0
        gan = train_gan(
            parts.train.images,
            parts.train.labels,
            config,
            seed=settings.seed,
            device=settings.device,  # type: ignore[arg-type]
            description=f"gan on {settings.set}",
            validation=(judge.real.images[unseen], judge.real.labels[unseen]),
            embed=lambda images: judge.embed(images, 0),
            keep_in=place,
        )
        labels = np.repeat(np.arange(len(parts.train.classes)), settings.held_out)
        return {"images": gan.generate(labels, seed=settings.seed)}

    images: Images = kept("gan_images", {"key": _key(settings)}, make)["images"]
    shutil.rmtree(place, ignore_errors=True)
    return images


def table(row: Mapping[str, Any]) -> str:
    """A line a class: the GAN's figures, and those of held-out real images; then the means of all."""
    settings, figures = Settings(**row["settings"]), row["figures"]
    seconds = "  ".join(f"{name} {value:.0f} s" for name, value in row["seconds"].items())
    lines = [
        f"{settings.set}: {settings.images} images a class, {settings.steps} steps of "
        f"{settings.batch_size}, width {settings.width}, on {settings.device}  ({seconds})",
        f"{'':12}" + "".join(f"{name:>12}{'held-out':>10}" for name in MEASURES),
    ]
    for label, name in enumerate(row["classes"]):
        cells = ((figures[who][m][label] for who in ("generated", "held-out")) for m in MEASURES)
        lines.append(f"{name[:12]:12}" + "".join(f"{made:>12.3f}{real:>10.3f}" for made, real in cells))
    lines += ["", f"{'mean of':12}" + "".join(f"{name:>12}" for name in MEASURES)]
    for who, by in figures.items():
        lines.append(f"{who:12}" + "".join(f"{np.mean(by[measure]):>12.3f}" for measure in MEASURES))
    return "\n".join(lines)


def _finished(path: Path, settings: Settings) -> Row | None:
    """The latest result with these settings and this code; None without one."""
    if not path.is_file():
        return None
    found = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise WinnowError(f"{path}:{number} is no result ({error}): take the line out") from error
        if row["settings"] == asdict(settings) and row["code"] == _digest(_CODE + _MEASURING):
            found = row
    return found


def _grid(parts: Parts, settings: Settings, path: Path) -> None:
    """Generated images of each class, a line each."""
    from stages.reporting.figures import Section, gallery

    made = generated(parts, settings).reshape(-1, settings.held_out, *parts.train.images.shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = [
        Section(name, images[:_SHOWN], [""] * len(images[:_SHOWN]))
        for name, images in zip(parts.train.classes, made, strict=True)
    ]
    gallery(sections, path, columns=_SHOWN, cell=48)
    print(f"wrote {path}")


def _key(settings: Settings) -> str:
    """Of all that the generated images follow from."""
    return hashlib.sha256(f"{settings} {_digest(_CODE)}".encode()).hexdigest()[:16]


@cache
def _digest(patterns: tuple[str, ...]) -> str:
    """Of the code in these files, as it was when it was first asked for: what runs is no later one."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cifar10(data: Path | None) -> View | None:
    from benchmarks.cifar_images import read_cifar10

    folder = data or bench_data()
    if folder is None or not (folder / "cifar10.tar.gz").is_file():
        return None
    cifar = read_cifar10(folder / "cifar10.tar.gz")
    return _view(cifar.images, cifar.labels, cifar.classes)


def _digits() -> View:
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    small = np.round(found.images * (255 / 16)).astype(np.uint8)
    size = (_SIDE, _SIDE)
    images = np.stack(
        [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in small]
    )
    return _view(images[..., None], found.target.astype(np.int64), [str(name) for name in range(10)])


def _view(images: Images, labels: NDArray[np.int64], classes: list[str]) -> View:
    names = np.array([str(row) for row in range(len(labels))], dtype=object)
    return View(images, labels, np.ones(len(labels), np.float32), names, classes)


def _settings(name: str, options: argparse.Namespace) -> Settings:
    """The set's defaults, with what was given on the command line."""
    given = {key: getattr(options, key) for key in asdict(DEFAULTS[name]) if key != "set"}
    return replace(DEFAULTS[name], **{key: value for key, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gan_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--set", nargs="+", choices=tuple(DEFAULTS), default=list(DEFAULTS), help="default: all"
    )
    parser.add_argument("--data", type=Path, help="the folder with cifar10.tar.gz")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default {RESULTS}")
    parser.add_argument("--grid", type=Path, help="a folder for pictures of generated images")
    parser.add_argument("--threads", type=int, default=2, help="of torch; default 2")
    kinds: dict[str, Callable[[str], object]] = {"learning_rate": float, "device": str}
    for key in asdict(DEFAULTS["digits"]):
        if key != "set":
            flag, kind = f"--{key.replace('_', '-')}", kinds.get(key, int)
            said = " and ".join(f"{getattr(one, key)} ({name})" for name, one in DEFAULTS.items())
            parser.add_argument(flag, type=kind, help=f"default {said}")
    return parser


if __name__ == "__main__":
    main()
