"""Synthetic samples for the rare classes, behind a quality gate that may refuse them."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from stages import dataset
from stages.dataset import Dataset, View
from stages.params import Params
from stages.params import Synthesize as Section
from stages.runtime import stage
from stages.synthesis.delta import build_delta
from stages.synthesis.figures import Line, save_montage
from stages.synthesis.oversample import Synthetic, oversample
from stages.synthesis.targets import quotas, target_size
from stages.tracking import StageRun

REPORT = dataset.REPORTS / "synthesize"
HISTORY_COLUMNS = ["step", "generator_loss", "discriminator_loss", "penalty"]
_SHOWN = 8  # images of each class and kind


def synthesize(real: View, section: Section, *, seed: int, device: str) -> Synthetic:
    """Make images for the classes that need some, as the section of `params.yaml` says.

    Parameters
    ----------
    real : the curated real training images
    section : `synthesize` of `params.yaml`
    seed, device : of all that is trained and drawn

    Raises
    ------
    WinnowError
        For images that the chosen method cannot make, or a GAN whose training failed.
    """
    from stages.synthesis.gan import GANConfig
    from stages.synthesis.gate import GateConfig

    return oversample(
        real,
        quotas(real.class_counts, section.target, section.max_factor),
        target=target_size(real.class_counts, section.target),
        method=section.method,
        min_real_per_class=section.min_real_per_class,
        gan=GANConfig(**section.gan.model_dump()),
        gate=GateConfig(**section.gate.model_dump()),
        seed=seed,
        device=device,  # type: ignore[arg-type]
    )


def synthetic_delta(base: Dataset, real: View, made: Synthetic, weight: float) -> Dataset:
    """The delta. Copies and interpolations inherit their parent's weight, of source and ledger; a
    GAN's images, which have none but a nearest neighbour, do not.
    """
    inherited = np.where(np.asarray(made.methods, dtype=object) == "gan", 1.0, real.weights[made.parents])
    return build_delta(
        base,
        made.images,
        made.labels,
        [str(name) for name in real.sample_ids[made.parents]],
        made.methods,
        weight * inherited.astype(np.float64),
    )


def counts_table(made: Synthetic) -> pd.DataFrame:
    """Images of each class: `class`, `real`, `synthetic`, `method` and `decision`."""
    return pd.DataFrame(
        [
            (name, entry.real, entry.added, entry.method, entry.decision)
            for name, entry in made.quality.items()
        ],
        columns=["class", "real", "synthetic", "method", "decision"],
    )


def save_samples(path: Path, real: View, made: Synthetic) -> None:
    """A line a class that gained any: real, synthetic, and the nearest real image of each of those."""
    lines = []
    for label, (name, entry) in enumerate(made.quality.items()):
        rows = np.flatnonzero(made.labels == label)[:_SHOWN]
        if len(rows):
            blocks = [
                real.images[real.labels == label][:_SHOWN],
                made.images[rows],
                real.images[made.parents[rows]],
            ]
            lines.append(Line(f"{name} ({entry.method})", blocks))
    title = "Real and synthetic images" if lines else "Nothing was synthesised"
    save_montage(path, title, lines, [_SHOWN] * 3, ["real", "synthetic", "nearest real"])


def _write_report(folder: Path, real: View, made: Synthetic) -> None:
    quality = {name: entry.to_json() for name, entry in made.quality.items()}
    dataset.write_json(folder / "quality.json", quality)
    counts_table(made).to_csv(folder / "counts.csv", index=False)
    history = pd.DataFrame(made.history, columns=HISTORY_COLUMNS).astype({"step": "int64"})
    history.round(6).to_csv(folder / "gan_history.csv", index=False)
    save_samples(folder / "samples.png", real, made)


def _say(made: Synthetic) -> None:
    """The decision for each class, fallbacks out loud."""
    for name, entry in made.quality.items():
        mark = "FALLBACK " if entry.decision == "fallback" else ""
        print(f"synthesize: {name}: {mark}{entry.added} by {entry.method} ({entry.reason})")


@stage("synthesize")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Make synthetic images for the rare classes of the curated training split."""
    base = dataset.read_dataset(dataset.INGESTED)
    real = dataset.split_view(base, "train", dataset.read_ledger())
    made = synthesize(real, params.synthesize, seed=params.seed, device=params.device)
    with dataset.new_folder(REPORT) as folder:
        _write_report(folder, real, made)
    with dataset.new_folder(dataset.SYNTHETIC) as folder:
        dataset.write_dataset(folder, synthetic_delta(base, real, made, params.synthesize.weight))
    _say(made)
    methods = ("gan", "smote", "random")
    run.log_metrics({f"synthetic_{method}": float(made.methods.count(method)) for method in methods})
    run.log_history(
        [
            {"epoch": row["step"], **{f"gan_{key}": value for key, value in row.items() if key != "step"}}
            for row in made.history
        ]
    )
    run.log_artifacts(REPORT)


if __name__ == "__main__":
    main()
