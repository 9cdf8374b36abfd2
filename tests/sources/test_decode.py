"""What becomes of an encoded image on its way to a square."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from stages.sources import decode as module
from stages.sources.base import UnusableError
from stages.sources.decode import decode, to_square


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_exif_rotation_is_applied() -> None:
    pixels = np.zeros((10, 20), np.uint8)
    pixels[:, 10:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90° clockwise
    image = decode(encode(Image.fromarray(pixels), exif=exif))
    assert image.size == (10, 20)
    upright = np.asarray(image)
    assert upright[:10].max() == 0
    assert upright[10:].min() == 255


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    image = decode(encode(Image.fromarray(pixels)))
    assert image.mode == "RGB"
    assert (np.asarray(image)[:2] == 0).all()
    assert (np.asarray(image)[2:] == 255).all()


def test_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    assert np.asarray(decode(encode(image, transparency=0))).min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert np.asarray(decode(encode(Image.fromarray(values)))).tolist() == [[0, 100, 255]]


def test_floating_point_has_no_known_range() -> None:
    with pytest.raises(UnusableError) as caught:
        decode(encode(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))
    assert caught.value.reason == "unsupported_pixels"


def test_cmyk_becomes_rgb() -> None:
    assert decode(encode(Image.new("CMYK", (8, 8)), "JPEG")).mode == "RGB"


@pytest.mark.parametrize(
    "content", [b"", b"just words\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(UnusableError) as caught:
        decode(content)
    assert caught.value.reason == "not_an_image"
    assert "0x" not in caught.value.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_is_cut_off_is_damaged(kind: str) -> None:
    encoded = encode(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(UnusableError) as caught:
        decode(encoded[: len(encoded) * 2 // 3])
    assert caught.value.reason == "damaged"
    assert "\n" not in caught.value.detail


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 99)
    with pytest.raises(UnusableError) as caught:
        decode(encode(Image.new("L", (10, 10))))
    assert caught.value.reason == "too_large"


def test_a_decompression_bomb_is_too_large() -> None:
    # A header that promises 2^30 pixels, as a hostile file would.
    encoded = bytearray(encode(Image.new("L", (1, 1))))
    encoded[16:24] = (2**15).to_bytes(4, "big") * 2
    import zlib

    encoded[29:33] = zlib.crc32(bytes(encoded[12:29])).to_bytes(4, "big")
    with pytest.raises(UnusableError) as caught:
        decode(bytes(encoded))
    assert caught.value.reason == "too_large"


def test_the_centred_square_is_kept() -> None:
    pixels = np.zeros((16, 48), np.uint8)
    pixels[:, 16:32] = 200
    square = to_square(Image.fromarray(pixels), 16, "grey")
    assert square.shape == (16, 16, 1)
    assert (square == 200).all()


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    square = to_square(Image.fromarray(stripes), 16, "grey")
    assert np.abs(square[:, 2:-2].astype(int) - 127).max() < 20


@pytest.mark.parametrize(("color", "channels"), [("grey", 1), ("rgb", 3)])
def test_an_image_of_the_right_size_keeps_its_pixels(color: str, channels: int) -> None:
    pixels = np.repeat(noise(16, 16)[..., :1], 3, axis=2)
    square = to_square(Image.fromarray(pixels), 16, color)
    assert square.shape == (16, 16, channels)
    assert square.dtype == np.uint8
    assert (square == pixels[..., :channels]).all()
