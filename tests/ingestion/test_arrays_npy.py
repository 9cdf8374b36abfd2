"""Headers of `.npy`, and `.npz` archives that are not what they say."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.errors import WinnowError
from stages.ingestion.array_file import DiskArray
from stages.ingestion.arrays import open_arrays, read_header
from stages.ingestion.trees import FolderTree

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8), np.uint8)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    raw = text.encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(raw)) + raw


def zipped(folder: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> FolderTree:
    with zipfile.ZipFile(folder / "set.npz", "w", method) as archive:
        archive.writestr("images.npy", content)
    return FolderTree(folder)


def stored(tree: FolderTree, folder: Path) -> DiskArray:
    scratch = folder / "scratch"
    scratch.mkdir()
    with open_arrays(tree, ["set.npz"], scratch) as (array,):
        return array.on_disk()


def refusal(tree: FolderTree, folder: Path) -> str:
    with pytest.raises(WinnowError) as caught:
        stored(tree, folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_is_unpacked_as_it_is(tmp_path: Path, method: int) -> None:
    array = stored(zipped(tmp_path, npy(IMAGES), method), tmp_path)
    assert array.shape == IMAGES.shape
    assert (np.load(array.path) == IMAGES).all()
    assert Path(array.path).parent == tmp_path / "scratch"


def test_a_member_cannot_choose_where_it_goes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("../../images.npy", npy(IMAGES))
    stored(FolderTree(tmp_path), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["array-0.npy", "scratch", "set.npz"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy(IMAGES)[:-1], "less than"),
        (npy(IMAGES) + b"x", "more than"),
        (npy(IMAGES)[:40], "damaged"),
        (b"", "damaged"),
        (b"words", "damaged"),
        (npy(np.array([None])), "a pickle"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_that_lies(tmp_path: Path, content: bytes, said: str, method: int) -> None:
    message = refusal(zipped(tmp_path, content, method), tmp_path)
    assert said in message
    assert f"{tmp_path}/set.npz/images" in message


def test_a_bomb_unpacks_no_further_than_its_header_says(tmp_path: Path) -> None:
    tree = zipped(tmp_path, npy(IMAGES) + bytes(2**26))
    assert "more than" in refusal(tree, tmp_path)
    assert (tmp_path / "scratch/array-0.npy").stat().st_size <= len(npy(IMAGES))


def test_damage_is_seen_by_the_checksum(tmp_path: Path) -> None:
    tree = zipped(tmp_path, npy(IMAGES), zipfile.ZIP_STORED)
    path = tmp_path / "set.npz"
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    assert "Bad CRC-32" in refusal(tree, tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 500, -30, -1])
def test_an_archive_cut_off(tmp_path: Path, keep: int) -> None:
    tree = zipped(tmp_path, npy(IMAGES))
    path = tmp_path / "set.npz"
    path.write_bytes(path.read_bytes()[:keep])
    assert "is not an .npz" in refusal(tree, tmp_path)


def test_an_archive_that_is_encrypted(tmp_path: Path) -> None:
    tree = zipped(tmp_path, npy(IMAGES))
    path = tmp_path / "set.npz"
    raw = bytearray(path.read_bytes())
    for flags in (6, raw.rindex(b"PK\x01\x02") + 8):
        raw[flags] |= 1
    path.write_bytes(raw)
    assert "encrypted" in refusal(tree, tmp_path)


def test_methods_that_unpack_without_a_bound(tmp_path: Path) -> None:
    assert "numpy.savez" in refusal(zipped(tmp_path, npy(IMAGES), zipfile.ZIP_LZMA), tmp_path)


def test_a_list_of_files_beyond_reason(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for at in range(20):
            archive.writestr(f"{at}{'x' * 60_000}.npy", b"")
    assert "read at once" in refusal(FolderTree(tmp_path), tmp_path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_of_both_versions(version: tuple[int, int]) -> None:
    raw = with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (3, 2, 2), }\n", version)
    assert read_header(io.BytesIO(raw), "here") == DiskArray("", len(raw), "<u2", (3, 2, 2))


def test_a_row_may_be_in_any_order() -> None:
    raw = with_header("{'descr': '<i8', 'fortran_order': True, 'shape': (3,), }\n")
    assert read_header(io.BytesIO(raw), "here").shape == (3,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", "a pickle"),
        ("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (3,)}", "a pickle"),
        ("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (3,)}", "no plain values"),
        ("{'descr': '(2,2)u1', 'fortran_order': False, 'shape': (3,)}", "no plain values"),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (3, 2)}", "Fortran"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': ()}", "single value"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}", "no plain values"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 99 + ",)}", "no plain values"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 99 + ")}", "no plain values"),
        ("{'descr': 7, 'fortran_order': False, 'shape': (3,)}", "damaged"),
        ("{'descr': '|u1', 'shape': (3,)}", "damaged"),
        ("__import__('os').getcwd()", "damaged"),
        ("(" * 4000, "damaged"),
        ("-" * 4000 + "1", "damaged"),
        ("", "damaged"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_headers_that_lie(text: str, said: str) -> None:
    with pytest.raises(WinnowError, match=said):
        read_header(io.BytesIO(with_header(text)), "here")


def test_a_header_of_megabytes_is_not_read() -> None:
    class Counted(io.BytesIO):
        read_so_far = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.read_so_far += len(data)
            return data

    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}" + " " * 2**22
    stream = Counted(with_header(text, (2, 0)))
    with pytest.raises(WinnowError, match="damaged"):
        read_header(stream, "here")
    assert stream.read_so_far < 10_000


def test_a_version_that_is_not_known() -> None:
    with pytest.raises(WinnowError, match=r"version 3\.0"):
        read_header(io.BytesIO(b"\x93NUMPY\x03\x00" + bytes(100)), "here")
