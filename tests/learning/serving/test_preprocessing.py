import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.learning.models import ModelSpec, Preprocessing
from stages.learning.serving.preprocessing import prepare, read_file
from stages.reading.scan import Shape, scan
from stages.sources.base import UnusableError
from stages.sources.opening import open_source


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
    assert len(scanned.found.place) == len(contents)
    described = spec(1 if color == "grey" else 3, resize)
    squares = scanned.squares.take(scanned.found.place)
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
