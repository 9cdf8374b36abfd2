"""The fast way to decode a JPEG gives what Pillow gives, or leaves the file to Pillow."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.images.decode import decode_plain_jpeg

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (9, 17), (16, 16), (31, 33), (32, 32), (61, 64), (256, 255)]


def picture(height: int, width: int, mode: str) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(columns / 5 + k) * np.cos(rows / 7) for k in range(3)]
    pixels = np.stack(waves, axis=-1) + rng.normal(0, 10, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(encoded: bytes) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
    return pixels.reshape(*pixels.shape[:2], -1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_the_pixels_are_those_of_pillow(mode: str, progressive: bool, subsampling: str) -> None:
    for (height, width), quality, restart, optimize in itertools.product(
        SIZES, (20, 90), (0, 2), (False, True)
    ):
        options = {"restart_marker_blocks": restart} if restart else {}
        encoded = encode(
            picture(height, width, mode),
            progressive=progressive,
            quality=quality,
            optimize=optimize,
            **({"subsampling": subsampling} if mode == "RGB" else {}),
            **options,
        )
        pixels = decode_plain_jpeg(encoded)
        assert pixels is not None
        assert pixels.dtype == np.uint8
        assert pixels.shape == (height, width, len(mode))
        assert (pixels == by_pillow(encoded)).all()


def exif() -> Image.Exif:
    turned = Image.Exif()
    turned[0x0112] = 6
    return turned


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        encode(picture(257, 16, "RGB")),
        encode(picture(16, 257, "L")),
        encode(picture(16, 16, "RGB").convert("CMYK")),
        encode(picture(16, 16, "RGB"), exif=exif()),
        encode(picture(16, 16, "RGB"))[:-2],
        encode(picture(16, 16, "RGB")) + b"\0",
        # A marker in the middle of the data, with the end in its place.
        encode(picture(64, 64, "RGB"))[:-200] + b"\xff\xc4\0\2" + b"\x55" * 194 + b"\xff\xd9",
    ],
    ids=["empty", "no segments", "high", "wide", "cmyk", "exif", "cut off", "more behind", "corrupt"],
)
def test_all_else_is_left_to_pillow(encoded: bytes) -> None:
    assert decode_plain_jpeg(encoded) is None


PLAIN = [encode(picture(24, 40, mode), progressive=p) for mode in ("L", "RGB") for p in (False, True)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLAIN), st.lists(st.tuples(st.integers(2, 10_000), st.binary(max_size=4)), max_size=4))
def test_a_corrupt_file_is_decoded_as_pillow_decodes_it_or_left_to_it(
    encoded: bytes, changes: list[tuple[int, bytes]]
) -> None:
    changed = bytearray(encoded)
    for place, new in changes:
        at = max(2, place % (len(changed) - 2))
        changed[at : at + len(new)] = new
    pixels = decode_plain_jpeg(bytes(changed))
    if pixels is not None:
        assert (pixels == by_pillow(bytes(changed))).all()
