"""Ingest: the images of a source become one array, one table and one split.

Everything that another stage may rely on is written here once: pixels in `data/ingested/images.npy`,
who is in which split in `samples.parquet`. Every file of the source ends in exactly one table: it is
a sample, or in `reports/ingest/` a duplicate of one or in quarantine, with the reason. Where
`simulate` plants known problems, the truth lies apart in `data/truth.parquet`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.dataset.base import FROZEN_SPLITS, INGESTED, REPORTS, TRUTH, refuse_own_output
from stages.dataset.catalogue import refuse_planting
from stages.dataset.files import new_file, new_folder, read_table, write_json, write_table
from stages.dataset.ids import number_of
from stages.errors import WinnowError
from stages.images.near_duplicates import Pairs, near_pairs
from stages.ingestion.archives import is_archive
from stages.ingestion.blocks import RowFile, Shape
from stages.ingestion.items import SPLIT_CODE, Items
from stages.ingestion.opening import open_source
from stages.ingestion.resolve import Resolved, resolve
from stages.ingestion.samples import (
    assemble,
    quarantine_table,
    refuse_too_many,
    summarise,
    write_images,
    write_samples,
)
from stages.ingestion.scan import Scan, scan, start_pool
from stages.ingestion.simulate import plant
from stages.ingestion.source import Columns, Source
from stages.ingestion.splits import read_frozen, write_frozen
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.schema import Ingest, Simulate
from stages.workflow.stage import clean_exit, only_writer, require_root, stage

CATALOGUE = Path("data/raw/dvc.yaml")
REPORT = REPORTS / "ingest"
_SETTINGS = ("image_size", "resize", "color", "val_share", "test_share")  # shown on the data card


class _FreezeSplits(argparse.Action):
    """Freezes and ends, as `--help` does: nothing is ingested and params.yaml is not needed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        with clean_exit("ingest"):
            require_root()
            with only_writer("ingest"):
                frozen = freeze_splits()
            print(f"ingest: {frozen} samples are frozen in {FROZEN_SPLITS}")
        parser.exit()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--freeze-splits",
        action=_FreezeSplits,
        nargs=0,
        help=f"write the splits of {INGESTED} to {FROZEN_SPLITS} and do nothing else",
    )


@stage("ingest", _arguments)
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Bring the images of ingest.source to one array, one table and one split."""
    choices = params.ingest
    refuse_own_output(Path(choices.source))
    if params.simulate.enabled:
        refuse_planting(Path(choices.source), CATALOGUE)
    with new_folder(REPORT) as report, new_file(TRUTH) as truth, new_folder(INGESTED) as folder:
        with _scratch(folder) as scratch:
            source, scanned = read_source(choices, scratch)
            with scanned.squares, scanned.thumbs:
                ingested = settle(source, scanned, choices, params.simulate)
                channels = write_base(folder, ingested, scanned)
        write_table(truth, ingested.truth)
        write_report(report, ingested, channels, choices)
    for warning in ingested.warnings:
        print(f"ingest: warning: {warning}", file=sys.stderr)
    _print_summary(ingested.summary)
    run.log_metrics(_figures(ingested.summary))
    run.log_artifacts(REPORT)


@dataclass(frozen=True)
class Ingested:
    """All that is known of an ingested source.

    Attributes
    ----------
    samples : in the order of the images
    truth : `dataset.TRUTH_COLUMNS`; no rows where nothing was planted
    resolved : tables of duplicates, near-duplicates and conflicts
    quarantine : `path`, `reason` (one of `base.REASONS`), `detail`; sorted by path
    summary : plain JSON values; counts of all of the above
    notes, warnings : a line each
    """

    samples: Items
    truth: pd.DataFrame
    resolved: Resolved
    quarantine: pd.DataFrame
    summary: dict[str, Any]
    notes: Sequence[str]
    warnings: Sequence[str]


def read_source(choices: Ingest, scratch: Path) -> tuple[Source, Scan]:
    """Open the source and read everything in it.

    Parameters
    ----------
    choices : the section `ingest` of `params.yaml`
    scratch : an empty folder, for squares and what must be unpacked; needed as long as the scan

    Raises
    ------
    WinnowError
        Where the source as a whole, or too much of it, cannot be used.
    """
    path = Path(choices.source)
    columns = Columns(**choices.columns.model_dump())
    shape = Shape(choices.image_size, choices.color, choices.resize)
    # An archive takes its time to open: the processes that decode it can start meanwhile.
    with start_pool(scratch, shape) if is_archive(path) else nullcontext() as pool:
        source = open_source(path, scratch, format=choices.format, columns=columns, stores=_dvc_cache)
        scanned = scan(source, scratch, shape, pool=pool)
    files = len(scanned.items) + len(scanned.quarantine)
    if not files:
        raise WinnowError(f"ingest.source {choices.source} holds no images: put some there")
    hint = "; paths in a manifest are relative to its folder" if "manifest" in source.kind else ""
    refuse_too_many(scanned.quarantine, files, choices.max_quarantine, choices.source, hint)
    return source, scanned


def _near_pairs(thumbs: RowFile, similarity: float, images: Items) -> Pairs:
    def take(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return thumbs.take(images.place[rows])

    return near_pairs(images.perceptual, images.flat, take, similarity)


def settle(source: Source, scanned: Scan, choices: Ingest, simulate: Simulate) -> Ingested:
    """Decide what becomes of everything that was read; nothing is written.

    Parameters
    ----------
    source, scanned : of `read_source`
    choices, simulate : the sections of `params.yaml`
    """
    similarity = choices.near_duplicates
    resolved = resolve(
        scanned.items,
        read_frozen(FROZEN_SPLITS),
        None if similarity is None else partial(_near_pairs, scanned.thumbs, similarity),
        val_share=choices.val_share,
        test_share=choices.test_share,
        leaked=choices.leaked,
    )
    planter = partial(plant, **simulate.model_dump(exclude={"enabled"})) if simulate.enabled else None
    samples, truth, warnings = assemble(resolved.samples, planter, choices.source)
    refused = [*scanned.quarantine, *resolved.quarantine]
    files = len(scanned.items) + len(scanned.quarantine)
    return Ingested(
        samples=samples,
        truth=truth,
        resolved=resolved,
        quarantine=quarantine_table(refused),
        summary={
            "source": choices.source,
            "kind": source.kind,
            **summarise(samples, resolved, refused, files, truth),
        },
        notes=source.notes,
        warnings=[*resolved.warnings, *warnings],
    )


# --- reading and writing -----------------------------------------------------------------------


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder in the one that is being written, for what is needed meanwhile; gone afterwards."""
    path = folder / "scratch"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_base(folder: Path, ingested: Ingested, scanned: Scan) -> pd.DataFrame:
    """Write what becomes `data/ingested`; the result is `writing.write_images`'s, of the pixels."""
    samples, conflicts = ingested.samples, ingested.resolved.conflicts
    channels = write_images(folder / "images.npy", samples, scanned.squares)
    write_samples(folder / "samples.parquet", samples)
    write_json(folder / "classes.json", samples.classes)
    ids = np.array([number_of(key) for key in conflicts["sample_id"]], np.uint64)
    write_table(folder / "conflicts.parquet", conflicts[np.isin(ids, samples.sample_id)])
    return channels


