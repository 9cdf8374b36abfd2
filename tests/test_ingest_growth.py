"""A source that grows: frozen splits hold, and nothing near to a test image slips into training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ingesting import REPORT, change_params, quarantine, run, samples, split_of, summary
from PIL import Image, ImageEnhance, ImageFilter

from stages import ingest

CLASSES = ["cat", "dog", "fox"]
OLD = 300


def scene(seed: int) -> Image.Image:
    """A picture with large and small structure, unlike any other: what photos are to a hash."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3)).astype(np.uint8)).resize((64, 64)), float)
        for n in (4, 8, 16)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def save(image: Image.Image, path: str, **options: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def grown(workspace: Path) -> Path:
    """Three classes of scenes, ingested, their splits frozen."""
    change_params(ingest__source="mine", simulate__enabled=False, ingest__image_size=32, ingest__color="rgb")
    for i in range(OLD):
        save(scene(i), f"mine/{CLASSES[i % 3]}/{i}.png")
    run()
    with pytest.raises(SystemExit) as caught:
        ingest.main(["--freeze-splits"])
    assert caught.value.code == 0
    return workspace


def source_of(split: str) -> list[str]:
    table = samples()
    return sorted(table.loc[table["split"] == split, "source"])


def near_copy(source: str, number: int) -> Image.Image:
    """The same picture once more: smaller, brighter, as a poor JPEG."""
    with Image.open(f"mine/{source}") as image:
        brighter = ImageEnhance.Brightness(image).enhance(1.0 + 0.02 * (number % 4))
    return brighter.resize((56, 56), Image.Resampling.BICUBIC)


def test_old_samples_stay_and_near_duplicates_follow_them(grown: Path) -> None:
    before = split_of()
    assert len(before) == OLD
    copied = [*source_of("test")[:2], *source_of("val")[:1], *source_of("train")[:1]]
    for number, source in enumerate(copied):
        save(near_copy(source, number), f"mine/{Path(source).parent}/near{number}.jpg", quality=80)
    for i in range(3):
        save(scene(10_000 + i), f"mine/{CLASSES[i]}/new{i}.png")
    run()
    after = split_of()
    assert {key: after[key] for key in before} == before
    assert len(after) == OLD + 7

    table = samples().set_index("source")
    for number, source in enumerate(copied):
        twin = table.loc[f"{Path(source).parent}/near{number}.jpg"]
        assert (twin["split"], twin["group"]) == (table.at[source, "split"], table.at[source, "group"])
    splits_of_groups = samples().groupby("group")["split"].nunique()
    assert (splits_of_groups == 1).all()
    near = pd.read_parquet(REPORT / "near_duplicates.parquet")
    assert set(near["source"]) == {*copied, *(f"{Path(s).parent}/near{n}.jpg" for n, s in enumerate(copied))}
    assert summary()["splits_frozen"] == OLD


def test_a_new_image_that_bridges_two_splits_is_left_out(grown: Path) -> None:
    """Over a group: shot by the same camera as one of each split."""
    table = samples()
    rows = [(row.source, row.label, row.sample_id) for row in table.itertuples()]
    held = {"train": source_of("train")[0], "test": source_of("test")[0]}
    save(scene(20_000), "mine/cat/bridge.png")
    manifest = pd.DataFrame(
        [row[:2] for row in rows] + [("cat/bridge.png", "cat")], columns=["path", "label"]
    )
    manifest["group"] = ["camera 1" if path == "cat/bridge.png" else "" for path in manifest["path"]]
    near = near_copy(held["test"], 0)
    save(near, "mine/cat/near.jpg", quality=85)
    manifest.loc[len(manifest)] = ["cat/near.jpg", "cat", "camera 1"]
    manifest.loc[manifest["path"] == held["train"], "group"] = "camera 1"
    manifest.to_csv("mine/labels.csv", index=False)
    before = split_of()
    run()
    assert quarantine()["cat/near.jpg"] == "bridges_splits"
    after = split_of()
    assert {key: after[key] for key in before} == before
    detail = pd.read_parquet(REPORT / "quarantine.parquet").set_index("path").at["cat/near.jpg", "detail"]
    assert held["train"] in detail
    assert held["test"] in detail


def test_another_image_size_keeps_every_id_and_split(grown: Path) -> None:
    before = split_of()
    Path("data/splits.csv").write_text("sample_id,split\n")
    change_params(ingest__image_size=16, ingest__color="grey", ingest__resize="pad")
    run()
    assert split_of() == before


def test_growth_without_frozen_splits_keeps_shares(grown: Path) -> None:
    """Many new images: they are dealt so that each class keeps its shares, old ones staying put."""
    before = split_of()
    for i in range(60):
        save(scene(30_000 + i), f"mine/cat/late{i}.png")
    run()
    after = split_of()
    assert {key: after[key] for key in before} == before
    counts = samples().groupby(["label", "split"]).size().unstack()
    assert counts.loc["cat"].to_dict() == {"train": 112, "val": 16, "test": 32}
    assert counts.loc["dog"].to_dict() == {"train": 70, "val": 10, "test": 20}


def test_copies_in_a_ready_made_training_split_are_left_out_or_kept(workspace: Path) -> None:
    change_params(ingest__source="mine", simulate__enabled=False, ingest__image_size=32, ingest__color="rgb")
    for i, (split, label) in enumerate(itertools.product(["train"] * 6 + ["test"] * 2, CLASSES)):
        save(scene(i), f"mine/{split}/{label}/{i}.png")
    leaked = source_of_files("mine/test")[0]
    with Image.open(leaked) as image:
        save(image.filter(ImageFilter.GaussianBlur(0.4)), "mine/train/cat/leak.jpg", quality=85)
    run()
    assert quarantine() == {"train/cat/leak.jpg": "leakage"}
    table = samples()
    assert (table["split"] == "test").sum() == 6
    change_params(ingest__leaked="keep")
    run()
    assert quarantine() == {}
    kept = samples().set_index("source")
    assert kept.at["train/cat/leak.jpg", "split"] in ("train", "val")
    assert (kept["split"] == "test").sum() == 6
    change_params(ingest__leaked="leave_out", ingest__near_duplicates=None)
    run()
    assert quarantine() == {}


def source_of_files(folder: str) -> list[Path]:
    return sorted(Path(folder).rglob("*.png"))


def test_a_frozen_sample_in_dispute_remembers_its_split(
    grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source, *_) = source_of("test")
    other = next(label for label in CLASSES if not source.startswith(label))
    Path(f"mine/{other}/stray.png").write_bytes(Path("mine", source).read_bytes())
    run()
    table = samples().set_index("source")
    disputed = table[table["split"] == "unlabeled"]
    assert len(disputed) == 1
    claims = pd.read_parquet("data/ingested/conflicts.parquet")
    assert set(claims["sample_id"]) == set(disputed["sample_id"])
    assert set(claims["split"]) == {"test"}
    assert "1 frozen samples are among them and have left their split" in capsys.readouterr().err
    assert summary()["splits_frozen"] == OLD - 1
    before = Path("data/splits.csv").read_text()
    with pytest.raises(SystemExit):
        ingest.main(["--freeze-splits"])
    assert Path("data/splits.csv").read_text() == before  # it is in test, but for now


def test_deleting_the_other_copy_does_not_undo_a_freeze(grown: Path) -> None:
    for source in samples()["source"]:
        with Image.open(f"mine/{source}") as image:
            image.save(f"mine/{source.removesuffix('.png')}.bmp")
    run()
    assert summary()["duplicates"] == OLD
    with pytest.raises(SystemExit):
        ingest.main(["--freeze-splits"])
    table = samples()
    stem = table["source"].str.rsplit(".", n=1).str[0]
    before = dict(zip(stem, table["split"], strict=True))
    for source in table["source"]:
        Path("mine", source).unlink()
    run()
    table = samples()
    assert dict(zip(table["source"].str.rsplit(".", n=1).str[0], table["split"], strict=True)) == before


def test_a_new_test_folder_does_not_dissolve_what_is_frozen(workspace: Path) -> None:
    change_params(ingest__source="mine", simulate__enabled=False, ingest__image_size=32, ingest__color="rgb")
    for i in range(60):
        save(scene(i), f"mine/{'val' if i < 12 else 'train'}/{CLASSES[i % 3]}/{i}.png")
    run()
    with pytest.raises(SystemExit):
        ingest.main(["--freeze-splits"])
    before = split_of()
    assert set(before.values()) == {"train", "val", "test"}
    save(scene(1000), "mine/test/cat/1000.png")
    run()
    after = split_of()
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 1
