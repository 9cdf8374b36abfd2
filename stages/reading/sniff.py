"""What a file is that cannot be read as an image: the user should learn what to do about it."""

from __future__ import annotations

_CONVERT = "convert it to JPEG or PNG"

# Where in the file, what stands there, what it is then, what to do.
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"8BPS", "a Photoshop document", _CONVERT),
    (0, b"\xff\x0a", "a JPEG XL image", _CONVERT),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (0, b"%PDF", "a PDF document", _CONVERT),
    (0, b"%!PS", "a PostScript document", _CONVERT),
    (0, b"\0\0\x01\0", "a Windows icon", _CONVERT),
    (0, b"gimp xcf", "a GIMP project", _CONVERT),
    (0, b"v/1\x01", "an OpenEXR image", _CONVERT),
    (0, b"SIMPLE  =", "a FITS image", _CONVERT),
    (128, b"DICM", "a DICOM file", "export it as PNG"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", _CONVERT),
    (0, b"IIRO", "a camera's raw file (ORF)", _CONVERT),
    (0, b"IIU\0", "a camera's raw file (RW2)", _CONVERT),
    (8, b"CR\x02", "a camera's raw file (CR2)", _CONVERT),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (0, b"\x1a\x45\xdf\xa3", "a video", "take still images from it"),
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file", "run `git lfs pull`"),
)
_BRANDS = {  # of an ISO base media file, ISO/IEC 14496-12: bytes 8 to 12
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIF image"),
    b"crx ": "a camera's raw file (CR3)",
}
_READABLE = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"jP  \r\n", "JPEG2000"),
    (4, b"ftypavif", "AVIF"),
)


def other_kind(encoded: bytes) -> str | None:
    """What these bytes are and what to do about it, None where they look like nothing that is known."""
    for at, signature, what, remedy in _SIGNATURES:
        if encoded.startswith(signature, at):
            return f"{what}: {remedy}"
    if encoded.startswith(b"ftyp", 4) and begins_as(encoded) is None:
        brand = _BRANDS.get(encoded[8:12])
        return f"{brand}: {_CONVERT}" if brand else "a video: take still images from it"
    text = encoded[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return f"an SVG drawing: {_CONVERT}"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps an error saved in place of an image: download it again"
    return None


def begins_as(encoded: bytes) -> str | None:
    """The format, by Pillow's name for it, that these bytes begin like; None where they do not."""
    for at, signature, name in _READABLE:
        if encoded.startswith(signature, at):
            return name
    return None
