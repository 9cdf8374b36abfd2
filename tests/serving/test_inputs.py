from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.errors import UnusableError, WinnowError
from stages.ingestion.blocks import Shape
from stages.ingestion.opening import open_source
from stages.ingestion.scan import scan
from stages.learning.networks.layers import ModelSpec, Preprocessing
from stages.serving import inputs
from stages.serving.inputs import image_batches, prepare, read_file

SPEC = ModelSpec(
    "small_cnn", ["a", "b"], (8, 8, 3), [0.5] * 3, [0.3] * 3, preprocessing=Preprocessing("crop", "rgb")
)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(given: object, **options: bool) -> np.ndarray:
    return np.concatenate(list(image_batches(given, SPEC, **options)))


ENCODED = [png(image) for image in IMAGES]


TEXT = [base64.encodebytes(item).decode() for item in ENCODED]


@pytest.mark.parametrize(
    "given",
    [
        IMAGES,
        list(IMAGES),
        IMAGES.astype(np.int64),
        IMAGES.tolist(),
        {"image": IMAGES},
        ENCODED,
        [bytearray(ENCODED[0]), memoryview(ENCODED[1]), IMAGES[2]],
        np.array(ENCODED, object),
        pd.Series(ENCODED),
        pd.DataFrame({"other": [1, 2, 3], "image": ENCODED}),
        pd.DataFrame({"image": TEXT}),
        np.array(TEXT),
        [{"image": text} for text in TEXT],
        [{"image": np.array(text)} for text in TEXT],
    ],
)
def test_every_form_gives_the_same_pixels(given: object):
    np.testing.assert_array_equal(pixels_of(given), IMAGES)


def test_one_image_is_a_row_too(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(ENCODED[0])
    for given in (IMAGES[0], ENCODED[0], TEXT[0], tmp_path / "one.png"):
        np.testing.assert_array_equal(pixels_of(given), IMAGES[:1])
    assert pixels_of(np.zeros((20, 30, 1), np.uint8)).shape == (1, 8, 8, 3)
    assert pixels_of([np.zeros((20, 30), np.uint8)]).shape == (1, 8, 8, 3)


def test_text_names_a_file_only_where_that_is_allowed(tmp_path: Path):
    path = tmp_path / "one.png"
    path.write_bytes(ENCODED[0])
    for given in (str(path), [str(path)], pd.DataFrame({"image": [str(path)]}), np.array([str(path)])):
        with pytest.raises(WinnowError, match=r"row 0: not_an_image: text that is not base64.*pathlib\.Path"):
            pixels_of(given)
        np.testing.assert_array_equal(pixels_of(given, read_files=True), IMAGES[:1])
    path.rename(tmp_path / "abcd")  # a name that is base64 as well
    with pytest.raises(WinnowError, match="row 0: not_an_image"):
        pixels_of(str(tmp_path / "abcd").lstrip("/"))


def test_many_rows_come_in_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "_BATCH", 2)
    assert [len(batch) for batch in image_batches(IMAGES, SPEC)] == [2, 1]
    assert [len(batch) for batch in image_batches(ENCODED, SPEC)] == [2, 1]
    with pytest.raises(WinnowError, match="row 2: not_an_image"):
        pixels_of([*ENCODED[:2], b"bad"])
    assert list(image_batches([], SPEC)) == []
    assert list(image_batches(IMAGES[:0], SPEC)) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (IMAGES.astype(np.float32), "takes uint8 images N×8×8×3, not float32 3×8×8×3"),
        (IMAGES.astype(np.int64) + 1000, "values outside of 0 to 255"),
        (IMAGES[..., 0], "not uint8 3×8×8"),
        (np.zeros((1, 8, 8, 4), np.uint8), "row 0: unsupported_pixels: 8×8×4"),
        ([None], "row 0: not_an_image: NoneType"),
        ([float("nan")], "row 0: not_an_image: float"),
        ([[[1, 2], [3]]], "row 0: unsupported_pixels: rows of pixels of unequal length"),
        (pd.DataFrame({"picture": ENCODED}), "column 'image'; the columns are: picture"),
        ({}, "the columns are: none"),
        ([IMAGES[0], Path("none.png")], "row 1: unreadable"),
    ],
)
def test_what_is_no_image_is_named(given: object, said: str):
    with pytest.raises(WinnowError, match=said):
        pixels_of(given)


