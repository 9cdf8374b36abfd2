"""What becomes of an encoded image on its way to a square."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.errors import REASONS, UnusableError
from stages.images import decode as module
from stages.images.decode import decode, one_line, to_square

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def refusal(encoded: bytes) -> UnusableError:
    with pytest.raises(UnusableError) as caught:
        decode(encoded)
    assert "\n" not in caught.value.detail
    assert "0x" not in caught.value.detail
    return caught.value


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises any number of pixels, as a hostile file would, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_is_read(kind: str, mode: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    ramp = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, ramp, ramp], axis=-1)).convert(mode)
    pixels = decode(encode(image, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.shape[:2] == (20, 30)
    assert pixels.shape[2] in (1, 3)
    assert np.abs(pixels.astype(int) - ramp[..., None]).max() <= 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind: str, orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encode(image, exif=exif)))))
    decoded = decode(encode(image, kind, exif=exif))
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 8


def test_exif_that_nobody_can_read_is_no_reason_to_refuse() -> None:
    encoded = encode(Image.fromarray(noise(8, 8)), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (decode(encoded) == noise(8, 8)).all()


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    decoded = decode(encode(Image.fromarray(pixels)))
    assert decoded.shape == (4, 4, 3)
    assert (decoded[:2] == 0).all()
    assert (decoded[2:] == 255).all()


@pytest.mark.parametrize(("mode", "kind"), [("LA", "PNG"), ("RGBA", "GIF"), ("RGBA", "WEBP"), ("LA", "TIFF")])
def test_transparency_of_every_kind_is_white(mode: str, kind: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert decode(encode(image, kind)).min() == 255


def test_transparent_colour_of_a_palette_is_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    assert decode(encode(image, transparency=0)).min() == 255
    assert decode(encode(image))[0, 0].tolist() == [10, 20, 30]


def test_bilevel_is_black_and_white() -> None:
    image = Image.new("1", (4, 4))
    image.putpixel((1, 0), 1)
    assert decode(encode(image))[0, :2, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert decode(encode(Image.fromarray(values), kind))[..., 0].tolist() == [[0, 100, 255]]


def test_sixteen_bits_of_either_byte_order() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257 * 7, 65535))
    assert decode(encode(image, "TIFF"))[..., 0].tolist() == [[7, 255]]


def test_sixteen_bit_grey_may_have_white_as_zero() -> None:
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    encoded = encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(encoded)).tag_v2[262] == 0
    assert decode(encoded)[..., 0].tolist() == [[255, 155, 0]]


def test_sixteen_bit_colour_is_its_high_byte() -> None:
    import cv2

    values = np.full((2, 2, 3), 0x80FF, np.uint16)
    assert (decode(cv2.imencode(".png", values)[1].tobytes()) == 0x80).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_no_known_range_are_refused(dtype: type) -> None:
    encoded = encode(Image.fromarray(np.ones((3, 3), dtype)), "TIFF")
    assert refusal(encoded).reason == "unsupported_pixels"


def test_twelve_bits_are_scaled_by_their_own_range() -> None:
    # Two values a time in three bytes: 0 and 4095, 2048 and 0.
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x00])
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    tags += [(278, 3, 1), (279, 4, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    encoded = head.ljust(200, b"\0") + packed
    assert decode(encoded)[..., 0].tolist() == [[0, 255, 128, 0]]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    # Pillow writes JPEG as Adobe does, inverted and with a marker that says so.
    for kind in ("JPEG", "TIFF"):
        red = decode(encode(image, kind))
        assert red.shape == (8, 8, 3)
        assert np.abs(red[0, 0].astype(int) - [255, 0, 0]).max() < 8


def test_lab_becomes_rgb() -> None:
    image = Image.new("LAB", (2, 2), (128, 128, 128))  # L of 50, a and b of 0
    grey = decode(encode(image, "TIFF"))
    assert grey.shape == (2, 2, 3)
    assert np.ptp(grey) <= 2
    assert 110 < grey.mean() < 130


def test_ycbcr_becomes_rgb() -> None:
    image = Image.new("RGB", (16, 16), (250, 10, 10)).convert("YCbCr")
    assert np.abs(decode(encode(image, "TIFF"))[0, 0].astype(int) - [250, 10, 10]).max() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_counts(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    decoded = decode(encode(first, kind, save_all=True, append_images=[second]))
    assert np.abs(decoded[0, 0].astype(int) - [200, 0, 0]).max() < 8


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"just words\n", "none of PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIF image: convert it"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file (CR3)"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw file (CR2)"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"8BPS\0\1" + bytes(20), "Photoshop"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\xef\xbb\xbf<svg/>", "SVG"),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(content: bytes, what: str) -> None:
    error = refusal(content)
    assert error.reason == "not_an_image"
    assert what in error.detail


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}], ids=["DNG", "NEF"])
def test_the_preview_of_a_raw_photograph_is_not_taken_for_it(tags: dict[int, object]) -> None:
    error = refusal(encode(Image.fromarray(noise(8, 8)), "TIFF", tiffinfo=tags))
    assert error.reason == "not_an_image"
    assert "raw file" in error.detail


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_file_that_is_cut_off_is_damaged(kind: str) -> None:
    encoded = encode(Image.fromarray(noise(64, 64)), kind)
    assert refusal(encoded[: len(encoded) * 2 // 3]).reason == "damaged"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_file_that_is_cut_off_in_its_header_is_damaged(kind: str) -> None:
    assert refusal(encode(Image.fromarray(noise(64, 64)), kind)[:14]).reason == "damaged"


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 99)
    assert refusal(bytes(100)).reason == "too_large"


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 99)
    assert refusal(encode(Image.new("L", (10, 10)))).reason == "too_large"


@pytest.mark.parametrize("side", [2**14, 50_000, 2**31 - 1])
def test_a_decompression_bomb_is_too_large(side: int) -> None:
    assert refusal(png_header(side, side)).reason == "too_large"


def test_large_images_are_copied_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = [encode(Image.fromarray(noise(50, 31)).convert(mode)) for mode in ("L", "RGB")]
    whole = [decode(content) for content in encoded]
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    for content, pixels in zip(encoded, whole, strict=True):
        assert (decode(content) == pixels).all()


def test_an_error_is_one_line_without_addresses_and_paths() -> None:
    assert one_line(ValueError("bad\n thing at 0x7f00aa")) == "bad thing at 0x…"
    assert one_line(FileNotFoundError(2, "No such file", "/some/where")) == "No such file"
    assert one_line(ValueError()) == "ValueError"


def test_the_centred_square_is_kept() -> None:
    pixels = np.zeros((16, 48, 1), np.uint8)
    pixels[:, 16:32] = 200
    square = to_square(pixels, 16, "grey")
    assert square.shape == (16, 16, 1)
    assert (square == 200).all()


@pytest.mark.parametrize("shape", [(16, 48), (48, 17), (33, 32), (5, 9)])
def test_a_crop_is_that_of_pillow(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    expected = ImageOps.fit(Image.fromarray(pixels), (16, 16), Image.Resampling.BICUBIC)
    assert (to_square(pixels, 16, "rgb", "crop") == np.asarray(expected)).all()


@pytest.mark.parametrize(("height", "width"), [(8, 32), (32, 8)])
def test_padding_keeps_the_whole_image_on_black(height: int, width: int) -> None:
    square = to_square(np.full((height, width, 1), 200, np.uint8), 16, "grey", "pad")[..., 0]
    if height > width:
        square = square.T
    assert (square[6:10] == 200).all()
    assert not square[:6].any()
    assert not square[10:].any()


def test_padding_keeps_a_line_of_pixels() -> None:
    square = to_square(np.full((1, 500, 1), 255, np.uint8), 16, "grey", "pad")
    assert (square > 0).sum() == 16


def test_stretching_fills_the_square() -> None:
    pixels = np.zeros((8, 32, 1), np.uint8)
    pixels[:, 16:] = 255
    square = to_square(pixels, 16, "grey", "stretch")[..., 0]
    assert not square[:, :7].any()
    assert (square[:, 9:] == 255).all()


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_reduction_is_antialiased(resize: str) -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    square = to_square(stripes, 16, "grey", resize)
    assert np.abs(square[:, 2:-2].astype(int) - 127).max() < 20


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("color", "channels"), [("grey", 1), ("rgb", 3)])
@pytest.mark.parametrize("given_channels", [1, 3])
def test_an_image_of_the_right_size_keeps_its_pixels(
    resize: str, color: str, channels: int, given_channels: int
) -> None:
    grey = noise(16, 16)[..., :1]
    square = to_square(np.repeat(grey, given_channels, axis=2), 16, color, resize)
    assert square.dtype == np.uint8
    assert (square == np.repeat(grey, channels, axis=2)).all()


REAL = [
    encode(Image.fromarray(noise(9, 12)), kind, **options)
    for kind, options in [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("JPEG2000", {}),
        ("AVIF", {}),
    ]
]
CHANGES = st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5)


def decodes_or_is_refused(encoded: bytes) -> None:
    try:
        pixels = decode(encoded)
    except UnusableError as error:
        assert error.reason in REASONS
        assert "\n" not in error.detail
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] in (1, 3)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(encoded: bytes) -> None:
    decodes_or_is_refused(encoded)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(REAL), CHANGES, st.integers(0, 5000))
def test_any_damaged_file_is_decoded_or_refused(
    encoded: bytes, changes: list[tuple[int, bytes]], end: int
) -> None:
    changed = bytearray(encoded)
    for place, new in changes:
        at = place % len(changed)
        changed[at : at + len(new)] = new
    decodes_or_is_refused(bytes(changed[: max(1, end % (2 * len(changed)))]))
