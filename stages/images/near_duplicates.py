"""Find near-duplicates: pairs of images that show the same picture, encoded, resized or toned anew.

Candidates are images whose perceptual hashes differ in at most `RADIUS` bits; what they look like
decides. Flips and rotations are not near-duplicates here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.images.perceptual import BAND_BITS, LOW, SIDE, frequencies

RADIUS = 10  # bits in which the hashes of two candidates may differ
# Nats. Two unrelated pictures agree so well with a probability of e**-32, about 1e-14; among a
# million images are 5e11 pairs.
SURPRISE = 32.0

# Two hashes within `RADIUS` are within these distances in one of the bands, or they would differ
# in 4 + 4 + 3 bits at least, or in 3 + 3 + 3 + 2. Narrow bands have fewer values to look up, but more
# hashes of each value.
_WIDE = (BAND_BITS, (3, 3, 2))  # bits and radius of each band
_NARROW = ((16, 16, 16, 16), (2, 2, 2, 1))
_NARROW_UP_TO = 2**17  # hashes
_FEW = 2048  # hashes up to which all are compared with all: bands cost more than they save
_CROWD = 64  # most hashes of equal band that are all compared
_DELEGATES = 8  # of a crowd, or of the images with one hash: these stand for all
_CHUNK = 2**11  # pairs of images verified at once

Ints = NDArray[np.int64]
AnyInts = NDArray[np.integer[Any]]
Pair = tuple[AnyInts, AnyInts]


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, sorted, each once.

    Attributes
    ----------
    first, second : int64, positions; first < second
    similarity : float32, 0 to 1 (`near_pairs`), rounded to four digits
    cut_short : there were so many that the search was ended; what is there is right
    """

    first: Ints
    second: Ints
    similarity: NDArray[np.float32]
    cut_short: bool = False

    def __len__(self) -> int:
        return len(self.first)


def near_pairs(
    perceptual: NDArray[np.uint64],
    flat: NDArray[np.bool_],
    take: Callable[[Ints], NDArray[np.uint8]],
    similarity: float,
) -> Pairs:
    """Find the pairs of images that show the same picture.

    Two conditions hold for each pair, on `perceptual.frequencies`:

    1. The cosine similarity of the coarse frequencies (64 of 256) is at least `similarity`.
    2. Their agreement in all frequencies is no chance. With cosine similarity s, two random
       directions in d dimensions agree as well with a probability of about (1 - s²)**(d/2); d is
       the participation ratio 1/Σf⁴ of the less detailed image, that is how many frequencies it
       really has. The negative logarithm must reach `SURPRISE`. This is what keeps apart images of
       little detail, such as ships on the horizon or digits of 8×8 pixels, which resemble each
       other without being copies.

    Candidates come from multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming
    Space with Multi-Index Hashing", CVPR 2012): the 64 bits in three or four bands, and all
    hashes that are near in one band compared. No crowd of images makes this quadratic: of images with equal
    hashes, the first `_DELEGATES` are compared with the others of that hash and with those of near
    hashes; more than `_CROWD` hashes with an equal band are treated the same way, in that band; and
    there is a limit on all comparisons (`Pairs.cut_short`).

    Parameters
    ----------
    perceptual : N, `perceptual.perceptual_hashes`
    flat : N; these images are in no pair
    take : gives the thumbnails at ascending positions, n×16×16; asked for at most 4,096 at once
    similarity : from 0 (condition 2 decides) to 1 (equal up to brightness and contrast);
        0.85 finds copies that are encoded, resized or toned anew, and most of those cropped by 2 %
        a side; wider borders, larger crops and copies of pictures with little detail escape it
    """
    used = np.flatnonzero(~flat).astype(np.int32)
    hashes, starts, counts, order = _distinct(perceptual[used])
    members = used[order]
    verify = _Verifier(take, similarity)
    limits = _Limits(len(used), len(_layout(len(hashes))[0]))
    for first, second in _equal(starts, counts):
        verify.add(members[first], members[second])
    for first, second in _near(hashes, limits, verify):
        for left, right in _images_of(first, second, starts, counts):
            verify.add(members[left], members[right])
    return verify.pairs(limits.reached)


