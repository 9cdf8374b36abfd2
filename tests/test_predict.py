import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import predict as stage
from stages.ingestion.trees import FolderTree
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec, Preprocessing
from stages.learning.prediction import predict
from stages.learning.store import save_model

SPEC = ModelSpec(
    "small_cnn", ["a", "b"], (16, 16, 3), [0.4] * 3, [0.3] * 3, preprocessing=Preprocessing("crop", "rgb")
)


def picture(path: Path, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model, no repository around it, and no tracking."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "finetune").mkdir(parents=True)
    save_model(tmp_path / "models" / "finetune", build_model(SPEC, seed=1))
    return tmp_path


def run(*arguments: str) -> pd.DataFrame:
    stage.main(list(arguments))
    return pd.read_csv("predictions.csv", keep_default_na=False, na_values={"confidence": [""]})


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        stage.main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_file_has_a_row_and_nothing_else_is_written(place: Path, capsys: pytest.CaptureFixture[str]):
    names = ["9.png", "deep/er/1.png", "deep/2.png", "ö, ü.png"]
    pixels = [picture(place / "mine" / name, seed) for seed, name in enumerate(names)]
    (place / "mine" / "deep" / "notes.txt").write_text("no image")
    (place / "mine" / "empty.png").touch()
    (place / "mine" / ".hidden.png").write_bytes(b"")
    table = run("mine", "--batch-size", "2")
    assert list(table["file"]) == [
        "9.png", "deep/2.png", "deep/er/1.png", "deep/notes.txt", "empty.png", "ö, ü.png"
    ]  # fmt: skip
    assert list(table.columns) == ["file", "label", "confidence", "p_a", "p_b", "error"]
    expected, _ = predict(build_model(SPEC, seed=1), np.stack(pixels), "cpu")
    rows = table.set_index("file").loc[names]
    np.testing.assert_allclose(rows[["p_a", "p_b"]].astype(float), expected, atol=1e-5)
    assert list(rows["label"]) == ["ab"[best] for best in expected.argmax(1)]
    np.testing.assert_allclose(rows["confidence"], expected.max(1), atol=1e-5)
    bad = table[table["error"] != ""].set_index("file")
    assert bad["error"].to_dict() == {
        "deep/notes.txt": "not_an_image: by its content none of "
        + bad["error"].iloc[0].partition("none of ")[2],
        "empty.png": "not_an_image: an empty file",
    }
    assert set(bad["label"]) == {""}
    assert "predict: predictions.csv: 4 images; 2 files could not be read" in capsys.readouterr().out
    assert sorted(path.name for path in place.iterdir()) == ["mine", "models", "predictions.csv"]


def test_nothing_outside_the_folder_is_read(place: Path):
    picture(place / "secret" / "1.png", 0)
    picture(place / "mine" / "1.png", 1)
    (place / "mine" / "out.png").symlink_to("../secret/1.png")
    (place / "mine" / "folder").symlink_to("../secret")
    (place / "mine" / "in.png").symlink_to("1.png")
    table = run("mine").set_index("file")
    assert set(table.index) == {"1.png", "in.png", "out.png", "folder"}
    assert table.loc["out.png", "error"].startswith("outside_source")
    assert table.loc["folder", "error"] != ""
    assert table.loc["in.png", "p_a"] == table.loc["1.png", "p_a"]


def test_the_same_bytes_again_whatever_the_batches_and_in_its_own_folder(place: Path):
    for index in range(5):
        picture(place / "mine" / f"{index}.png", index)
    run("mine")
    before = (place / "predictions.csv").read_bytes()
    run("mine", "--batch-size", "5", "--device", "cpu")
    assert (place / "predictions.csv").read_bytes() == before
    for _ in range(2):  # the table of the first time is no image of the second
        stage.main(["mine", "--out", "mine/table.csv"])
        assert len(pd.read_csv("mine/table.csv")) == 5


def test_views_of_an_image_are_averaged(place: Path):
    picture(place / "mine" / "1.png", 1)
    assert run("mine")["p_a"][0] != run("mine", "--test-time", "flip")["p_a"][0]


def test_a_window_of_files_is_read_ahead(place: Path):
    for index in range(20):
        picture(place / "mine" / f"{index}.png", index)
    tree, asked = FolderTree(place / "mine"), []

    def names():
        for name in tree.walk():
            asked.append(name)
            yield name

    items = stage.read_ahead(tree, names(), SPEC, 4)
    assert next(items).error == ""
    assert len(asked) == 4
    items.close()


def test_no_image_at_all_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]):
    (place / "mine").mkdir()
    assert "mine holds no files" in fails(capsys, "mine")
    assert not (place / "predictions.csv").exists()
    (place / "mine" / "notes.txt").write_text("no image")
    assert "none of the 1 files in mine could be read" in fails(capsys, "mine")
    assert len(pd.read_csv("predictions.csv")) == 1


def test_what_cannot_be_run_says_so_and_leaves_the_last_table(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    picture(place / "mine" / "1.png", 1)
    (place / "predictions.csv").write_text("before")
    assert "none is not a folder" in fails(capsys, "none")
    assert "does not hold a Winnow model" in fails(capsys, "mine", "--model", "mine")
    assert "there is no" in fails(capsys, "mine", "--model", "models:/winnow@champion")
    assert "'0' is not a number of images" in fails(capsys, "mine", "--batch-size", "0")
    assert "invalid choice: 'twirl'" in fails(capsys, "mine", "--test-time", "twirl")
    assert "--out mine is a folder" in fails(capsys, "mine", "--out", "mine")
    old = ModelSpec("small_cnn", ["a", "b"], (16, 16, 3), [0.4] * 3, [0.3] * 3)
    (place / "old").mkdir()
    save_model(place / "old", build_model(old, seed=1))
    assert "old does not say how images are resized" in fails(capsys, "mine", "--model", "old")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "classify", stopped)
    with pytest.raises(SystemExit) as ended:
        stage.main(["mine"])
    assert ended.value.code == 130
    assert (place / "predictions.csv").read_text() == "before"
    assert not (place / "predictions.csv.partial").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_a_row(place: Path):
    picture(place / "mine" / "1.png", 1)
    (place / "mine" / "closed").mkdir()
    (place / "mine" / "closed").chmod(0)
    table = run("mine").set_index("file")
    (place / "mine" / "closed").chmod(0o700)
    assert "cannot be listed" in table.loc["closed", "error"]


def test_a_huge_image_in_a_small_file_is_a_row(place: Path):
    picture(place / "mine" / "1.png", 1)
    file = io.BytesIO()
    Image.new("1", (16000, 16000)).save(file, "PNG")
    (place / "mine" / "bomb.png").write_bytes(file.getvalue())
    table = run("mine").set_index("file")
    assert table.loc["bomb.png", "error"].startswith("too_large")