def spec(channels: int = 3, resize: str = "crop", size: int = 16, *, known: bool = True) -> ModelSpec:
    color = {1: "grey", 3: "rgb"}[channels]
    how = Preprocessing(resize, color) if known else None
    return ModelSpec(
        "small_cnn", ["a", "b"], (size, size, channels), [0.5] * channels, [0.3] * channels, preprocessing=how
    )


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_a_file_gives_the_pixels_that_ingest_has(resize: str, color: str, tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    wide, see_through = noise(24, 40, 3), noise(20, 20, 4)
    contents = {
        "a/1.png": encoded(wide),
        "a/2.jpg": encoded(wide, "JPEG", exif=turned),
        "a/3.jpg": encoded(noise(40, 24), "JPEG"),
        "b/4.png": encoded(see_through),
        "b/5.tif": encoded((noise(30, 20).astype(np.uint16) * 200), "TIFF"),
        "b/6.png": encoded(noise(16, 16)),
    }
    for name, content in contents.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    source = open_source(tmp_path / "mine", tmp_path)
    scanned = scan(source, tmp_path / "scratch", Shape(16, color, resize), workers=0)
    assert len(scanned.items.place) == len(contents)
    described = spec(1 if color == "grey" else 3, resize)
    squares = scanned.squares.take(scanned.items.place)
    for square, content in zip(squares, contents.values(), strict=True):
        np.testing.assert_array_equal(prepare(content, described), square)


def test_pixels_of_the_right_shape_stay_and_others_are_resized():
    right = noise(16, 16, 3)
    assert prepare(right, spec()) is right
    assert prepare(noise(40, 30, 3), spec()).shape == (16, 16, 3)
    assert prepare(noise(40, 30, 1), spec()).shape == (16, 16, 3)
    assert prepare(noise(16, 16, 3), spec(1)).shape == (16, 16, 1)
    assert prepare(noise(2, 400, 3), spec(resize="pad"))[0].max() == 0  # black above


def test_what_is_no_image_is_refused():
    for wrong in (noise(16, 16, 2), noise(16, 16), noise(0, 16, 3)):
        with pytest.raises(UnusableError, match="H×W×1 or H×W×3"):
            prepare(wrong, spec())
    with pytest.raises(UnusableError, match="not_an_image"):
        prepare(b"no image at all", spec())
    with pytest.raises(UnusableError, match="damaged"):
        prepare(encoded(noise(64, 64, 3))[:200], spec())


def test_a_small_file_of_a_huge_image_is_refused():
    file = io.BytesIO()
    Image.new("1", (16000, 16000)).save(file, "PNG")
    huge = file.getvalue()
    assert len(huge) < 2**20
    with pytest.raises(UnusableError, match="too_large"):
        prepare(huge, spec())


def test_a_model_that_does_not_know_how_takes_arrays_of_its_shape_only():
    old = spec(known=False)
    assert prepare(noise(16, 16, 3), old).shape == (16, 16, 3)
    for other in (noise(17, 16, 3), encoded(noise(16, 16, 3))):
        with pytest.raises(UnusableError, match="nothing is known of resizing: the model takes uint8 images"):
            prepare(other, old)


def test_files_are_read_through_links_and_pipes_are_not_waited_for(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(b"content")
    (tmp_path / "link.png").symlink_to("folder/a.png")
    assert read_file(tmp_path / "link.png") == b"content"
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in (("none.png", "No such file"), ("pipe.png", "regular"), ("folder", "regular")):
        with pytest.raises(UnusableError, match=why):
            read_file(tmp_path / name)