def connected_components(count: int, first: Ints, second: Ints) -> Ints:
    """Label the connected components of a graph of `count` nodes and these edges, from 0.

    Labels sink to the smallest neighbour's, and on to that one's own label, until no edge joins two.
    (scipy has the same, but takes a quarter of a second to load.)
    """
    labels = np.arange(count)
    while (apart := labels[first] != labels[second]).any():
        left, right = labels[first[apart]], labels[second[apart]]
        np.minimum.at(labels, np.maximum(left, right), np.minimum(left, right))
        while (labels[labels] != labels).any():
            labels = labels[labels]
    numbers: Ints = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return numbers


class _Verifier:
    """Compares the thumbnails of candidate pairs, a chunk at a time, and keeps those that are alike."""

    def __init__(self, take: Callable[[Ints], NDArray[np.uint8]], similarity: float) -> None:
        self._take = take
        self._similarity = similarity
        self._candidates: list[Pair] = []
        self._count = 0  # of candidates
        self._alike: list[tuple[AnyInts, AnyInts, NDArray[np.float32]]] = []
        self.found = 0  # pairs that are alike

    def add(self, first: AnyInts, second: AnyInts) -> None:
        self._candidates.append((first, second))
        self._count += len(first)
        if self._count >= _CHUNK:
            self._flush()

    def pairs(self, cut_short: bool) -> Pairs:
        self._flush()
        if not self._alike:
            none = np.empty(0, np.int64)
            return Pairs(none, none, np.empty(0, np.float32), cut_short)
        first, second, similarity = (np.concatenate(column) for column in zip(*self._alike, strict=True))
        order = np.lexsort((second, first))
        first, second = first[order].astype(np.int64), second[order].astype(np.int64)
        fresh = np.r_[True, (first[1:] != first[:-1]) | (second[1:] != second[:-1])]
        return Pairs(first[fresh], second[fresh], similarity[order][fresh], cut_short)

    def _flush(self) -> None:
        if not self._candidates:
            return
        left, right = (np.concatenate(side) for side in zip(*self._candidates, strict=True))
        self._candidates, self._count = [], 0
        first, second = np.minimum(left, right), np.maximum(left, right)
        for start in range(0, len(first), _CHUNK):
            self._compare(first[start : start + _CHUNK], second[start : start + _CHUNK])

    def _compare(self, first: AnyInts, second: AnyInts) -> None:
        positions, inverse = np.unique(np.concatenate([first, second]), return_inverse=True)
        all_frequencies = frequencies(self._take(positions.astype(np.int64)))
        coarse = all_frequencies[:, :LOW, :LOW].reshape(-1, LOW * LOW)
        coarse = coarse / np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1e-6)
        left, right = inverse[: len(first)], inverse[len(first) :]
        similarity = np.round(np.einsum("nf,nf->n", coarse[left], coarse[right]), 4).clip(0, 1)
        alike = np.flatnonzero(similarity >= np.float32(self._similarity))
        flattened = all_frequencies.reshape(-1, SIDE * SIDE)
        alike = alike[_surprise(flattened[left[alike]], flattened[right[alike]]) >= SURPRISE]
        if len(alike):
            self._alike.append((first[alike], second[alike], similarity[alike].astype(np.float32)))
            self.found += len(alike)


