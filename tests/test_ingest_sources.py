"""The same images in every kind of source are the same dataset."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import change_params, fails, noise, run, samples, summary
from PIL import Image

from stages import report
from stages.dataset.base import INGESTED, read_dataset, split_view

CLASSES = ["cat", "dog"]
SPLITS = {"train": 14, "val": 4, "test": 6}
ROWS = [
    (split, CLASSES[i % 2], 1000 * number + i)
    for number, (split, count) in enumerate(SPLITS.items())
    for i in range(count)
]
IMAGES = np.stack([noise(seed, (16, 16)) for _, _, seed in ROWS])


@pytest.fixture(autouse=True)
def place(workspace: Path) -> Path:
    change_params(ingest__source="mine", simulate__enabled=False, ingest__image_size=16, ingest__color="rgb")
    Path("mine").mkdir()
    return workspace


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def codes(name: str) -> np.ndarray:
    return np.array([CLASSES.index(label) for split, label, _ in ROWS if split == name])


def of(name: str) -> np.ndarray:
    return IMAGES[[split == name for split, _, _ in ROWS]]


# --- each writes the images to mine/ -------------------------------------------------------------


def split_folders(root: str = "mine") -> None:
    for (split, label, seed), image in zip(ROWS, IMAGES, strict=True):
        path = Path(root, split, label, f"{seed}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


def manifest(root: str = "mine", write: Callable[[pd.DataFrame, Path], None] | None = None) -> None:
    rows = []
    for (split, label, seed), image in zip(ROWS, IMAGES, strict=True):
        path = Path(root, "pictures", f"{seed}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
        rows.append((f"pictures/{seed}.png", label, split))
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    if write is None:
        table.to_csv(Path(root, "labels.csv"), index=False)
    else:
        write(table, Path(root))


def semicolons_with_bom(table: pd.DataFrame, root: Path) -> None:
    text = table.to_csv(index=False, sep=";", lineterminator="\r\n")
    (root / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())


def as_parquet(table: pd.DataFrame, root: Path) -> None:
    table.to_parquet(root / "labels.parquet", index=False)


def npz() -> None:
    np.savez_compressed(
        "mine/mine.npz",
        images=IMAGES,
        labels=np.array([CLASSES.index(label) for _, label, _ in ROWS]),
        split=np.array([split for split, _, _ in ROWS]),
        classes=np.array(CLASSES),
    )


def keras_npz() -> None:
    parts = {f"x_{name}": of(name) for name in SPLITS} | {f"y_{name}": codes(name) for name in SPLITS}
    np.savez("mine/mine.npz", **parts)


def npy_pairs() -> None:
    for name in SPLITS:
        np.save(f"mine/{name}_images.npy", of(name))
        np.save(f"mine/{name}_labels.npy", np.array(CLASSES)[codes(name)])


def hugging_face() -> None:
    features = '{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
    Path("mine/data").mkdir()
    for name in SPLITS:
        cells = [{"bytes": png(image), "path": None} for image in of(name)]
        struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(cells, struct_type), "label": pa.array(codes(name))})
        table = table.replace_schema_metadata({"huggingface": features})
        file = "validation" if name == "val" else name
        pq.write_table(table, f"mine/data/{file}-00000-of-00001.parquet")


def zipped() -> None:
    split_folders("unpacked/photos")
    with zipfile.ZipFile("mine/photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path("unpacked").rglob("*.png")):
            archive.write(path, path.relative_to("unpacked"))
    shutil.rmtree("unpacked")


def tarred(make: Callable[[str], None] = split_folders) -> None:
    make("unpacked/photos")
    with tarfile.open("mine/photos.tar.gz", "w:gz") as archive:
        archive.add("unpacked/photos", "photos")
    shutil.rmtree("unpacked")


def tarred_manifest() -> None:
    tarred(manifest)


def zipped_arrays() -> None:
    npy_pairs()
    with zipfile.ZipFile("arrays.zip", "w") as archive:
        for path in sorted(Path("mine").iterdir()):
            archive.write(path, path.name)
            path.unlink()
    Path("arrays.zip").rename("mine/arrays.zip")


MAKERS = {
    "split folders": split_folders,
    "manifest": manifest,
    "manifest of semicolons": lambda: manifest(write=semicolons_with_bom),
    "manifest in Parquet": lambda: manifest(write=as_parquet),
    "npz": npz,
    "Keras npz": keras_npz,
    "npy pairs": npy_pairs,
    "Hugging Face": hugging_face,
    "zip": zipped,
    "tar.gz": tarred,
    "tar.gz with a manifest": tarred_manifest,
    "zip with arrays": zipped_arrays,
}
FORMATS = {
    "manifest": "manifest",
    "npz": "arrays",
    "npy pairs": "arrays",
    "Hugging Face": "huggingface",
    "tar.gz": "folders",
}


def pixels_by_split() -> dict[tuple[str, int], set[bytes]]:
    base = read_dataset(INGESTED)
    found: dict[tuple[str, int], set[bytes]] = {}
    for row in base.samples.itertuples():
        code = base.classes.index(row.label)
        found.setdefault((row.split, code), set()).add(base.images[row.row].tobytes())
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_every_source_gives_the_same_images_labels_and_splits(kind: str) -> None:
    MAKERS[kind]()
    run()
    wanted: dict[tuple[str, int], set[bytes]] = {}
    for (split, label, _), image in zip(ROWS, IMAGES, strict=True):
        wanted.setdefault((split, CLASSES.index(label)), set()).add(image.tobytes())
    assert pixels_by_split() == wanted
    assert summary()["quarantine"] == {}
    assert summary()["splits_brought_by_source"] == ["test", "train", "val"]


@pytest.mark.parametrize(("kind", "format"), FORMATS.items())
def test_a_format_that_is_asked_for_is_what_auto_finds(kind: str, format: str) -> None:
    MAKERS[kind]()
    change_params(ingest__format=format)
    run()
    assert summary()["images"] == len(ROWS)


@pytest.mark.parametrize("format", ["manifest", "huggingface", "arrays", "idx"])
def test_a_format_that_is_not_there_is_said(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    split_folders()
    change_params(ingest__format=format)
    line = fails(capsys)
    assert f"ingest.format = '{format}'" in line
    assert "is needed" in line


def test_an_archive_gives_the_ids_and_names_of_its_folder() -> None:
    split_folders()
    run()
    columns = ["sample_id", "split", "label", "source"]
    folder = samples()[columns]
    shutil.rmtree("mine")
    Path("mine").mkdir()
    tarred()
    run()
    assert samples()[columns].equals(folder)


def test_mnists_own_files() -> None:
    for stem, name in (("train", "train"), ("t10k", "test")):
        images, labels = of(name)[..., 0], codes(name).astype(np.uint8)
        header = struct.pack(">IIII", 0x0803, *images.shape)
        with gzip.open(f"mine/{stem}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        with gzip.open(f"mine/{stem}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 0x0801, len(labels)) + labels.tobytes())
    change_params(ingest__color="grey")
    run()
    assert summary()["splits"] == {"train": 12, "val": 2, "test": 6, "unlabeled": 0}
    assert read_dataset(INGESTED).classes == ["0", "1"]
    images = {image.tobytes() for image in read_dataset(INGESTED).images}
    assert images == {image[..., 0].tobytes() for name in ("train", "test") for image in of(name)}


def test_a_manifest_brings_groups_weights_and_images_without_a_label() -> None:
    manifest(write=_with_groups)
    change_params(ingest__columns__group="patient", ingest__columns__weight="trust")
    run()
    table = samples().set_index(samples()["source"].str.extract(r"(\d+)", expand=False).astype(int))
    assert table["weight"].to_dict() == {seed: (0.5 if seed % 2 else 1.0) for _, _, seed in ROWS}
    unlabeled = table[table["split"] == "unlabeled"]
    assert sorted(unlabeled.index) == [0, 1, 2, 3]
    assert unlabeled["label"].isna().all()
    groups = table.groupby(table.index // 4)["group"].nunique()
    assert (groups == 1).all()
    splits = table[table["split"] != "unlabeled"].groupby("group")["split"].nunique()
    assert (splits == 1).all()
    assert {"train", "test"} < set(table["split"])


def _with_groups(table: pd.DataFrame, root: Path) -> None:
    seeds = table["path"].str.extract(r"(\d+)", expand=False).astype(int)
    table = table.drop(columns="split").assign(
        patient=[f"p{seed // 4}" for seed in seeds], trust=[0.5 if seed % 2 else 1.0 for seed in seeds]
    )
    table.loc[seeds < 4, "label"] = None
    table.to_csv(root / "labels.csv", index=False)


def test_a_second_column_of_labels_is_read_where_it_is_named() -> None:
    manifest(write=_with_fabrics)
    run()
    assert "second_label" not in samples().columns
    change_params(ingest__columns__second_label="fabric")
    run()
    table = samples()
    seeds = table["source"].str.extract(r"(\d+)", expand=False).astype(int)
    assert table["second_label"].isna().tolist() == (seeds < 4).tolist()
    assert set(table["second_label"].dropna()) == {"silk", "wool"}
    view = split_view(read_dataset(INGESTED), "train")
    known = table[table["split"] == "train"]["second_label"]
    names = [view.second_classes[code] if code >= 0 else None for code in view.second_labels]
    assert names == known.astype(object).where(known.notna(), None).tolist()


def _with_fabrics(table: pd.DataFrame, root: Path) -> None:
    seeds = table["path"].str.extract(r"(\d+)", expand=False).astype(int)
    fabrics = [None if seed < 4 else "wool" if seed % 2 else "silk" for seed in seeds]
    table.assign(fabric=fabrics).to_csv(root / "labels.csv", index=False)


def test_a_second_column_needs_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    split_folders()
    change_params(ingest__columns__second_label="fabric")
    line = fails(capsys)
    assert "ingest.columns.second_label = 'fabric', but ingest.source" in line
    assert "bring a manifest, or set it to null" in line


def test_a_group_column_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    manifest()
    change_params(ingest__columns__group="patient")
    line = fails(capsys)
    assert "patient" in line
    assert "path, label, split" in line


@pytest.mark.parametrize("name", ["labels.csv", "train_images.npy"])
def test_one_file_of_several_is_no_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest()
    npy_pairs()
    change_params(ingest__source=f"mine/{name}")
    assert "name its folder (mine), so that DVC watches all of them" in fails(capsys)


@pytest.mark.parametrize(("resize", "corner"), [("crop", 255), ("pad", 0), ("stretch", 255)])
def test_what_is_not_square_is_resized_as_asked(resize: str, corner: int, place: Path) -> None:
    for label in CLASSES:
        for i in range(4):
            image = np.full((20, 40, 3), 255, np.uint8)
            image[5:15, 15:25] = noise(i + 10 * CLASSES.index(label), (10, 10))
            path = Path("mine", label, f"{i}.png")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
    change_params(ingest__resize=resize)
    run()
    assert (read_dataset(INGESTED).images[:, 0, 0] == corner).all()


def test_everything_is_accounted_for_once(place: Path) -> None:
    split_folders()
    shutil.copy("mine/train/cat/0.png", "mine/train/cat/copy.png")
    shutil.copy("mine/train/cat/2.png", "mine/train/dog/stray.png")
    Path("mine/train/dog/empty.png").touch()
    Image.fromarray(IMAGES[-1]).save("mine/train/dog/leak.jpg", quality=95)
    run()
    duplicates = pd.read_parquet("reports/ingest/duplicates.parquet")["source"]
    refused = pd.read_parquet("reports/ingest/quarantine.parquet")
    files = [path.relative_to("mine").as_posix() for path in Path("mine").rglob("*.*")]
    assert sorted([*samples()["source"], *duplicates, *refused["path"]]) == sorted(files)
    assert dict(zip(refused["path"], refused["reason"], strict=True)) == {
        "train/dog/empty.png": "not_an_image",
        "train/dog/leak.jpg": "leakage",
        "train/dog/stray.png": "conflicting_labels",
    }
    assert summary()["files"] == len(files)


def test_the_card_and_mlflow_get_the_counts(place: Path) -> None:
    split_folders()
    run()
    report.main(["ingest"])
    page = Path("reports/pages/ingest/data_card.html").read_text("utf-8")
    assert "class folders with" in page
    for label in CLASSES:
        assert label in page
    assert Path("reports/pages/ingest/samples.png").is_file()
    assert "<script" not in page


def test_a_changed_kind_of_any_is_not_needed(place: Path) -> None:
    """Frozen splits refer to ids: the same files in another container keep them."""
    split_folders()
    run()
    before: dict[str, Any] = dict(samples()[["sample_id", "split"]].itertuples(index=False))
    shutil.rmtree("mine")
    Path("mine").mkdir()
    hugging_face()
    run()
    assert dict(samples()[["sample_id", "split"]].itertuples(index=False)) == before
