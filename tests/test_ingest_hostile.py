"""Input that means harm, or was made by accident: refused with its reason, nothing written elsewhere."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ingesting import change_params, fails, noise, picture, quarantine, run, samples
from PIL import Image

from stages import report
from stages.dataset.base import INGESTED, read_dataset

WRITTEN = (
    "repo/data/ingested",
    "repo/data/truth.parquet",
    "repo/reports/ingest",
    "repo/.winnow",
    "repo/reports/pages",
)

CARD = Path("reports/pages/ingest")


@pytest.fixture(autouse=True)
def nothing_elsewhere(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The repository is a folder among others, and none of them may change but where outputs go."""
    repo = workspace / "repo"
    repo.mkdir()
    for entry in list(workspace.iterdir()):
        if entry != repo:
            entry.rename(repo / entry.name)
    (workspace / "beside").mkdir()
    picture(workspace / "beside/secret.png", 1)
    monkeypatch.chdir(repo)
    change_params(ingest__source="mine", simulate__enabled=False, ingest__max_quarantine=1.0)
    Path("mine").mkdir()
    yield workspace
    there = {path.relative_to(workspace).as_posix() for path in workspace.rglob("*")}
    known = _given | {name for name in there if name.startswith(WRITTEN)}
    assert there <= known | {"repo/reports"}, there - known
    assert (workspace / "beside/secret.png").read_bytes() == _secret


_given: set[str] = set()
_secret = b""


def given(workspace: Path) -> None:
    """Everything that the test has put there, before anything runs."""
    global _given, _secret  # noqa: PLW0603 — read by the fixture when the test is over
    _given = {path.relative_to(workspace).as_posix() for path in workspace.rglob("*")}
    _secret = (workspace / "beside/secret.png").read_bytes()


