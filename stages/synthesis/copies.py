"""Find made images that are copies: nearer to a given image than unseen real images come to one another.

What "near" is has no unit: digits resemble each other more than photos do. So all is measured against what
real images that nobody copied show, and a share of those, known beforehand, is called copies by mistake.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.images.distances import nearest_neighbours
from stages.images.near_duplicates import RADIUS, near_pairs
from stages.images.perceptual import SIDE, perceptual_hashes

SAME = 0.1  # of the median distance: nearer is a copy whatever is usual
SIMILARITY = 0.85  # as in ingestion's search for near-duplicates
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SMALL = 8  # pixels a side at which pictures are compared
_CHUNK = 256
_TURNS = (-10, -5, 5, 10)  # degrees

Floats = NDArray[np.float64]
Pixels = NDArray[Any]


def mirrored(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Exchange left and right, N×H×W×C: a mirrored copy gives away as much as a plain one."""
    return np.ascontiguousarray(images[:, :, ::-1])


def poses(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The images as they are, mirrored, and turned by 5 and 10 degrees either way; N×H×W×C each.

    At the border what is there is repeated: where a turned picture got black corners, it would be the
    corners that count.
    """
    from scipy.ndimage import rotate

    turned = [rotate(images, by, axes=(2, 1), reshape=False, order=1, mode="nearest") for by in _TURNS]
    return [images, mirrored(images), *turned]


class Usual:
    """Measure how near unseen real images come to something, in several spaces at once.

    Distances of each space are divided by their median, and the nearest space counts.

    Parameters
    ----------
    real : by space, distances of n real images to what may have been copied, itself left out
    quantile : share of real images that would be called copies

    Attributes
    ----------
    limit : of the score; up to it an image is a copy. Not under `SAME`.
    share : of real images that would be called copies; more than `quantile` where some are
    """

    def __init__(self, real: Sequence[Floats], quantile: float) -> None:
        self._scales = [float(np.median(distances)) or 1.0 for distances in real]
        scores = self.score(real)
        self.limit = max(float(np.quantile(scores, quantile)), SAME)
        self.share = float((scores <= self.limit).mean())

    def score(self, distances: Sequence[Floats]) -> Floats:
        """Return the least distance over the spaces, in medians of real images; N distances in each."""
        scaled = [each / scale for each, scale in zip(distances, self._scales, strict=True)]
        score: Floats = np.min(scaled, axis=0)
        return score


def distance_to(
    points: Sequence[Pixels], pool: Pixels | None = None, groups: NDArray[np.int64] | None = None
) -> Floats:
    """Return the distance of images to the nearest of `pool`, the least over their appearances.

    Parameters
    ----------
    points : appearances of the same N images: as they are, and in other poses
    pool : without one the nearest other image; oneself in another pose is not another
    groups : without a pool, int64 N: images of one group are not others; two groups at least
    """
    if pool is not None:
        return np.min([nearest_neighbours(each, pool)[0] for each in points], axis=0)
    first, *others = points
    distances = [nearest_neighbours(first, groups=groups)[0]]
    distances += [nearest_neighbours(first, other, pairwise=True, groups=groups)[0] for other in others]
    return np.min(distances, axis=0)


def distance_to_earlier(points: Pixels) -> Floats:
    """Return the distance of each image to the nearest one before it; infinite for the first."""
    flat = points.reshape(len(points), -1).astype(np.float64)
    nearest = np.full(len(flat), np.inf)
    for at in range(0, len(flat), _CHUNK):
        part = flat[at : at + _CHUNK]
        before = flat[: at + len(part)]
        squares = (part**2).sum(1)[:, None] + (before**2).sum(1) - 2 * part @ before.T
        squares[np.arange(len(before)) >= at + np.arange(len(part))[:, None]] = np.inf
        nearest[at : at + len(part)] = np.sqrt(squares.clip(0).min(1))
    return nearest


def shrunk(images: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Shrink images to at most `side` pixels a side, areas averaged; N×h×w×C."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = (min(each, side) for each in images.shape[1:3])
    smaller = np.empty((len(images), height, width, images.shape[3]), np.float32)
    # A part at a time: as float32, all images of a large split take four times their room.
    for at in range(0, len(images), _CHUNK):
        pixels = torch.from_numpy(np.array(images[at : at + _CHUNK])).permute(0, 3, 1, 2).float()
        smaller[at : at + _CHUNK] = adaptive_avg_pool2d(pixels, (height, width)).permute(0, 2, 3, 1).numpy()
    return smaller


def spectrum(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the amplitudes of the Fourier transform, at 16 pixels a side at most; N×h×w×C.

    A picture that was moved by a pixel is as far from itself, pixel by pixel, as one digit from another of
    its kind. Its amplitudes stay the same but for what crosses the border.
    """
    pixels = shrunk(images, SIDE)
    pixels -= pixels.mean((1, 2), keepdims=True)
    return np.abs(np.fft.rfft2(pixels, axes=(1, 2))).astype(np.float32)


def shape(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return pixels at 8 a side, N×D of mean 0 and norm 1, which brightness and noise hardly change.

    Without the norm pictures of little contrast would be near to everything, hence copies of it.
    """
    pixels = shrunk(images, _SMALL)
    return _scaled(pixels - pixels.mean((1, 2, 3), keepdims=True))


def outline(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the spectrum at norm 1, N×D, which brightness and moves by a pixel hardly change."""
    return _scaled(spectrum(images))


def _scaled(features: NDArray[np.float32]) -> NDArray[np.float32]:
    features = features.reshape(len(features), math.prod(features.shape[1:]))
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    # A difference of about one grey level shows nothing.
    return features / np.maximum(norms, np.float32(math.sqrt(features.shape[1])))


class Likeness:
    """Search a set of images for near-duplicates by perceptual hash, as ingestion does.

    Two pictures of little detail resemble each other without being copies: small digits, say. What real
    images of the set show among themselves is therefore no sign of copying.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._thumbs = _thumbnails(images)
        self._hashes, self._flat = perceptual_hashes(self._thumbs)
        pairs = near_pairs(self._hashes, self._flat, lambda at: self._thumbs[at], SIMILARITY)
        self.pairs = (pairs.first, pairs.second, pairs.similarity)

    def among(self, rows: NDArray[np.int64], others: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the similarity of images of the set to the likest one of `others`, itself left out; 0 to 1.

        It is 0 where there is none that ingestion would call a near-duplicate.
        """
        likest = np.zeros(len(self._hashes), np.float32)
        first, second, similarity = self.pairs
        for one, other in ((first, second), (second, first)):
            wanted = others[other]
            np.maximum.at(likest, one[wanted], similarity[wanted])
        return likest[rows]

    def of(self, images: NDArray[np.uint8], others: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the same for new images."""
        thumbs = _thumbnails(images)
        hashes, flat = perceptual_hashes(thumbs)
        # Most of a large set is like none of them.
        pool = np.flatnonzero(others & ~self._flat)
        near = np.zeros(len(pool), bool)
        for one in np.unique(hashes[~flat]):
            near |= np.bitwise_count(self._hashes[pool] ^ one) <= RADIUS
        pool = pool[near]
        together = np.concatenate([self._thumbs[pool], thumbs])
        pairs = near_pairs(
            np.r_[self._hashes[pool], hashes],
            np.r_[self._flat[pool], flat],
            lambda at: together[at],
            SIMILARITY,
        )
        across = (pairs.first < len(pool)) & (pairs.second >= len(pool))
        likest = np.zeros(len(images), np.float32)
        np.maximum.at(likest, pairs.second[across] - len(pool), pairs.similarity[across])
        return likest


def liker_than_real(
    real: NDArray[np.float32], made: NDArray[np.float32], quantile: float
) -> NDArray[np.bool_]:
    """Mark made images that are more like an image than all but a share of real ones; of `Likeness`."""
    return made > max(float(np.quantile(real, 1 - quantile)), np.nextafter(np.float32(SIMILARITY), 0))


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring images to 16×16 grey: areas averaged where there are more pixels, else interpolated."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d, interpolate

    grey = images @ np.array(_LUMA, np.float32) if images.shape[3] == 3 else images[..., 0]
    pixels = torch.from_numpy(np.array(grey, np.float32))[:, None]
    height, width = pixels.shape[2:]
    pixels = adaptive_avg_pool2d(pixels, (min(height, SIDE), min(width, SIDE)))
    if min(height, width) < SIDE and len(pixels):
        pixels = interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    thumbs: NDArray[np.uint8] = pixels[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    return thumbs
