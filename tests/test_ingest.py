"""Ingest as a whole: from folders and arrays to tables, and every bad input on the way."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingesting import (
    REPORT,
    change_params,
    class_folders,
    fails,
    outputs,
    picture,
    quarantine,
    run,
    samples,
    summary,
)
from PIL import Image

from stages import ingest
from stages.dataset.base import INGESTED, SAMPLE_COLUMNS, TRUTH, TRUTH_COLUMNS, read_dataset
from stages.dataset.ids import bytes_id, pixel_id
from stages.fetch import fetch

# One folder for all examples; and how long they take to draw says how busy the machine is.
ONE_FOLDER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def configure(workspace: Path) -> Any:
    """Change keys of the workspace's params.yaml; by default its source is `mine`, nothing planted."""
    change_params(ingest__source="mine", simulate__enabled=False)
    return change_params


def test_class_folders_become_the_data_contract(configure: Any) -> None:
    class_folders()
    picture("mine/a/wide.jpg", 999, (20, 30))
    run()
    base = read_dataset(INGESTED)
    assert base.images.shape == (21, 16, 16, 1)
    assert base.images.dtype == np.uint8
    assert base.classes == ["a", "b"]
    table = base.samples
    assert list(table.columns) == SAMPLE_COLUMNS
    assert table["row"].tolist() == list(range(21))
    assert table.sort_values(["label", "sample_id"])["row"].tolist() == list(range(21))
    wide = table[table["source"] == "a/wide.jpg"].iloc[0]
    assert (wide["width"], wide["height"]) == (30, 20)
    assert wide["sample_id"] == bytes_id(Path("mine/a/wide.jpg").read_bytes())
    assert table["split"].value_counts().to_dict() == {"train": 15, "test": 4, "val": 2}
    assert (table["group"] == table["sample_id"]).all()
    assert (table["weight"] == 1.0).all()
    truth = pd.read_parquet(TRUTH)
    assert truth.empty
    assert list(truth.columns) == TRUTH_COLUMNS


def test_each_row_holds_its_own_pixels(configure: Any) -> None:
    configure(ingest__image_size=16, ingest__color="rgb")
    for i in range(6):
        picture(f"mine/{'ab'[i % 2]}/{i}.png", i, (16, 16))
    run()
    base = read_dataset(INGESTED)
    for row, source in zip(base.samples["row"], base.samples["source"], strict=True):
        assert (base.images[row] == np.asarray(Image.open(f"mine/{source}"))).all()


def test_report_counts_every_class_and_split(configure: Any) -> None:
    class_folders()
    run()
    counts = pd.read_csv(REPORT / "class_counts.csv")
    assert list(counts.columns) == ["class", "split", "count"]
    assert counts.groupby("split")["count"].sum().to_dict() == {"train": 14, "val": 2, "test": 4}
    assert summary()["splits"] == {"train": 14, "val": 2, "test": 4, "unlabeled": 0}
    assert summary()["planted"] is None


class _Backwards:
    """`os.scandir` as a file system with another order would list."""

    real = staticmethod(os.scandir)

    def __init__(self, path: Any = ".") -> None:
        with self.real(path) as entries:
            self.entries = list(entries)[::-1]

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self.entries)

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self.entries)


