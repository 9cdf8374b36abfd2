"""Payloads and blocks can be cut anywhere."""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.errors import UnusableError
from stages.ingestion.archives import open_archive
from stages.ingestion.opening import open_source
from stages.ingestion.parquet import BytesPayload
from stages.ingestion.source import Block, EmptyPayload, Payload, Quarantined, only_refused
from stages.ingestion.trees import FolderTree

COUNT = 12


def content(payload: Payload) -> list[object]:
    return [
        item if isinstance(item, bytes) else getattr(item, "reason", None) or np.asarray(item).tolist()
        for item in payload.read()
    ]


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Payload]:
    """One of each kind, with something amiss in the middle."""
    place = tmp_path_factory.mktemp("payloads")
    names = [f"a/{i}.png" for i in range(COUNT)]
    for name in names:
        (place / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3), int(name[2:-4])).save(place / "files" / name)
    names[5] = "../out.png"
    folder = FolderTree(place / "files").payload(names)
    with zipfile.ZipFile(place / "all.zip", "w") as archive:
        for path in sorted((place / "files/a").iterdir()):
            archive.write(path, f"a/{path.name}")
    (place / "scratch").mkdir()
    ranges = open_archive(place / "all.zip", place / "scratch").payload(names)
    np.savez(
        place / "x.npz",
        images=np.arange(COUNT * 16, dtype=np.uint8).reshape(COUNT, 4, 4),
        labels=range(COUNT),
    )
    (block,) = open_source(place / "x.npz", place / "scratch").blocks()
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    items = [None, buffer.getvalue(), UnusableError("unreadable", "no bytes"), None, None, *[b"x"] * 7]
    mixed = BytesPayload(items, FolderTree(place / "files").payload(names[:3]))
    return {"files": folder, "ranges": ranges, "array": block.payload, "bytes": mixed}


@pytest.mark.parametrize("kind", ["files", "ranges", "array", "bytes"])
@given(cuts=st.lists(st.integers(0, COUNT), max_size=4))
def test_parts_read_like_the_whole(payloads: dict[str, Payload], kind: str, cuts: Sequence[int]) -> None:
    payload = payloads[kind]
    edges = [0, *sorted(cuts), len(payload)]
    parts = [payload.part(start, stop) for start, stop in itertools.pairwise(edges)]
    assert sum(len(part) for part in parts) == len(payload) == COUNT
    assert [item for part in parts for item in content(pickle.loads(pickle.dumps(part)))] == content(payload)  # noqa: S301


def test_a_part_of_nothing_is_nothing() -> None:
    assert content(EmptyPayload().part(0, 0)) == []


def test_what_a_block_refuses_goes_with_its_first_part() -> None:
    refused = [Quarantined("x", "bad_row", "no path")]
    payload = BytesPayload([b"1", b"2", b"3"])
    block = Block(
        ["a", "b", "c"],
        ["x", None, "y"],
        ["train", None, "test"],
        [None] * 3,
        [1.0, 2.0, 3.0],
        payload,
        refused,
    )
    first, second = block.part(0, 2), block.part(2, 3)
    assert (first.names, first.labels, first.splits, first.weights) == (
        ["a", "b"],
        ["x", None],
        ["train", None],
        [1.0, 2.0],
    )
    assert (first.refused, second.refused) == (refused, [])
    assert content(second.payload) == [b"3"]
    assert only_refused(refused).part(0, 0).refused == refused


def test_an_unusable_item_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnusableError("damaged", "cut off")))  # noqa: S301
    assert (error.reason, error.detail) == ("damaged", "cut off")
