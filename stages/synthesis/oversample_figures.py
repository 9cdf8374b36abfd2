"""Pictures of what over-sampling made, of what the gate refused, and of the GAN as it learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.dataset import View
from stages.synthesis.figures import Line, save_montage
from stages.synthesis.synthetic import GANRecord, Synthetic

SHOWN = 8  # images of each class and kind


def save_samples(path: Path, real: View, made: Synthetic) -> None:
    """A line a class that gained any: real, synthetic, and the nearest real image of each of those."""
    lines = []
    for label, (name, entry) in enumerate(made.quality.items()):
        rows = np.flatnonzero(made.labels == label)[:SHOWN]
        if len(rows):
            own = real.images[real.labels == label][:SHOWN]
            blocks = [own, made.images[rows], real.images[made.parents[rows]]]
            lines.append(Line(f"{name} ({entry.method})", blocks))
    title = "Real and synthetic images" if lines else "Nothing was synthesised"
    save_montage(path, title, lines, [SHOWN] * 3, ["real", "synthetic", "nearest real"])


def save_refused(path: Path, real: View, made: Synthetic) -> None:
    """A line a class and check of the gate that refused some: real, refused, and nearest real images.

    No file where nothing was refused.
    """
    lines = []
    for some in made.refused:
        own = real.images[real.labels == some.label][:SHOWN]
        blocks = [own, some.images[:SHOWN], real.images[some.parents[:SHOWN]]]
        lines.append(Line(f"{real.classes[some.label]}: {some.check.replace('_', ' ')}", blocks))
    if lines:
        title = "Generated images that the gate refused, by class and check"
        save_montage(path, title, lines, [SHOWN] * 3, ["real", "refused", "nearest real"])


def save_progress(folder: Path, gan: GANRecord) -> None:
    """`step_000800.png` for each step that the GAN was looked at: a line a class, the same latents."""
    folder.mkdir()
    for step, samples in sorted(gan.progress.items()):
        lines = [Line(name, [images]) for name, images in zip(gan.trained_on, samples, strict=True)]
        title = f"The generator after {step} of {gan.steps_asked} steps"
        save_montage(folder / f"step_{step:06d}.png", title, lines, [samples.shape[1]], [""])
