"""Stage `synthesize`: make synthetic images for the rare classes, behind a gate that may refuse them."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset import base as dataset
from stages.dataset.base import Dataset, View
from stages.dataset.delta import ClassTarget, build_delta, quotas, target_sizes
from stages.dataset.files import new_folder, read_array, write_json, write_table
from stages.errors import WinnowError
from stages.synthesis.oversample import Beside, OversamplingConfig, Synthetic, oversample
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import Synthesize as Section
from stages.workflow.stage import stage

REPORT = dataset.REPORTS / "synthesize"
HISTORY_COLUMNS = ["step", "generator_loss", "discriminator_loss", "penalty"]
SCORE_COLUMNS = ["step", "class", "score", "chosen"]
# Outside the outs, which DVC deletes before each run; ignored by git and DVC.
CHECKPOINTS = Path(".winnow/synthesize")
_WITHOUT_NEIGHBOURS = ("random", "none", "gan")
_EXAMPLES = 8  # images of each class and kind, for the pictures
_MOST_CLASSES = 20  # whose measures go to MLflow: all are in quality.json


def synthesize(
    real: View, section: Section, *, beside: Beside, seed: int, device: str, keep_in: Path | None = None
) -> Synthetic:
    """Make images for the classes that need some, as the section of `params.yaml` says.

    Parameters
    ----------
    real : the curated real training images
    section : `synthesize` of `params.yaml`
    beside : validation and test images, embeddings, groups
    seed, device : of all that is trained and drawn
    keep_in : a folder for the checkpoints of the GAN

    Raises
    ------
    WinnowError
        For images that the chosen method cannot make, a class of `per_class` that there is not, or a GAN
        whose training failed.
    """
    from stages.synthesis.gan_trainer import GANConfig, GANConfigError
    from stages.synthesis.gate import GateConfig

    default = ClassTarget(section.to, section.max_factor)
    per_class = {
        name: ClassTarget(target.to, target.max_factor) for name, target in section.per_class.items()
    }
    try:
        targets = target_sizes(real.class_counts, default, real.classes, per_class)
    except WinnowError as error:
        raise WinnowError(f"synthesize.{error}") from error
    recipe = OversamplingConfig(
        method=section.method,
        fallback=section.fallback,
        min_real_per_class=section.min_real_per_class,
        gan=GANConfig(**section.gan.model_dump()),
        gate=GateConfig(**section.gate.model_dump()),
    )
    try:
        return oversample(
            real,
            quotas(real.class_counts, default, real.classes, per_class),
            targets,
            recipe,
            beside=beside,
            seed=seed,
            device=device,  # type: ignore[arg-type]
            keep_in=keep_in,
        )
    except GANConfigError as error:
        raise WinnowError(f"synthesize.gan.{error}") from error


def read_beside(base: Dataset, ledger: pd.DataFrame, real: View, section: Section) -> Beside:
    """Read what the section needs besides the real training images; the splits as they were ingested."""
    rows = pd.Index(base.samples["sample_id"]).get_indexer(pd.Index(real.sample_ids))
    embeddings = None
    samplers = {section.method} | ({section.fallback} if section.method == "gan" else set())
    if section.neighbors_in == "embedding" and not samplers <= set(_WITHOUT_NEIGHBOURS):
        path = dataset.NOISE / "embeddings.npy"
        table: NDArray[np.float32] = read_array(path)
        if len(table) != len(base.samples):
            raise WinnowError(
                f"{path} has {len(table)} rows, {dataset.INGESTED} {len(base.samples)} samples: they are of "
                "different runs; run `dvc repro detect_noise`"
            )
        embeddings = table[rows]
    if section.method != "gan":
        return Beside(embeddings)
    splits = base.samples["split"].to_numpy()
    held_out = {
        name: np.asarray(base.images[base.samples["row"].to_numpy()[splits == name]])
        for name in ("val", "test")
    }
    groups = base.samples["group"].to_numpy(object)[rows]
    return Beside(embeddings, groups, dataset.split_view(base, "val", ledger), held_out)


def synthetic_delta(base: Dataset, real: View, made: Synthetic, weight: float) -> Dataset:
    """Make the delta of the synthetic images.

    Copies and interpolations inherit the weight that source and ledger give their parent. A GAN's
    images do not: they have no parent but a nearest neighbour.
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
    """Count the images of each class: `class`, `real`, `synthetic`, `method` and `decision`."""
    return pd.DataFrame(
        [
            (name, entry.real, entry.added, entry.method, entry.decision)
            for name, entry in made.quality.items()
        ],
        columns=["class", "real", "synthetic", "method", "decision"],
    )


def quality_record(made: Synthetic, section: Section) -> dict[str, Any]:
    """Return the content of `quality.json`: methods, GAN (null where none was trained), each class."""
    return {
        "method": section.method,
        "fallback": section.fallback,
        "neighbors_in": section.neighbors_in,
        "gan": made.gan.to_json() if made.gan is not None else None,
        "classes": {name: entry.to_json() for name, entry in made.quality.items()},
    }