def write_report(folder: Path, ingested: Ingested, channels: pd.DataFrame, choices: Ingest) -> None:
    """Write the tables of `reports/ingest`, and `summary.json`: all that the data card shows."""
    settings = {name: getattr(choices, name) for name in _SETTINGS}
    told = {"notes": list(ingested.notes), "warnings": list(ingested.warnings)}
    write_json(folder / "summary.json", {**ingested.summary, **settings, **told})
    channels.to_csv(folder / "channels.csv", index=False)
    write_table(folder / "conflicts.parquet", ingested.resolved.conflicts)
    ingested.samples.counts().to_csv(folder / "class_counts.csv", index=False)
    write_table(folder / "quarantine.parquet", ingested.quarantine)
    write_table(folder / "duplicates.parquet", ingested.resolved.duplicates)
    write_table(folder / "near_duplicates.parquet", ingested.resolved.near_duplicates)


def freeze_splits(
    ingested: Path = INGESTED,
    truth: Path = TRUTH,
    report: Path = REPORT,
    target: Path = FROZEN_SPLITS,
) -> int:
    """Write the present splits to `data/splits.csv`, so that new images do not move old ones.

    Rows that `simulate` took away are frozen too, or some would be dealt into the test split; so are
    exact duplicates, any of which may be the one that is left one day; and what was frozen before and
    is not there now stays frozen.

    Returns
    -------
    How many samples are frozen.
    """
    samples = read_table(ingested / "samples.parquet")[["sample_id", "split"]]
    copies = read_table(report / "duplicates.parquet")[["sample_id", "kept_id"]]
    copies = copies.merge(samples.rename(columns={"sample_id": "kept_id"}), on="kept_id")
    rows = pd.concat([samples, read_table(truth)[["sample_id", "split"]], copies[["sample_id", "split"]]])
    before = read_frozen(target)
    ids = np.array([number_of(key) for key in rows["sample_id"]], np.uint64)
    codes = rows["split"].map(SPLIT_CODE).to_numpy(np.int8)
    used = codes != SPLIT_CODE["unlabeled"]  # one in dispute has left its split, but only for now
    with new_file(target) as partial_file:
        return write_frozen(
            partial_file,
            np.concatenate([ids[used], before.sample_id]),
            np.concatenate([codes[used], before.split]),
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


def _print_summary(summary: Mapping[str, Any]) -> None:
    splits = ", ".join(f"{count} {split}" for split, count in summary["splits"].items() if count)
    images = f"{summary['images']} images of {len(summary['classes'])} classes ({splits})"
    print(f"ingest: {summary['kind']}: {images}")
    quarantine = ", ".join(f"{count} {reason}" for reason, count in summary["quarantine"].items())
    if summary["duplicates"] or summary["near_duplicates"] or quarantine:
        print(
            f"ingest: {summary['duplicates']} exact duplicates collapsed; {summary['near_duplicates']} "
            f"near-duplicates kept together; in quarantine: {quarantine or 'none'}"
        )
    if summary["planted"]:
        train, val = summary["planted"]["train"], summary["planted"]["val"]
        print(
            f"ingest: planted {train['wrong_labels']} wrong labels in train and "
            f"{val['wrong_labels']} in val; took {train['removed']} and {val['removed']} images away"
        )
    print(f"ingest: look at {REPORTS / 'pages/ingest/data_card.html'} once `report@ingest` has drawn it")


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    counts = {f"images_{split}": count for split, count in summary["splits"].items()}
    counts |= {name: summary[name] for name in ("files", "duplicates", "near_duplicates", "conflicts")}
    counts["quarantined"] = sum(summary["quarantine"].values())
    return {name: float(count) for name, count in counts.items()}


if __name__ == "__main__":
    main()
