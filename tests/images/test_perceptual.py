"""The perceptual hash and the weighted frequencies of a thumbnail."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from stages.images.perceptual import BAND_BITS, FLAT, LOW, SIDE, frequencies, perceptual_hashes

RNG = np.random.default_rng(0)


def noise(count: int, low: int = 0, high: int = 256) -> np.ndarray:
    return RNG.integers(low, high, (count, SIDE, SIDE)).astype(np.uint8)


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.bitwise_count(first ^ second)


def test_an_images_hash_does_not_depend_on_those_beside_it() -> None:
    thumbs = noise(5000)  # more than are hashed at once
    hashes, flat = perceptual_hashes(thumbs)
    assert hashes.dtype == np.uint64
    assert flat.dtype == np.bool_
    for place in (0, 1, 4095, 4096, 4999):
        alone, _ = perceptual_hashes(thumbs[place : place + 1])
        assert alone[0] == hashes[place]
    backwards, _ = perceptual_hashes(thumbs[::-1])
    np.testing.assert_array_equal(backwards[::-1], hashes)


def test_the_bits_are_the_low_frequencies_above_their_median() -> None:
    thumbs = noise(50)
    cosines = scipy.fft.dctn(thumbs.astype(float), axes=(1, 2), norm="ortho")
    low = np.concatenate([cosines[:, :LOW, :LOW].reshape(50, -1)[:, 1:], cosines[:, LOW:, 0][:, :1]], axis=1)
    bits = low > np.median(low, axis=1, keepdims=True)
    hashes, _ = perceptual_hashes(thumbs)
    # In whatever order the bits stand, they tell images apart as these do.
    expected = (bits[:, None] != bits[None]).sum(axis=2)
    np.testing.assert_array_equal(apart(hashes[:, None], hashes[None]), expected)


def test_half_of_the_bits_are_set_and_unrelated_images_differ_in_half() -> None:
    hashes, _ = perceptual_hashes(noise(2000))
    assert set(np.bitwise_count(hashes)) == {32}
    assert 31 < apart(hashes[:1000], hashes[1000:]).mean() < 33


def test_brightness_and_contrast_leave_the_hash_as_it_is() -> None:
    thumbs = noise(100, 0, 80)
    hashes, _ = perceptual_hashes(thumbs)
    brighter, _ = perceptual_hashes(thumbs * 2 + 50)
    np.testing.assert_array_equal(brighter, hashes)


def test_each_band_holds_coarse_and_fine_frequencies() -> None:
    assert sum(BAND_BITS) == 64
    x = np.arange(SIDE)
    starts = np.cumsum((0, *BAND_BITS))
    bands = set()
    for u, v in ((0, 1), (1, 0), (1, 1)):  # the three coarsest: images in which only one is above zero
        wave = np.outer(np.cos(np.pi * (2 * x + 1) * u / 32), np.cos(np.pi * (2 * x + 1) * v / 32))
        wave = np.round(128 + 100 * wave).astype(np.uint8)[None]
        changed = int((perceptual_hashes(wave)[0] & ~perceptual_hashes(255 - wave)[0])[0])
        bands |= {
            int(np.searchsorted(starts, bit, side="right")) - 1 for bit in range(64) if changed >> bit & 1
        }
    assert bands == {0, 1, 2}


@pytest.mark.parametrize(("spread", "expected"), [(0, True), (FLAT - 1, True), (FLAT + 1, False)])
def test_flat_is_what_has_too_little_contrast(spread: int, expected: bool) -> None:
    board = np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 2 - 1
    thumbs = (100 + spread * board).astype(np.uint8)[None]  # its standard deviation is `spread`
    assert perceptual_hashes(thumbs)[1].tolist() == [expected]


def test_no_thumbnails_have_no_hashes() -> None:
    hashes, flat = perceptual_hashes(np.empty((0, SIDE, SIDE), np.uint8))
    assert len(hashes) == len(flat) == 0
    assert frequencies(np.empty((0, SIDE, SIDE), np.uint8)).shape == (0, SIDE, SIDE)


def test_frequencies_are_the_cosine_transform_weighted_by_the_distance_from_zero() -> None:
    thumbs = noise(20)
    u, v = np.indices((SIDE, SIDE))
    expected = scipy.fft.dctn(thumbs.astype(float), axes=(1, 2), norm="ortho") * np.hypot(u, v)
    expected /= np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(frequencies(thumbs), expected, atol=1e-5)


def test_one_grey_has_no_frequencies() -> None:
    grey = np.full((1, SIDE, SIDE), 77, np.uint8)
    assert np.abs(frequencies(grey)).max() < 1
    assert np.isfinite(frequencies(grey)).all()
