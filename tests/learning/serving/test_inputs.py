import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.errors import WinnowError
from stages.learning.models import ModelSpec, Preprocessing
from stages.learning.serving import inputs
from stages.learning.serving.inputs import image_batches

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
