"""Which images count as near-duplicates, and that the search finds them all at a bounded price."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages.images import near_duplicates
from stages.images.near_duplicates import RADIUS, Pairs, connected_components, near_pairs
from stages.images.perceptual import perceptual_hashes

SIMILARITY = 0.85
Pixels = np.ndarray


def photo(seed: int, side: int = 128) -> Pixels:
    """Something like a photograph: smooth fields of all sizes, a few things with edges, in colour."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for cells in (2, 4, 8, 16, 32):
        field = rng.normal(0, 1 / cells, (cells, cells, 1)) + rng.normal(0, 0.3 / cells, (cells, cells, 3))
        image += cv2.resize(field.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        corners = rng.integers(0, side, (3, 2)).astype(np.int32)
        cv2.fillPoly(image, [corners], (rng.normal(0, 0.6) + rng.normal(0, 0.2, 3)).tolist())
    image = (image - image.mean()) / image.std()
    return np.clip(128 + 45 * image, 0, 255).astype(np.uint8)


def page(seed: int, side: int = 128) -> Pixels:
    """Something like a page of text: dark words in lines on white."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 250, np.uint8)
    for top in range(6, side - 12, 14):
        left = int(rng.integers(4, 40))
        while left < side - 20:
            width = int(rng.integers(6, 30))
            image[top : top + 8, left : left + width] = rng.integers(0, 90)
            left += width + int(rng.integers(4, 24))
    return image


def thumb(image: Pixels) -> Pixels:
    return cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (16, 16), interpolation=cv2.INTER_AREA)


def jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def encode(image: Pixels) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return encode


def resize(factor: float) -> Callable[[Pixels], Pixels]:
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def tone(contrast: float, brightness: float) -> Callable[[Pixels], Pixels]:
    return lambda image: np.clip(image.astype(float) * contrast + brightness, 0, 255).astype(np.uint8)


def gamma(power: float) -> Callable[[Pixels], Pixels]:
    return lambda image: (255 * (image / 255) ** power).astype(np.uint8)


def grey(image: Pixels) -> Pixels:
    return np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)


def crop(margin: int) -> Callable[[Pixels], Pixels]:
    return lambda image: np.ascontiguousarray(image[margin:-margin, margin:-margin])


def border(image: Pixels) -> Pixels:
    return cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0, 0, 0))


def watermark(image: Pixels) -> Pixels:
    marked, side = image.copy(), len(image)
    corner = marked[-side // 10 : -side // 40, -side // 5 : -side // 40]
    corner[:] = corner // 2 + 127
    return marked


def search(thumbs: Pixels, similarity: float = SIMILARITY) -> Pairs:
    return near_pairs(*perceptual_hashes(thumbs), lambda positions: thumbs[positions], similarity)


def as_set(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


COUNT = 60
IMAGES = [photo(seed) for seed in range(COUNT)]


@pytest.mark.parametrize(
    ("change", "share"),
    [
        pytest.param(jpeg(95), 1, id="jpeg 95"),
        pytest.param(jpeg(50), 1, id="jpeg 50"),
        pytest.param(resize(0.5), 1, id="half the size"),
        pytest.param(resize(0.75), 1, id="three quarters of the size"),
        pytest.param(resize(2), 1, id="twice the size"),
        pytest.param(tone(1, 25), 1, id="brighter"),
        pytest.param(tone(1, -25), 1, id="darker"),
        pytest.param(tone(0.8, 25), 1, id="less contrast"),
        pytest.param(tone(1.2, -25), 1, id="more contrast"),
        pytest.param(gamma(0.8), 1, id="gamma 0.8"),
        pytest.param(gamma(1.25), 1, id="gamma 1.25"),
        pytest.param(grey, 1, id="grey"),
        pytest.param(crop(1), 1, id="a pixel cut off"),
        pytest.param(crop(2), 0.95, id="two pixels cut off"),
        pytest.param(border, 0.95, id="black border"),
        pytest.param(watermark, 0.95, id="watermark"),
    ],
)
def test_copies_are_found_and_nothing_else(change: Callable[[Pixels], Pixels], share: float) -> None:
    thumbs = np.stack([thumb(image) for image in IMAGES] + [thumb(change(image)) for image in IMAGES])
    found = as_set(search(thumbs))
    copies = {(place, place + COUNT) for place in range(COUNT)}
    assert found <= copies
    assert len(found) >= share * COUNT


def test_copies_of_pages_are_found_and_nothing_else() -> None:
    pages = [page(seed) for seed in range(COUNT)]
    thumbs = np.stack([thumb(image) for image in pages] + [thumb(jpeg(50)(image)) for image in pages])
    assert as_set(search(thumbs)) == {(place, place + COUNT) for place in range(COUNT)}


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.rot90])
def test_flipped_and_turned_images_are_no_near_duplicates(turn: Callable[[Pixels], Pixels]) -> None:
    thumbs = np.stack([thumb(image) for image in IMAGES])
    turned = np.stack([np.ascontiguousarray(turn(one)) for one in thumbs])
    assert len(search(np.concatenate([thumbs, turned]))) == 0


def test_images_of_little_detail_may_resemble_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    thumbs = []
    for _ in range(300):  # a bright sky, a dark sea, something on the horizon
        image = np.full((64, 64, 3), rng.integers(180, 240), np.uint8)
        horizon = int(rng.integers(28, 36))
        image[horizon:] = rng.integers(30, 90)
        left, width, height = rng.integers(4, 50), rng.integers(6, 24), rng.integers(2, 8)
        image[horizon - height : horizon, left : left + width] = rng.integers(20, 120)
        thumbs.append(thumb(image))
    unequal = np.unique(np.stack(thumbs), axis=0)
    assert len(unequal) > 250
    pairs = search(unequal)
    assert (pairs.similarity > 0.98).all()  # a few did come out alike
    monkeypatch.setattr(near_duplicates, "SURPRISE", 0)
    assert len(search(unequal)) > 50 * len(pairs)  # the similarity alone takes many for copies


def test_handwritten_digits_are_no_near_duplicates() -> None:
    images = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    thumbs = np.stack([cv2.resize(image, (16, 16), interpolation=cv2.INTER_LINEAR) for image in images])
    assert len(search(thumbs)) == 0


def test_more_similarity_is_fewer_pairs_and_the_figure_is_what_was_asked() -> None:
    thumbs = np.stack([thumb(image) for image in IMAGES] + [thumb(crop(3)(image)) for image in IMAGES])
    loose, strict = search(thumbs, 0.5), search(thumbs, 0.97)
    assert 0 < len(strict) < len(loose)
    assert as_set(strict) < as_set(loose)
    assert strict.similarity.min() >= np.float32(0.97)
    assert loose.similarity.dtype == np.float32


def test_pairs_are_sorted_and_each_comes_once() -> None:
    thumbs = np.stack([thumb(image) for image in IMAGES[:5]] * 3)
    pairs = search(thumbs)
    expected = [(i, j) for i in range(15) for j in range(i + 1, 15) if (j - i) % 5 == 0]
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    assert pairs.first.dtype == pairs.second.dtype == np.int64
    assert not pairs.cut_short


def test_flat_images_are_in_no_pair() -> None:
    thumbs = np.stack([thumb(IMAGES[0])] * 4)
    hashes, _ = perceptual_hashes(thumbs)
    flat = np.array([False, True, False, True])
    assert as_set(near_pairs(hashes, flat, lambda positions: thumbs[positions], SIMILARITY)) == {(0, 2)}


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_have_no_pairs(count: int) -> None:
    pairs = search(np.stack([thumb(image) for image in IMAGES])[:count])
    assert len(pairs) == 0
    assert pairs.first.dtype == np.int64


class Reader:
    """Gives the same detailed thumbnail for every image, so that every candidate is a pair."""

    def __init__(self) -> None:
        self.thumb = thumb(IMAGES[0])
        self.most = 0

    def __call__(self, positions: np.ndarray) -> Pixels:
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
        self.most = max(self.most, len(positions))
        return np.repeat(self.thumb[None], len(positions), axis=0)


def by_hash(hashes: np.ndarray) -> Pairs:
    return near_pairs(hashes, np.zeros(len(hashes), bool), Reader(), SIMILARITY)


def near_copies(count: int, copies: int, seed: int) -> np.ndarray:
    """Random hashes, and of each some copies with 0 to 14 bits changed."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    changed = [hashes]
    for _ in range(copies):
        ranks = rng.random((count, 64)).argsort(axis=1).argsort(axis=1)
        flips = ranks < rng.integers(0, 15, (count, 1))
        changed.append(hashes ^ np.packbits(flips, axis=1).view("<u8")[:, 0])
    return rng.permutation(np.concatenate(changed))


def all_within(hashes: np.ndarray, radius: int = RADIUS) -> set[tuple[int, int]]:
    first, second = np.nonzero(np.bitwise_count(hashes[:, None] ^ hashes[None]) <= radius)
    return {(i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True) if i < j}


@pytest.mark.parametrize("few", [0, near_duplicates._FEW])
def test_all_hashes_within_the_radius_are_candidates(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_FEW", few)
    hashes = near_copies(400, 3, seed=0)
    expected = all_within(hashes)
    assert len(expected) > 500
    assert as_set(by_hash(hashes)) == expected


def test_a_crowd_in_one_band_is_found_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_FEW", 0)
    hashes = near_copies(400, 1, seed=1) & ~np.uint64(2**21 - 1)  # all of one value in the first band
    unique = np.unique(hashes)
    found = as_set(by_hash(unique))
    # The two other bands are sure to find what differs in 3 + 2 + 1 bits, and find most of the rest.
    assert all_within(unique, 6) <= found <= all_within(unique)
    assert len(all_within(unique, 6)) > 100


def test_images_of_equal_hash_are_joined_without_comparing_all_with_all() -> None:
    count = 5000
    reader = Reader()
    pairs = near_pairs(np.full(count, 77, np.uint64), np.zeros(count, bool), reader, SIMILARITY)
    assert len(set(connected_components(count, pairs.first, pairs.second).tolist())) == 1
    assert len(pairs) < 10 * count
    assert reader.most <= 4096


def test_a_crowd_of_near_hashes_is_joined_without_comparing_all_with_all() -> None:
    count = 10_000
    flips = np.random.default_rng(0).random((count, 64)) < 0.05
    hashes = np.packbits(flips, axis=1).view("<u8")[:, 0].astype(np.uint64)
    pairs = by_hash(hashes)
    largest = np.bincount(connected_components(count, pairs.first, pairs.second)).max()
    assert largest > 0.99 * count
    assert len(pairs) < 50 * count
    assert pairs.cut_short


def test_what_is_found_does_not_depend_on_how_many_other_images_there_are() -> None:
    thumbs = np.stack([thumb(image) for image in IMAGES] + [thumb(jpeg(50)(image)) for image in IMAGES])
    others = np.random.default_rng(0).integers(0, 256, (3000, 16, 16)).astype(np.uint8)
    alone, beside = search(thumbs), search(np.concatenate([thumbs, others]))
    assert as_set(alone) == as_set(beside)
    np.testing.assert_array_equal(alone.similarity, beside.similarity)


def test_components_are_what_edges_connect() -> None:
    labels = connected_components(6, np.array([0, 1, 4]), np.array([1, 2, 5]))
    assert labels.dtype == np.int64
    assert labels[0] == labels[1] == labels[2]
    assert labels[4] == labels[5]
    assert len(set(labels.tolist())) == 3
    none = np.empty(0, np.int64)
    assert len(set(connected_components(3, none, none).tolist())) == 3


@pytest.mark.parametrize("up_to", [0, 2**17])
def test_the_layout_of_the_bands_changes_nothing(monkeypatch: pytest.MonkeyPatch, up_to: int) -> None:
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    flipped = hashes[:500].copy()
    for row in range(500):
        for bit in rng.choice(64, near_duplicates.RADIUS, replace=False):
            flipped[row] ^= np.uint64(1) << np.uint64(bit)
    monkeypatch.setattr(near_duplicates, "_NARROW_UP_TO", up_to)
    thumbs = rng.integers(0, 256, (5000, 16, 16)).astype(np.uint8)
    found = near_duplicates.near_pairs(
        np.concatenate([hashes, flipped]), np.zeros(5500, bool), lambda at: thumbs[at % 5000], 0.85
    )
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [
        (row, 5000 + row) for row in range(500)
    ]
