"""What the measurements of the GAN found, in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.series import spread
from benchmarks.results import Row

MEASURES = ("kid", "density", "coverage")
POOLED = ("fid", *MEASURES)
# FID on a tenth of CIFAR-10, of 10,000 generated images against the test images, in Inception's features:
# Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (arXiv 2006.10738, table 4),
# and their repository.
FIELD_SOURCE = "mit-han-lab/data-efficient-gans"
FIELD = {"BigGAN": 39.8, "BigGAN + DiffAugment": 22.4, "StyleGAN2 + DiffAugment": 14.5}


def stage_table(rows: Sequence[Row]) -> str:
    """Seconds of one training as the stage has it, over seeds."""
    facts = rows[0]["key"]
    config = facts["config"]
    seeds = " ".join(str(row["key"]["seed"]) for row in rows)
    lines = [
        f"{rows[0]['images']:,} images of GAN training at 32×32 ({config['steps']} steps of "
        f"{config['batch_size']}, width {config['width']}, as in params.yaml; seeds {seeds}):",
        f"{spread(row['seconds'] for row in rows)} s, peak "
        f"{max(row['peak_bytes'] for row in rows) / 2**20:,.0f} MiB",
    ]
    return "\n".join(lines + _notes(rows))


def steps_table(rows: Sequence[Row]) -> str:
    """Images a second of training steps: medians over rounds, least and most; ratios within rounds."""
    rounds = rows[0]["key"]["rounds"]
    lines = [
        f"training steps, real images a second; median (least to most) of {rounds} rounds in turns with the "
        "plain side (fp32, NCHW, DataLoader)",
        f"{'width':>5}{'batch':>7}{'ours':>30}{'plain':>30}{'ours / plain':>24}",
    ]
    for row in rows:
        ours, plain = row["speeds"]["ours"], row["speeds"]["plain"]
        ratios = [one / other for one, other in zip(ours, plain, strict=True)]
        lines.append(
            f"{row['key']['width']:>5}{row['key']['batch_size']:>7}{spread(ours, digits=0):>30}"
            f"{spread(plain, digits=0):>30}{spread(ratios):>24}"
        )
    return "\n".join(lines)


def quality_table(row: Row) -> str:
    """The training, then figures by class and over all, and those in Inception's features."""
    settings, figures, training = row["settings"], row["figures"], row["training"]
    classes = len(row["classes"])
    lines = [
        f"a tenth of CIFAR-10: {settings['images']} images a class, seed {settings['seed']}, width "
        f"{settings['width']}: {_trained(training)}",
        f"against {classes * settings['held_out']:,} test images, in the features of a judge trained on "
        f"{classes * settings['judge_images']:,} other images; means over its two models",
        "",
        f"{'':14}" + "".join(f"{name:>12}{'held-out':>10}" for name in MEASURES),
    ]
    by_class = figures["by_class"]
    for label, name in enumerate(row["classes"]):
        cells = ((by_class[who][m][label] for who in ("generated", "held-out")) for m in MEASURES)
        lines.append(f"{name[:14]:14}" + "".join(f"{made:>12.3f}{real:>10.3f}" for made, real in cells))
    lines += ["", *_pooled("all classes", figures["pooled"], by_class)]
    if row["inception"] is not None:
        lines += ["", *_inception(row["inception"])]
    return "\n".join(lines + _notes([training] if training else []))


def _trained(training: Row | None) -> str:
    if training is None:
        return "the line of its training is no longer in --out"
    batch = training["batch_size"]
    said = f"{training['steps']:,} steps of {batch} images"
    if training["continued"]:
        return f"{said}, in more than one run; peak {training['peak_bytes'] / 2**20:,.0f} MiB"
    seconds = training["seconds"]
    return (
        f"{said} in {seconds / 60:.1f} minutes ({training['steps'] * batch / seconds:,.0f} images/s); peak "
        f"{training['peak_bytes'] / 2**20:,.0f} MiB"
    )


def _pooled(
    title: str, pooled: Mapping[str, Mapping[str, float]], by_class: Mapping[str, Any] | None = None
) -> list[str]:
    """A line for each kind of images; with `by_class` the share that the judge recognises, too."""
    recognised = "" if by_class is None else f"{'recognised':>12}"
    lines = [f"{title:14}" + "".join(f"{name:>12}" for name in POOLED) + recognised]
    for who, values in pooled.items():
        line = f"{who:14}" + "".join(f"{values[name]:>12.3f}" for name in POOLED)
        if by_class is not None:
            line += f"{np.mean(by_class[who]['recognised']):>12.3f}"
        lines.append(line)
    return lines


def _inception(row: Row) -> list[str]:
    """Inception's figures, beside the field's where they are of the same network."""
    name = row["key"]["file"][0]
    lines = [f"in the features of Inception-v3 ({name})", *_pooled("all classes", row["pooled"])]
    if not row["is_fid"]:
        return [*lines, "these are torchvision's weights: their FIDs do not compare with published ones"]
    field = "; ".join(f"{model} {fid}" for model, fid in FIELD.items())
    return [*lines, f"FID of the field, in the same features ({FIELD_SOURCE}): {field}"]


def _notes(rows: Sequence[Row]) -> list[str]:
    return [f"note: {note}" for row in rows for note in row["notes"]]