def test_the_order_of_the_listing_does_not_matter(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(classes="bca")
    shutil.copy("mine/a/1.png", "mine/a/copy.png")
    run()
    first = outputs()
    with monkeypatch.context() as patch:
        listdir = os.listdir
        patch.setattr(os, "scandir", _Backwards)
        patch.setattr(os, "listdir", lambda *args: listdir(*args)[::-1])
        run()
    assert outputs() == first


def test_renamed_files_keep_their_pixels_and_splits(configure: Any) -> None:
    class_folders()
    run()
    before = read_dataset(INGESTED)
    pixels = np.array(before.images)
    for i, path in enumerate(sorted(Path("mine/a").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed{i}.png"))
    run()
    after = read_dataset(INGESTED)
    assert (after.images == pixels).all()
    columns = ["sample_id", "split", "label"]
    assert after.samples[columns].equals(before.samples[columns])


def test_bad_files_among_good_ones_go_to_quarantine(configure: Any) -> None:
    configure(ingest__max_quarantine=0.2)
    class_folders()
    jpeg = picture("mine/a/cut.jpg", 5, (64, 64))
    jpeg.write_bytes(jpeg.read_bytes()[:2000])
    Path("mine/b/text.png").write_text("this is no image")
    Path("mine/b/nothing.png").touch()
    run()
    assert quarantine() == {
        "a/cut.jpg": "damaged",
        "b/text.png": "not_an_image",
        "b/nothing.png": "not_an_image",
    }
    assert summary()["quarantine"] == {"damaged": 1, "not_an_image": 2}
    assert len(read_dataset(INGESTED).samples) == 20


def test_duplicates_collapse_and_contradictions_are_set_aside(configure: Any) -> None:
    class_folders()
    shutil.copy("mine/a/1.png", "mine/a/again.png")
    Image.open("mine/a/2.png").save("mine/a/other.bmp")
    shutil.copy("mine/a/3.png", "mine/b/stray.png")
    run()
    assert len(samples()) == 20
    duplicates = pd.read_parquet(REPORT / "duplicates.parquet")
    assert set(duplicates["source"]) & {"a/1.png", "a/again.png"}
    assert len(duplicates) == 2
    assert quarantine() == {"b/stray.png": "conflicting_labels"}
    table = samples()
    (doubtful,) = table[table["source"] == "a/3.png"].to_dict("records")
    assert (doubtful["split"], doubtful["label"]) == ("unlabeled", None) or pd.isna(doubtful["label"])
    claims = pd.read_parquet(INGESTED / "conflicts.parquet")
    assert set(zip(claims["source"], claims["label"], strict=True)) == {
        ("a/3.png", "a"),
        ("b/stray.png", "b"),
    }
    assert set(claims["sample_id"]) == {doubtful["sample_id"]}


def test_splits_of_the_source_are_kept_and_missing_ones_dealt(configure: Any) -> None:
    for i in range(40):
        picture(f"mine/train/{'ab'[i % 2]}/{i}.png", i)
    for i in range(10):
        picture(f"mine/test/{'ab'[i % 2]}/{i}.png", 100 + i)
    shutil.copy("mine/test/a/0.png", "mine/train/a/leak.png")
    run()
    table = samples()
    assert table["split"].value_counts().to_dict() == {"train": 36, "val": 4, "test": 10}
    test = table.loc[table["split"] == "test", "source"]
    assert "leak" not in " ".join(table.loc[table["split"] != "test", "source"])
    assert len(test) == 10


def test_arrays_are_ingested_with_their_split(configure: Any) -> None:
    configure(ingest__image_size=8)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    Path("mine").mkdir()
    split = np.repeat(["train", "val", "test"], [12, 4, 4])
    np.savez(
        "mine/mine.npz", images=images, labels=np.arange(20) % 2, split=split, classes=np.array(["z", "a"])
    )
    run()
    base = read_dataset(INGESTED)
    assert base.classes == ["z", "a"]
    assert base.samples["split"].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}
    for row, sample_id, source in base.samples[["row", "sample_id", "source"]].itertuples(index=False):
        index = int(source.removeprefix("mine.npz#"))
        assert sample_id == pixel_id(images[index])
        assert (base.images[row] == images[index]).all()


def test_frozen_splits_survive_new_images(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    run()
    before = read_dataset(INGESTED).samples.set_index("sample_id")["split"]
    outs = outputs()
    with pytest.raises(SystemExit) as caught:
        ingest.main(["--freeze-splits"])
    assert caught.value.code == 0
    assert outputs() == outs
    lines = Path("data/splits.csv").read_text("utf-8").splitlines()
    assert lines[0] == "sample_id,split"
    assert lines[1:] == sorted(f"{key},{split}" for key, split in before.items())

    for i in range(30):
        picture(f"mine/a/new{i}.png", 5000 + i)
    Path("mine/b/0.png").unlink()
    run()
    after = read_dataset(INGESTED).samples.set_index("sample_id")["split"]
    common = before.index.intersection(after.index)
    assert len(common) == 19
    assert after[common].equals(before[common])
    assert "1 rows of the frozen splits are for samples that are not in the source" in capsys.readouterr().err


def test_freezing_before_anything_is_ingested(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("data/splits.csv").read_bytes()
    with pytest.raises(SystemExit) as caught:
        ingest.main(["--freeze-splits"])
    assert caught.value.code == 2
    assert "dvc repro" in capsys.readouterr().err
    assert Path("data/splits.csv").read_bytes() == before


@pytest.fixture
def digits(configure: Any, workspace: Path) -> Any:
    """The catalogue's digits in the workspace, with problems to plant."""
    (workspace / "data/raw").mkdir()
    shutil.copy(ROOT / "data/raw/dvc.yaml", workspace / "data/raw/dvc.yaml")
    fetch("digits")
    configure(ingest__source="data/raw/digits", simulate__enabled=True)
    return configure


def test_planted_problems_and_their_truth(digits: Any) -> None:
    digits(simulate__label_noise=0.2, simulate__imbalance=20, simulate__max_per_class=120)
    run()
    base, truth = read_dataset(INGESTED), pd.read_parquet(TRUTH).set_index("sample_id")
    table = base.samples.set_index("sample_id")
    assert not table.index.intersection(truth.index[truth["removed"]]).size
    kept = truth[~truth["removed"]]
    assert table.loc[kept.index, "label"].equals(kept["given_label"].rename("label"))
    assert set(kept.index) == set(table.index[table["split"] != "test"])
    tail = kept[kept["split"] == "train"]["true_label"].value_counts()
    assert (tail.max(), tail.min()) == (120, 6)
    wrong = kept[kept["true_label"] != kept["given_label"]]
    for split, count in wrong["split"].value_counts().items():
        assert count == round(0.2 * (kept["split"] == split).sum())
        assert summary()["planted"][split]["wrong_labels"] == count
    test = table[table["split"] == "test"]
    assert (test["label"] == test["source"].str.split("/").str[0]).all()


def test_planting_leaves_test_as_it_is_and_repeats(digits: Any) -> None:
    run()
    first = outputs()
    test = read_dataset(INGESTED).samples.query("split == 'test'")["sample_id"].tolist()
    run()
    assert outputs() == first
    digits(simulate__seed=1)
    run()
    assert outputs() != first
    assert read_dataset(INGESTED).samples.query("split == 'test'")["sample_id"].tolist() == test


def test_freezing_covers_what_was_taken_away(digits: Any) -> None:
    run()
    first = outputs()
    with pytest.raises(SystemExit):
        ingest.main(["--freeze-splits"])
    run()
    again = outputs()
    changed = {path for path in first if first[path] != again[path]}
    assert changed == {"reports/ingest/summary.json"}  # which says that they are frozen now


# --- bad input ----------------------------------------------------------------------------------


def test_a_source_that_is_not_there(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ingest.source mine is not there" in fails(capsys)


@pytest.mark.parametrize("folders", [[], ["a", "b"], ["train/a", "test/a"]])
def test_an_empty_source(configure: Any, capsys: pytest.CaptureFixture[str], folders: list[str]) -> None:
    Path("mine").mkdir()
    for folder in folders:
        Path("mine", folder).mkdir(parents=True)
    assert "ingest.source mine holds no images" in fails(capsys)


def test_a_source_of_unusable_files_only(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(count=0)
    for name in ("a", "b"):
        Path("mine", name).mkdir(parents=True)
        Path("mine", name, "1.png").write_text("words")
    line = fails(capsys)
    assert "none of its 2 files can be used" in line
    assert "most often not_an_image (2), such as a/1.png" in line


def test_a_single_class(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(classes="a")
    Path("mine/b").mkdir()
    assert "images of one class only (a)" in fails(capsys)


def test_a_class_with_one_image_is_trained_on(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    picture("mine/rare/1.png", 777)
    run()
    table = samples()
    assert table.loc[table["label"] == "rare", "split"].tolist() == ["train"]
    assert "class 'rare' has one image" in capsys.readouterr().err


def test_a_class_folder_without_images_is_said(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    Path("mine/empty").mkdir()
    run()
    assert read_dataset(INGESTED).classes == ["a", "b"]
    assert "class 'empty' has no usable image" in capsys.readouterr().err


def test_a_class_that_is_only_in_test(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders("mine/train")
    picture("mine/test/c/1.png", 777)
    assert "class 'c' has 1 images in mine, but none of them in training" in fails(capsys)


def test_planting_in_ones_own_data_is_refused(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    configure(simulate__enabled=True)
    line = fails(capsys)
    assert "simulate.enabled = True" in line
    assert "set simulate.enabled to false" in line


def test_unlabeled_images_are_samples_of_their_own_split(configure: Any) -> None:
    class_folders()
    picture("mine/unlabeled/1.png", 777)
    run()
    table = samples()
    assert table["split"].value_counts().to_dict()["unlabeled"] == 1
    assert table.iloc[-1]["source"] == "unlabeled/1.png"
    assert pd.isna(table.iloc[-1]["label"])
    assert read_dataset(INGESTED).classes == ["a", "b"]


def test_a_failed_run_leaves_the_last_good_one(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    run()
    before = outputs()
    Path("data/splits.csv").write_text("sample_id,split\nnonsense,train\n")
    assert "data/splits.csv, line 2" in fails(capsys)
    shutil.rmtree("mine/b")
    Path("data/splits.csv").write_text("sample_id,split\n")
    assert "one class only" in fails(capsys)
    assert outputs() == before


@pytest.mark.parametrize("source", ["data/ingested", ".", "data", "models/train", "reports"])
def test_a_source_that_the_pipeline_writes_itself_is_refused(
    configure: Any, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    Path(source).mkdir(parents=True, exist_ok=True)
    keep = picture("data/ingested/a/1.png", 1)
    configure(ingest__source=source)
    assert "into a folder of their own, such as data/raw/mine" in fails(capsys)
    assert keep.is_file()


def weighted(weights: list[float]) -> None:
    class_folders(count=10)
    rows = [(f"{name}/{i}.png", name, weights["ab".index(name)]) for name in "ab" for i in range(10)]
    pd.DataFrame(rows, columns=["path", "label", "weight"]).to_csv("mine/labels.csv", index=False)


def test_weights_that_leave_nothing_to_learn(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    weighted([0, 0])
    assert "every training image has weight 0" in fails(capsys)
    weighted([0, 2.5])
    run()
    assert "class 'a' has weight 0 in training" in capsys.readouterr().err
    assert samples().groupby("label")["weight"].first().to_dict() == {"a": 0.0, "b": 2.5}
    weighted([1, 1e7])
    configure(ingest__max_quarantine=1.0)
    assert "images of one class only (a)" in fails(capsys)


def test_a_manifest_with_paths_of_another_folder(configure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(count=3)
    Path("mine/labels.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    assert "paths in a manifest are relative to its folder" in fails(capsys)


def test_a_full_disk_is_said_in_one_line(
    configure: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ingest, "write_images", full)
    assert "data/ingested cannot be written: No space left on device" in fails(capsys)


def encoded(kind: str, mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(7).integers(0, 256, (9, 11, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


SOUND = [
    encoded("PNG", "RGBA"),
    encoded("PNG", "P"),
    encoded("PNG", "1"),
    encoded("JPEG", "RGB"),
    encoded("JPEG", "L", progressive=True),
    encoded("JPEG", "CMYK"),
    encoded("WEBP", "RGB"),
    encoded("BMP", "RGB"),
    encoded("TIFF", "RGB", compression="tiff_lzw"),
    encoded("GIF", "P"),
]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Any bytes, or a sound image with a few of its bytes changed, cut off or added."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    content = bytearray(draw(st.sampled_from(SOUND)))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6)):
        content[place % len(content)] = value
    return bytes(content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=20)))


@settings(max_examples=25, deadline=None, suppress_health_check=ONE_FOLDER)
@given(contents=st.lists(files(), min_size=1, max_size=30))
def test_any_bytes_are_a_sample_a_copy_of_one_or_in_quarantine(configure: Any, contents: list[bytes]) -> None:
    configure(ingest__max_quarantine=1.0)
    shutil.rmtree("mine", ignore_errors=True)
    class_folders(count=3)
    for i, content in enumerate(contents):
        Path(f"mine/a/any{i}.jpg").write_bytes(content)
    run()
    copies = pd.read_parquet(REPORT / "duplicates.parquet")["source"]
    told = [*samples()["source"], *copies, *quarantine()]
    assert sorted(told) == sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.*"))
