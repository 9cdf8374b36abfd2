"""Describe what an image looks like in 64 bits and in 255 frequencies, to find near-duplicates.

Both come from the discrete cosine transform of a 16×16 grey thumbnail of the whole image. Flipped
and rotated images look different here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIDE = 16  # pixels of a thumbnail's side
LOW = 8  # frequencies a side that say what is seen; those above are its fine detail
FLAT = 5  # grey levels: thumbnails with a smaller standard deviation show nothing
# The hash's bits in bands, lowest bits first. Coarse and fine frequencies are dealt to all alike,
# so that each band says about as much as the others.
BAND_BITS: Final = (21, 21, 22)

_CHUNK = 4096  # thumbnails at once


def perceptual_hashes(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hash what images look like: images that look alike differ in few of the 64 bits.

    A bit says whether one of the lowest frequencies of the cosine transform, the mean left out,
    lies above the median of all of them. Zauner, "Implementation and Benchmarking of Perceptual
    Image Hash Functions", 2010, section 3.2.1 (pHash). All sums are of whole numbers, hence exact:
    an image's hash depends neither on those beside it nor on the processor.

    Parameters
    ----------
    thumbs : n×16×16, grey

    Returns
    -------
    hashes : uint64, n
    flat : bool, n; the standard deviation is below `FLAT`, and the hash means nothing
    """
    hashes = np.empty(len(thumbs), np.uint64)
    flat = np.empty(len(thumbs), np.bool_)
    for start in range(0, len(thumbs), _CHUNK):
        part = slice(start, start + _CHUNK)
        pixels = thumbs[part].astype(np.float64)
        coefficients = pixels.reshape(len(pixels), SIDE * SIDE) @ _WHOLE_PRODUCTS
        above = coefficients > np.median(coefficients, axis=1, keepdims=True)
        packed = np.ascontiguousarray(np.packbits(above, axis=1, bitorder="little"))
        hashes[part] = packed.view("<u8")[:, 0]
        total, squares = pixels.sum(axis=(1, 2)), np.square(pixels).sum(axis=(1, 2))
        count = SIDE * SIDE
        flat[part] = count * squares - total**2 < (count * FLAT) ** 2
    return hashes, flat


def frequencies(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the cosine transform of thumbnails, every frequency multiplied by its distance from zero.

    The amplitudes of natural images fall with the frequency (Field, "Relations between the
    statistics of natural images and the response properties of cortical cells", 1987); so weighted,
    all frequencies count about the same, and brightness not at all.

    Parameters
    ----------
    thumbs : n×16×16, grey

    Returns
    -------
    n×16×16, coarse to fine along both axes; of norm 1 unless the thumbnail is of one grey.
    """
    # A product for each image: faster here than one for all, and the same whatever is beside it.
    weighted = (_COSINES @ (thumbs.astype(np.float32) @ _COSINES.T)) * _WEIGHTS
    norms = np.sqrt(np.einsum("nuv,nuv->n", weighted, weighted))
    scaled: NDArray[np.float32] = weighted / np.maximum(norms, np.float32(1e-3))[:, None, None]
    return scaled


def _cosines() -> NDArray[np.float64]:
    """Return the orthonormal DCT-II of 16 values, frequency × place."""
    frequency, place = np.arange(SIDE)[:, None], np.arange(SIDE)[None]
    matrix = np.cos(np.pi * (2 * place + 1) * frequency / (2 * SIDE)) * np.sqrt(2 / SIDE)
    matrix[0] /= np.sqrt(2)
    return matrix


def _hashed() -> NDArray[np.int64]:
    """Return where the 64 hashed frequencies stand among the (LOW + 1)² lowest, in the order of the bits."""
    places = [(u, v) for u in range(LOW) for v in range(LOW) if u or v]
    places.append((LOW, 0))  # the mean left out, one is missing
    places.sort(key=lambda place: (place[0] ** 2 + place[1] ** 2, place))
    dealt = [*places[2::3], *places[1::3], *places[0::3]]
    return np.array([u * (LOW + 1) + v for u, v in dealt])


def _weights() -> NDArray[np.float32]:
    frequency = np.arange(SIDE, dtype=np.float32)
    return np.hypot(frequency[:, None], frequency[None])


_HASHED = _hashed()
# Whole numbers, as floats for the matrix product. Sums stay below 2**36, far from the 2**53 up to
# which float64 holds every whole number.
_WHOLE_COSINES = np.round(_cosines()[: LOW + 1] * 2**12)
# Pixel × hashed frequency: the transform of a whole thumbnail as one product.
_WHOLE_PRODUCTS = np.ascontiguousarray(np.kron(_WHOLE_COSINES, _WHOLE_COSINES)[_HASHED].T)
_COSINES = _cosines().astype(np.float32)
_WEIGHTS = _weights()