def figures(made: Synthetic) -> dict[str, float]:
    """Return the metrics for MLflow: images by method, decisions, and the gate's measures of each class.

    Of more than twenty classes that were measured, the first twenty.
    """
    metrics = {f"synthetic_{name}": float(made.methods.count(name)) for name in sorted(set(made.methods))}
    metrics["synthetic"] = float(len(made.methods))
    decisions = [entry.decision for entry in made.quality.values()]
    metrics |= {
        f"classes_{name}": float(decisions.count(name)) for name in ("accepted", "reduced", "fallback")
    }
    measured = {name: entry for name, entry in made.quality.items() if entry.candidates}
    for name, entry in list(measured.items())[:_MOST_CLASSES]:
        allowed = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)
        metrics[f"gate_accepted_{allowed}"] = entry.accepted / entry.candidates
        metrics |= {f"gate_{measure}_{allowed}": row["value"] for measure, row in entry.measures.items()}
    return metrics


def curves(made: Synthetic) -> list[dict[str, float]]:
    """Return the GAN's losses by step, and the mean of its snapshots' scores on validation."""
    if made.gan is None:
        return []
    losses = [{f"gan_{key}": value for key, value in row.items()} for row in made.gan.history]
    scores = pd.DataFrame(made.gan.scores, columns=SCORE_COLUMNS).groupby("step")["score"].mean()
    means = [{"gan_step": float(step), "gan_score": float(score)} for step, score in scores.items()]
    return [{"epoch": row.pop("gan_step"), **row} for row in losses + means]


def examples(real: View, made: Synthetic) -> tuple[pd.DataFrame, NDArray[np.uint8]]:
    """Choose what the pictures show next to the synthetic images: real, refused and early generated ones.

    Returns
    -------
    A row an image: its `kind`, `class` and `row` in the images (-1 for real ones, which are in the base).
    `real`: `sample_id`. `refused`: the gate's `check`, and `sample_id` of the nearest real image.
    `progress`: the `step` of the GAN's training, the same latents each time. Then the images, uint8
    M×H×W×C.
    """
    rows: list[dict[str, Any]] = []
    images = [real.images[:0]]
    for label, name in enumerate(real.classes):
        ids = real.sample_ids[np.flatnonzero(real.labels == label)[:_EXAMPLES]]
        rows += [{"kind": "real", "class": name, "sample_id": str(key)} for key in ids]
    for group in made.refused:
        images.append(group.images[:_EXAMPLES])
        row = {"kind": "refused", "class": real.classes[group.label], "check": group.check}
        rows += [{**row, "sample_id": str(real.sample_ids[at])} for at in group.parents[:_EXAMPLES]]
    progress, trained_on = (made.gan.progress, made.gan.trained_on) if made.gan is not None else ({}, [])
    for step, by_class in sorted(progress.items()):
        for name, generated in zip(trained_on, by_class, strict=True):
            images.append(generated)
            rows += [{"kind": "progress", "class": name, "step": step}] * len(generated)
    columns = ["kind", "class", "check", "step", "sample_id"]
    table = pd.DataFrame(rows, columns=columns).fillna({"check": "", "step": -1, "sample_id": ""})
    table = table.astype({name: "int64" if name == "step" else "str" for name in columns})
    in_images = (table["kind"] != "real").to_numpy()
    table["row"] = np.where(in_images, np.cumsum(in_images) - 1, -1)
    return table, np.concatenate(images)


def _write_report(folder: Path, real: View, made: Synthetic, section: Section) -> None:
    write_json(folder / "quality.json", quality_record(made, section))
    counts_table(made).to_csv(folder / "counts.csv", index=False)
    history, scores = (made.gan.history, made.gan.scores) if made.gan is not None else ([], [])
    table = pd.DataFrame(history, columns=HISTORY_COLUMNS).astype({"step": "int64"})
    table.round(6).to_csv(folder / "gan_history.csv", index=False)
    pd.DataFrame(scores, columns=SCORE_COLUMNS).round(6).to_csv(folder / "gan_scores.csv", index=False)
    table, images = examples(real, made)
    write_table(folder / "examples.parquet", table)
    np.save(folder / "examples.npy", images)


def _print_decisions(made: Synthetic) -> None:
    """Print the decision for each class, fallbacks in capitals, and the notes on the GAN's training."""
    for note in made.gan.notes if made.gan is not None else []:
        print(f"synthesize: GAN: {note}")
    for name, entry in made.quality.items():
        mark = "FALLBACK " if entry.decision == "fallback" else ""
        gained = f"{mark}{entry.added} by {entry.method}" if entry.added else "nothing"
        print(f"synthesize: {name}: {gained} ({entry.reason})")


@stage("synthesize")
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Make synthetic images for the rare classes of the curated training split.

    Reads data/ingested, data/curated and data/noise; writes data/synthetic and reports/synthesize.
    """
    section = params.synthesize
    base, ledger = dataset.read_dataset(dataset.INGESTED), dataset.read_ledger()
    real = dataset.split_view(base, "train", ledger)
    beside = read_beside(base, ledger, real, section)
    made = synthesize(
        real, section, beside=beside, seed=params.seed, device=params.device, keep_in=CHECKPOINTS
    )
    # One in the other: neither takes its place before both are written.
    with new_folder(REPORT) as report:
        _write_report(report, real, made, section)
        with new_folder(dataset.SYNTHETIC) as folder:
            dataset.write_dataset(folder, synthetic_delta(base, real, made, section.weight))
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    _print_decisions(made)
    run.log_metrics(figures(made))
    run.log_history(curves(made))
    run.log_artifacts(REPORT)


if __name__ == "__main__":
    main()
