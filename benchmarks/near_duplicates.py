"""What the search for near-duplicates finds, and what it should not.

    python -m benchmarks.near_duplicates

On CIFAR-10: 2,000 training images are altered, and the share is counted whose copy is found among
all; then the pairs among all 60,000 and those across the ready-made splits. On scikit-learn's digits,
which look alike but are no copies of each other, there should be none.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.measuring import bench_data
from stages.images.near_duplicates import connected_components, near_pairs
from stages.images.perceptual import perceptual_hashes
from stages.ingestion.blocks import thumbnail
from stages.workflow.params import load_params
from stages.workflow.stage import clean_exit

_ALTERED = 2000
_SIDE = 128  # pixels that the images are brought to before they are altered, as photos would be


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _trimmed(image: Image.Image, share: float) -> Image.Image:
    edge = max(1, round(share * image.width))
    return ImageOps.crop(image, edge)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 75": lambda image: _jpeg(image, 75),
    "JPEG of quality 50": lambda image: _jpeg(image, 50),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((image.width * 2, image.height * 2)),
    "brightness + 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "contrast - 20 %": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "trimmed by 1 % a side": lambda image: _trimmed(image, 0.01),
    "trimmed by 2 % a side": lambda image: _trimmed(image, 0.02),
    "trimmed by 5 % a side": lambda image: _trimmed(image, 0.05),
    "mirrored": ImageOps.mirror,
}


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.near_duplicates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    with clean_exit("near_duplicates"):
        similarity = load_params().ingest.near_duplicates or 0.85
        print(f"similarity {similarity:g}, as in params.yaml")
        print(f"digits: {len(_pairs(_digits(), similarity)[0])} pairs among 1,797 images")
        data = bench_data()
        if data is None or not (data / "cifar10.tar.gz").is_file():
            print("CIFAR-10: skipped: no cifar10.tar.gz in WINNOW_BENCH_DATA or ../shared/data")
            return
        images, names = _cifar(data / "cifar10.tar.gz")
        _print_recall(images[: _ALTERED * 25 : 25], similarity)
        _print_pairs(images, names, similarity)


def _print_recall(images: list[Image.Image], similarity: float) -> None:
    large = [image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) for image in images]
    print(f"{len(images):,} images of CIFAR-10, found again:{'32 px':>10}{f'{_SIDE} px':>9}")
    for name, alter in ALTERATIONS.items():
        shares = [_found(originals, alter, similarity) for originals in (images, large)]
        print(f"  {name:34}" + "".join(f"{100 * share:>8.1f} %" for share in shares))


def _found(
    originals: list[Image.Image], alter: Callable[[Image.Image], Image.Image], similarity: float
) -> float:
    thumbs = np.concatenate([_thumbs(originals), _thumbs([alter(image) for image in originals])])
    first, second = _pairs(thumbs, similarity)
    again = first[second - first == len(originals)]
    return float(np.isin(np.arange(len(originals)), again).mean())


def _print_pairs(images: list[Image.Image], names: list[str], similarity: float) -> None:
    first, second = _pairs(_thumbs(images), similarity)
    test = np.array([name.split("/")[1] == "test" for name in names])
    across = test[first] != test[second]
    copied = np.unique(np.concatenate([first[across], second[across]]))
    largest = np.bincount(connected_components(len(images), first, second)).max()
    print(f"CIFAR-10: {len(first)} pairs among {len(images):,} images, the largest group has {largest}")
    print(f"  {int(test[copied].sum())} of {int(test.sum()):,} test images have a near-duplicate in training")


def _pairs(thumbs: NDArray[np.uint8], similarity: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    hashes, flat = perceptual_hashes(thumbs)
    pairs = near_pairs(hashes, flat, lambda rows: thumbs[rows], similarity)
    return pairs.first, pairs.second


def _thumbs(images: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([thumbnail(np.asarray(image)) for image in images])


def _digits() -> NDArray[np.uint8]:
    from sklearn.datasets import load_digits

    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    return np.stack([thumbnail(scan[..., None]) for scan in scans])


def _cifar(archive: Path) -> tuple[list[Image.Image], list[str]]:
    images, names = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                images.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
                names.append(member.name)
    order = np.argsort(names)[::-1]  # training first
    return [images[i] for i in order], [names[i] for i in order]


if __name__ == "__main__":
    main()
