"""Statistics of pixels, which models normalise by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STATISTICS_BATCH = 4096


def pixel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the 0 to 1 scale."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In float64, all at once, they take 8 times the room.
    for start in range(0, len(images), _STATISTICS_BATCH):
        pixels = images[start : start + _STATISTICS_BATCH].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    values, total = np.arange(256) / 255.0, counts[0].sum()
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    std = np.maximum(np.sqrt(variance), 1.0 / 255.0)
    return [round(float(x), 6) for x in mean], [round(float(x), 6) for x in std]