def good(root: str = "mine", classes: str = "ab", count: int = 6) -> None:
    for index, name in enumerate(classes):
        for i in range(count):
            picture(f"{root}/{name}/{i}.png", 100 * index + i)


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def huge_png(side: int = 50_000) -> bytes:
    """A valid PNG of a few kilobytes that decodes to gigabytes."""
    packer = zlib.compressobj(9)
    line = bytes(side // 8 + 1)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tar_of(path: str, members: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


def zip_of(path: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def members() -> dict[str, bytes]:
    return {f"{name}/{i}.png": png(100 * index + i) for index, name in enumerate("ab") for i in range(6)}


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a/../../../x.png"])
def test_members_that_climb_out(nothing_elsewhere: Path, make: object, name: str) -> None:
    make("mine/all.tar.gz" if make is tar_of else "mine/all.zip", members() | {name: png(7)})
    given(nothing_elsewhere)
    run()
    (reason,) = quarantine().values()
    assert reason == "outside_source"
    assert len(samples()) == 12


def test_links_in_an_archive(nothing_elsewhere: Path) -> None:
    secret = nothing_elsewhere / "beside/secret.png"
    tar_of("mine/all.tar.gz", members(), {"a/out.png": str(secret), "a/up.png": "../../beside/secret.png"})
    given(nothing_elsewhere)
    run()
    assert set(quarantine()) == {"a/out.png", "a/up.png"}
    assert len(samples()) == 12


def test_links_in_a_folder(nothing_elsewhere: Path) -> None:
    good()
    Path("mine/a/out.png").symlink_to(nothing_elsewhere / "beside/secret.png")
    Path("mine/c").symlink_to(nothing_elsewhere / "beside")
    given(nothing_elsewhere)
    run()
    assert quarantine()["a/out.png"] == "outside_source"
    assert quarantine()["c"] == "outside_source"
    assert read_dataset(INGESTED).classes == ["a", "b"]


def test_an_image_of_gigabytes_in_kilobytes(nothing_elsewhere: Path) -> None:
    good()
    Path("mine/a/huge.png").write_bytes(huge_png())
    assert Path("mine/a/huge.png").stat().st_size < 500_000
    given(nothing_elsewhere)
    run()
    assert quarantine() == {"a/huge.png": "too_large"}


def test_a_zip_bomb(nothing_elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = bytes(2**26)
    with zipfile.ZipFile("mine/all.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for i in range(18):
            archive.writestr(f"a/{i}.png", zeros)
    assert Path("mine/all.zip").stat().st_size < 2_000_000
    given(nothing_elsewhere)
    assert "mine/all.zip" in fails(capsys)
    assert not Path(INGESTED).exists()


def test_a_pickle_in_an_array(nothing_elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {nothing_elsewhere}/pwned",)

    body = io.BytesIO()
    np.lib.format.write_array_header_1_0(body, {"descr": "|O", "fortran_order": False, "shape": (4,)})
    Path("mine/images.npy").write_bytes(body.getvalue() + pickle.dumps([Harm()] * 4))
    np.save("mine/labels.npy", np.array([0, 1, 0, 1]))
    given(nothing_elsewhere)
    assert "pickle" in fails(capsys)


def manifest(rows: list[tuple[str, str]], text: str | None = None) -> None:
    lines = [f"{path},{label}" for path, label in rows]
    Path("mine/labels.csv").write_text(text or "\n".join(["path,label", *lines]) + "\n", encoding="utf-8")


def good_rows() -> list[tuple[str, str]]:
    good()
    return [(f"{name}/{i}.png", name) for name in "ab" for i in range(6)]


@pytest.mark.parametrize("path", ["../../beside/secret.png", "a/../../../beside/secret.png", "ABSOLUTE"])
def test_a_manifest_that_points_outside(nothing_elsewhere: Path, path: str) -> None:
    path = path.replace("ABSOLUTE", str(nothing_elsewhere / "beside/secret.png"))
    manifest([*good_rows(), (path, "a")])
    given(nothing_elsewhere)
    run()
    assert list(quarantine().values()) == ["outside_source"]
    assert len(samples()) == 12


def test_a_manifest_that_points_outside_over_a_linked_folder(nothing_elsewhere: Path) -> None:
    rows = good_rows()
    Path("mine/linked").symlink_to(nothing_elsewhere / "beside")
    manifest([*rows, ("linked/secret.png", "a")])
    given(nothing_elsewhere)
    run()
    assert quarantine() == {"linked/secret.png": "outside_source"}


def test_names_with_nul_and_line_breaks(nothing_elsewhere: Path) -> None:
    rows = good_rows()
    picture("mine/a/line\nbreak.png", 50)
    cells = "\n".join(f"{path},{label}" for path, label in rows)
    text = f'path,label\n{cells}\n"a/line\nbreak.png",a\na/nul\0.png,a\n'
    manifest([], text)
    given(nothing_elsewhere)
    run()
    assert sorted(quarantine().values()) in (["bad_name", "bad_name"], ["bad_name", "bad_row"])
    assert all("\n" not in path and "\0" not in path for path in quarantine())
    Path("mine/labels.csv").unlink()
    run()
    assert quarantine() == {"a/line\\nbreak.png": "bad_name"}


def test_a_class_name_that_climbs(nothing_elsewhere: Path) -> None:
    manifest([*good_rows()[:-2], ("b/4.png", "../.."), ("b/5.png", "/etc")])
    given(nothing_elsewhere)
    run()
    assert quarantine() == {"b/4.png": "bad_label", "b/5.png": "bad_label"}
    assert read_dataset(INGESTED).classes == ["a", "b"]


def test_one_path_with_two_labels(nothing_elsewhere: Path) -> None:
    manifest([*good_rows(), ("a/0.png", "b")])
    given(nothing_elsewhere)
    run()
    assert quarantine() == {"a/0.png": "conflicting_labels"}
    table = samples().set_index("source")
    assert table.at["a/0.png", "split"] == "unlabeled"
    assert pd.isna(table.at["a/0.png", "label"])


def test_byte_order_mark_and_carriage_returns_are_read_through(nothing_elsewhere: Path) -> None:
    lines = ["path,label", *(f"{path},{label}" for path, label in good_rows())]
    Path("mine/labels.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    given(nothing_elsewhere)
    run()
    assert quarantine() == {}
    assert read_dataset(INGESTED).classes == ["a", "b"]


def test_an_empty_label_is_none_and_a_blank_one_is_refused(nothing_elsewhere: Path) -> None:
    manifest([*good_rows()[:-2], ("b/4.png", ""), ("b/5.png", "   ")])
    given(nothing_elsewhere)
    run()
    assert quarantine() == {"b/5.png": "bad_label"}
    assert samples().set_index("source").at["b/4.png", "split"] == "unlabeled"


def test_ten_thousand_classes(nothing_elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_params(ingest__image_size=8)
    np.save("mine/images.npy", np.random.default_rng(0).integers(0, 256, (20_002, 8, 8)).astype(np.uint8))
    np.save("mine/labels.npy", np.array([f"class {i // 2:05d}" for i in range(20_000)] + ["once", "never"]))
    given(nothing_elsewhere)
    run()
    assert len(read_dataset(INGESTED).classes) == 10_002
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 2
    report.main(["ingest"])
    assert (CARD / "data_card.html").stat().st_size < 2_000_000


def test_hostile_names_do_no_harm_in_the_card(nothing_elsewhere: Path) -> None:
    good()
    for i in range(4):
        picture(f"mine/<script>alert(1)<!--/{i}.png", 500 + i)
    Path("mine/a/<img src=x>.png").write_text("no image")
    given(nothing_elsewhere)
    run()
    report.main(["ingest"])
    page = (CARD / "data_card.html").read_text("utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
