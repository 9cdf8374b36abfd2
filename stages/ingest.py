"""Ingest: the images of a source become one array, one table, one split.

Everything that another stage may rely on is written here once: pixels in `data/ingested/images.npy`,
who is in which split in `samples.parquet`. What could not be used is in `reports/ingest/`, with the
reason. Where `simulate` plants known problems, the truth lies apart in `data/truth.parquet`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from stages.dataset import (
    FROZEN_SPLITS,
    INGESTED,
    REPORTS,
    SAMPLE_COLUMNS,
    TRUTH,
    Split,
    new_file,
    new_folder,
    read_table,
    write_json,
    write_table,
)
from stages.errors import WinnowError
from stages.params import Ingest, Params, Simulate
from stages.runtime import clean_exit, only_writer, stage
from stages.sources.base import Quarantined, Source
from stages.sources.catalogue import refuse_planting
from stages.sources.duplicates import collapse
from stages.sources.opening import open_source
from stages.sources.scan import Scan, scan
from stages.sources.simulate import no_truth, plant
from stages.sources.splits import assign, deal, read_frozen, write_frozen
from stages.tracking import StageRun

CATALOGUE = Path("data/raw/dvc.yaml")
REPORT = REPORTS / "ingest"
_USED = ("train", "val", "test")
_BLOCK = 4096  # rows that are copied at once


@dataclass(frozen=True)
class Ingested:
    """All tables of an ingested source.

    Attributes
    ----------
    samples : `SAMPLE_COLUMNS` and `place`, the row that the scan wrote the pixels to
    classes : class names in index order
    truth : `TRUTH_COLUMNS`; no rows where nothing was planted
    duplicates : `duplicates.DUPLICATE_COLUMNS`
    quarantine : `source`, `reason` (one of `base.REASONS`), `detail`
    summary : plain JSON values; counts of all of the above
    warnings : a line each
    """

    samples: pd.DataFrame
    classes: list[str]
    truth: pd.DataFrame
    duplicates: pd.DataFrame
    quarantine: pd.DataFrame
    summary: dict[str, Any]
    warnings: list[str]


def assemble(
    scanned: Scan, classes: Sequence[str], frozen: Mapping[str, Split], ingest: Ingest, simulate: Simulate
) -> Ingested:
    """Turn what a scan found into samples: duplicates collapsed, splits given, problems planted.

    Parameters
    ----------
    scanned : see `scan.scan`
    classes : the source's class names in index order
    frozen : splits by `sample_id` that people decided
    ingest, simulate : the sections of `params.yaml`

    Raises
    ------
    WinnowError
        Where fewer than two classes are left, or one of them without a training image.
    """
    assigned = assign(scanned.found, frozen)
    collapsed = collapse(scanned.found.assign(split=assigned.splits))
    splits = deal(collapsed.kept, assigned.brought, ingest.val_share, ingest.test_share)
    samples = collapsed.kept.assign(split=collapsed.kept["sample_id"].map(splits))
    quarantine = scanned.quarantine + collapsed.quarantine
    left, warnings = _usable_classes(samples, classes, quarantine, ingest.source)
    truth = no_truth()
    if simulate.enabled:
        planted = plant(samples, left, **simulate.model_dump(exclude={"enabled"}))
        samples, truth = planted.samples, planted.truth
    if assigned.absent:
        warnings.append(
            f"{assigned.absent} rows of {FROZEN_SPLITS} are for samples that are not in the source"
        )
    if assigned.overruled:
        warnings.append(
            f"{assigned.overruled} rows of {FROZEN_SPLITS} name another split than the source brings: "
            "the source's is taken"
        )
    samples = _in_order(samples, left)
    return Ingested(
        samples=samples,
        classes=left,
        truth=truth,
        duplicates=collapsed.duplicates,
        quarantine=_quarantine_table(quarantine),
        summary={
            "images": len(samples),
            "splits": {split: int((samples["split"] == split).sum()) for split in _USED},
            "classes": _counts(samples, left),
            "splits_brought_by_source": sorted(assigned.brought),
            "splits_frozen": assigned.frozen,
            "splits_frozen_absent": assigned.absent,
            "splits_frozen_overruled": assigned.overruled,
            "duplicates": len(collapsed.duplicates),
            "quarantine": dict(sorted(Counter(row.reason for row in quarantine).items())),
            "planted": _planted_counts(truth),
        },
        warnings=warnings,
    )


def _usable_classes(
    samples: pd.DataFrame, classes: Sequence[str], quarantine: Sequence[Quarantined], source: str
) -> tuple[list[str], list[str]]:
    """The classes that have images, and warnings of those that have none or one."""
    if samples.empty:
        first = min(quarantine, key=lambda row: row.source)
        raise WinnowError(
            f"ingest.source {source}: none of its {len(quarantine)} files can be used; "
            f"the first, {first.source}: {first.reason} ({first.detail})"
        )
    counts = samples["label"].value_counts()
    left = [name for name in classes if name in counts]
    if len(left) < 2:
        raise WinnowError(
            f"ingest.source {source} has images of one class only ({left[0]}): a classifier needs two, "
            "each in a folder of its own"
        )
    trained = set(samples.loc[samples["split"] == "train", "label"])
    for name in left:
        if name not in trained:
            raise WinnowError(
                f"class {name!r} has {counts[name]} images in {source}, but none of them in training: "
                f"add one, or move one there (train/ in the source, or {FROZEN_SPLITS})"
            )
    empty = [f"class {name!r} has no usable image and is left out" for name in classes if name not in counts]
    single = [
        f"class {name!r} has one image: it is trained on, never tested" for name in left if counts[name] == 1
    ]
    return left, empty + single


def _in_order(samples: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Rows by class, then id, so that neither names nor order of files move a pixel.

    It is the given label's class: in the order of the true ones a planted error would stick out.
    """
    rank = samples["label"].map({name: index for index, name in enumerate(classes)})
    ordered = samples.assign(rank=rank).sort_values(["rank", "sample_id"], ignore_index=True)
    ordered = ordered.assign(row=np.arange(len(ordered), dtype=np.int64))
    text = ["sample_id", "split", "label", "source"]
    return ordered.astype(dict.fromkeys(text, "str"))[[*SAMPLE_COLUMNS, "place"]]