def _surprise(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute -log of the probability that unrelated images agree as well; rows of norm 1 (`near_pairs`)."""
    # From the difference, since 1 - s² has few digits where s is almost 1.
    apart = np.square(left - right).sum(axis=1, dtype=np.float64) / 2
    unlike = np.where(apart < 1, apart * (2 - apart), 1.0).clip(1e-9, 1)
    dimensions = 1 / np.maximum(*(np.square(np.square(side)).sum(axis=1) for side in (left, right)))
    surprise: NDArray[np.float64] = -dimensions * np.log(unlike) / 2
    return surprise


class _Limits:
    """Bounds what is compared, at enough for any million images that are not a crowd.

    Every band gets its share, and within one the nearest come first.
    """

    def __init__(self, images: int, bands: int) -> None:
        self._bands = bands
        self._most = {"compared": 10**8 + 1500 * images, "candidates": 10**6 + 64 * images}
        self._most_found = 10**5 + 10 * images
        self._spent = dict.fromkeys(self._most, 0)
        self._share = 0.0
        self.reached = False

    def next_band(self) -> None:
        self._share += 1 / self._bands

    def spend(self, compared: int, candidates: int, found: int) -> bool:
        """Count what was done; tell whether the search in this band is over."""
        self._spent["compared"] += compared
        self._spent["candidates"] += candidates
        over = any(self._spent[what] > most * self._share for what, most in self._most.items())
        over |= found > self._most_found * self._share
        self.reached |= over
        return over


def _distinct(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], AnyInts, AnyInts, AnyInts]:
    """Return each hash once, ascending; where its images begin in the order, how many, and the order."""
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    ordered = hashes[order]
    starts = np.flatnonzero(np.r_[np.ones(min(len(ordered), 1), bool), ordered[1:] != ordered[:-1]])
    counts = np.diff(starts, append=len(ordered))
    return ordered[starts], starts.astype(np.int32), counts.astype(np.int32), order


def _equal(starts: AnyInts, counts: AnyInts) -> Iterator[Pair]:
    """Pair the images of one hash, as places in the order."""
    several = np.flatnonzero(counts > 1)
    begin = np.repeat(starts[several], counts[several])
    ends = np.cumsum(counts[several])
    place = begin + np.arange(len(begin)) - np.repeat(ends - counts[several], counts[several])
    yield from _each_with(place, begin, np.minimum(place - begin, _DELEGATES))


def _images_of(first: AnyInts, second: AnyInts, starts: AnyInts, counts: AnyInts) -> Iterator[Pair]:
    """Pair the images, as places in the order, of pairs of hashes."""
    many_first, many_second = (np.minimum(counts[side], _DELEGATES) for side in (first, second))
    for left, right in itertools.product(range(many_first.max(initial=0)), range(many_second.max(initial=0))):
        rows = np.flatnonzero((many_first > left) & (many_second > right))
        yield starts[first[rows]] + left, starts[second[rows]] + right


def _near(hashes: NDArray[np.uint64], limits: _Limits, verify: _Verifier) -> Iterator[Pair]:
    """Pair distinct hashes within `RADIUS`, as positions; few pairs come more than once."""
    if len(hashes) <= _FEW:
        for place in range(len(hashes)):
            later = hashes[place + 1 :]
            second = place + 1 + np.flatnonzero(np.bitwise_count(later ^ hashes[place]) <= RADIUS)
            yield np.full_like(second, place), second
        return
    bits, _ = layout = _layout(len(hashes))
    crowded = [_crowded(_bits(hashes, bits, number)) for number in range(len(bits))]
    for number in range(len(bits)):
        limits.next_band()
        if limits.spend(0, 0, verify.found):
            continue
        band = _Band(hashes, layout, number)
        for weight, left, right in band.pairs():
            unlike = band.hashes.take(left) ^ band.hashes.take(right)
            close = np.flatnonzero(np.bitwise_count(unlike) <= RADIUS)
            if len(close):
                pair = band.order[left[close]], band.order[right[close]]
                reports = _is_reported(unlike[close], *pair, bits, number, weight, crowded)
                yield pair[0][reports], pair[1][reports]
            # Equal values are gone through to the end, or the last ones would have been given no chance.
            if limits.spend(len(left), len(close), verify.found) and weight:
                break


def _is_reported(
    unlike: NDArray[np.uint64],
    first: AnyInts,
    second: AnyInts,
    bits: Sequence[int],
    number: int,
    weight: int,
    crowded: list[NDArray[np.bool_]],
) -> NDArray[np.bool_]:
    """Tell which pairs band `number` reports: the nearest band does, of several the first.

    Another band cannot be relied on where one of the two is in a crowd there.
    """
    reports = np.ones(len(unlike), np.bool_)
    for other in range(len(bits)):
        if other != number:
            distance = np.bitwise_count(_bits(unlike, bits, other))
            crowd = crowded[other][first] | crowded[other][second]
            reports &= crowd | (distance >= weight + (other < number))
    return reports


def _layout(hashes: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return bits and radius of each band, for so many hashes."""
    return _NARROW if hashes <= _NARROW_UP_TO else _WIDE


def _crowded(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell which hashes have a value of a band that more than `_CROWD` have."""
    values = keys.astype(np.int32)
    crowded: NDArray[np.bool_] = (np.bincount(values) > _CROWD)[values]
    return crowded


class _Band:
    """The hashes in the order of one band, and where in it each value of the band begins."""

    def __init__(
        self, hashes: NDArray[np.uint64], layout: tuple[Sequence[int], Sequence[int]], number: int
    ) -> None:
        bits, radii = layout
        self._width, self._radius = bits[number], radii[number]
        keys = _bits(hashes, bits, number)
        # Within a band's value mixed, so that the first ones are a sample of all.
        mixed = hashes * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(self._width)
        self.order = np.argsort(keys << np.uint64(64 - self._width) | mixed, kind="stable").astype(np.int32)
        self.hashes = hashes[self.order]
        self._keys = keys[self.order].astype(np.int32)
        counts = np.bincount(self._keys, minlength=2**self._width).astype(np.int32)
        self._starts = np.cumsum(counts, dtype=np.int32) - counts
        self._crowd = counts > _CROWD
        self._sizes = np.where(self._crowd, _DELEGATES, counts).astype(np.uint8)

    def pairs(self) -> Iterator[tuple[int, AnyInts, AnyInts]]:
        """Pair places whose values differ in so many bits, 0 first, up to the band's radius."""
        place = np.arange(len(self._keys), dtype=np.int32)
        rank = place - self._starts[self._keys]
        crowd = self._crowd[self._keys]
        others = np.minimum(rank, np.where(crowd, _DELEGATES, _CROWD))
        for left, right in _each_with(place, place - rank, others):
            yield 0, left, right
        place = place[~crowd | (rank < _DELEGATES)]
        keys = self._keys[place]
        for weight, top in itertools.product(range(1, self._radius + 1), range(self._width)):
            # Each pair of values is met twice; the one with the highest differing bit looks for the other.
            chosen = np.flatnonzero(keys >> top & 1)
            seeker, key = place[chosen], keys[chosen]
            for bits in itertools.combinations(range(top), weight - 1):
                wanted = key ^ sum(1 << bit for bit in (*bits, top))
                sizes = self._sizes.take(wanted)
                filled = np.flatnonzero(sizes > 0)  # of truth values: six times as fast as of numbers
                begin = self._starts.take(wanted.take(filled))
                for left, right in _each_with(seeker.take(filled), begin, sizes.take(filled)):
                    yield weight, left, right


def _bits(hashes: NDArray[np.uint64], bits: Sequence[int], number: int) -> NDArray[np.uint64]:
    """Return the value of one band, of so many bits each."""
    low = np.uint64(sum(bits[:number]))
    return hashes >> low & np.uint64(2 ** bits[number] - 1)


def _each_with(place: AnyInts, begin: AnyInts, count: AnyInts) -> Iterator[Pair]:
    """Pair every place with each of the `count` places from `begin` on: all first ones, all second ones, …

    Most counts are 0 or 1: this is faster than to spell out all pairs at once, and takes less memory.
    """
    step = 0
    while len(place):
        more = np.flatnonzero(count > step)
        if len(more) < len(place):
            place, begin, count = place.take(more), begin.take(more), count.take(more)
        if len(place):
            yield place, begin + step
        step += 1