def _counts(samples: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(samples["label"], samples["split"], strict=True))
    return {name: {split: counts[name, split] for split in _USED} for name in classes}


def _planted_counts(truth: pd.DataFrame) -> dict[str, dict[str, int]] | None:
    if truth.empty:
        return None
    wrong = ~truth["removed"] & (truth["true_label"] != truth["given_label"])
    return {
        split: {
            "removed": int((truth["removed"] & (truth["split"] == split)).sum()),
            "wrong_labels": int((wrong & (truth["split"] == split)).sum()),
        }
        for split in ("train", "val")
    }


def _quarantine_table(rows: Sequence[Quarantined]) -> pd.DataFrame:
    ordered = sorted(rows, key=lambda row: (row.source, row.reason))
    columns = {name: [getattr(row, name) for row in ordered] for name in ("source", "reason", "detail")}
    return pd.DataFrame(columns).astype("str")


# --- reading and writing -----------------------------------------------------------------------


@contextmanager
def _scratch(folder: Path, shape: tuple[int, int, int, int]) -> Iterator[NDArray[np.uint8]]:
    """An array on disk for the squares in the order they are read; gone afterwards."""
    path = folder / "scan.npy"
    try:
        yield open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    finally:
        path.unlink(missing_ok=True)


def write_base(folder: Path, ingested: Ingested, squares: NDArray[np.uint8]) -> None:
    """Write `images.npy`, `samples.parquet` and `classes.json`, a block of rows at a time.

    Parameters
    ----------
    folder : one from `dataset.new_folder`
    ingested : see `assemble`
    squares : uint8 array, M×S×S×C, that `place` points into
    """
    places = ingested.samples["place"].to_numpy()
    shape = (len(places), *squares.shape[1:])
    images = open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, len(places), _BLOCK):
        images[start : start + _BLOCK] = squares[places[start : start + _BLOCK]]
    images.flush()
    write_table(folder / "samples.parquet", ingested.samples[SAMPLE_COLUMNS])
    write_json(folder / "classes.json", ingested.classes)


def write_report(folder: Path, ingested: Ingested, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`, `class_counts.csv`, `quarantine.parquet` and `duplicates.parquet`."""
    write_json(folder / "summary.json", summary)
    counts: dict[str, dict[str, int]] = ingested.summary["classes"]
    rows = [(name, split, count) for name, splits in counts.items() for split, count in splits.items()]
    pd.DataFrame(rows, columns=["class", "split", "count"]).to_csv(folder / "class_counts.csv", index=False)
    write_table(folder / "quarantine.parquet", ingested.quarantine)
    write_table(folder / "duplicates.parquet", ingested.duplicates)


def freeze_splits(ingested: Path = INGESTED, truth: Path = TRUTH, target: Path = FROZEN_SPLITS) -> int:
    """Write the present splits to `data/splits.csv`, so that new images do not move old ones.

    Rows that `simulate` took away are frozen too, or some would be dealt into the test split.

    Returns
    -------
    How many samples are frozen.
    """
    samples = read_table(ingested / "samples.parquet")
    rows = pd.concat([samples[["sample_id", "split"]], read_table(truth)[["sample_id", "split"]]])
    splits = dict(zip(rows["sample_id"], rows["split"], strict=True))
    with new_file(target) as partial:
        write_frozen(partial, splits)
    return len(splits)


class _FreezeSplits(argparse.Action):
    """Freezes and ends, as `--help` does: nothing is ingested and params.yaml is not needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        with clean_exit("ingest"), only_writer("ingest"):
            print(f"ingest: {freeze_splits()} samples are frozen in {FROZEN_SPLITS}")
        parser.exit()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--freeze-splits",
        action=_FreezeSplits,
        nargs=0,
        help=f"write the splits of {INGESTED} to {FROZEN_SPLITS} and do nothing else",
    )


def _dvc_cache() -> Sequence[Path]:
    """DVC's cache: where it cannot link otherwise, the files that it checks out are links into it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(".") as repo:
            return [Path(repo.cache.local_cache_dir)]
    except DvcException:
        return []


def _print_summary(summary: Mapping[str, Any], classes: int) -> None:
    splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items())
    print(f"ingest: {summary['images']} images of {classes} classes ({splits})")
    if summary["duplicates"] or summary["quarantine"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["quarantine"].items()) or "none"
        print(f"ingest: {summary['duplicates']} exact duplicates collapsed; in quarantine: {reasons}")
    if summary["planted"]:
        train, val = summary["planted"]["train"], summary["planted"]["val"]
        print(
            f"ingest: planted {train['wrong_labels']} wrong labels in train and "
            f"{val['wrong_labels']} in val; took {train['removed']} and {val['removed']} images away"
        )


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    splits = {f"images_{split}": float(count) for split, count in summary["splits"].items()}
    quarantined = float(sum(summary["quarantine"].values()))
    return {**splits, "duplicates": float(summary["duplicates"]), "quarantined": quarantined}


def _open(params: Params) -> Source:
    path = Path(params.ingest.source)
    if params.simulate.enabled:
        refuse_planting(path, CATALOGUE)
    source = open_source(path, _dvc_cache)
    if not source.items:
        raise WinnowError(
            f"ingest.source {path} holds no images: a folder for each class with its images is needed"
        )
    return source


@stage("ingest", _arguments)
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Bring the images of ingest.source to one array, one table and one split."""
    source = _open(params)
    frozen = read_frozen(FROZEN_SPLITS)
    size, color = params.ingest.image_size, params.ingest.color
    shape = (len(source.items), size, size, 1 if color == "grey" else 3)
    with new_folder(INGESTED) as folder, new_file(TRUTH) as truth, new_folder(REPORT) as report:
        with _scratch(folder, shape) as squares:
            ingested = assemble(
                scan(source, squares, color), source.classes, frozen, params.ingest, params.simulate
            )
            write_base(folder, ingested, squares)
        summary = {"source": params.ingest.source, "unlabeled_left_out": source.unlabeled, **ingested.summary}
        write_table(truth, ingested.truth)
        write_report(report, ingested, summary)
    if source.unlabeled:
        ingested.warnings.append(
            f"{source.unlabeled} files in unlabeled/ are left out: nothing uses them yet"
        )
    for warning in ingested.warnings:
        print(f"ingest: warning: {warning}", file=sys.stderr)
    _print_summary(summary, len(ingested.classes))
    run.log_metrics(_figures(summary))
    run.log_artifacts(REPORT)


if __name__ == "__main__":
    main()
