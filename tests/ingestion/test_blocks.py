"""What is found out of a block's items.

Rows in a file, by place.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from awkward import Breaks, Item, Listed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.dataset.ids import bytes_id, hex_ids, pixel_id
from stages.errors import REASONS, UnusableError
from stages.images.decode import decode, to_square
from stages.ingestion import blocks as reading
from stages.ingestion.blocks import (
    BlockResult,
    Output,
    RowFile,
    Shape,
    open_output,
    pixel_key,
    read_block,
    thumbnail,
)
from stages.ingestion.source import Payload

ROWS = np.random.default_rng(0).integers(0, 256, (50, 4, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def output(folder: Path, size: int = 8, color: str = "rgb", resize: str = "crop") -> Output:
    return open_output(folder, Shape(size, color, resize))


def fields(result: BlockResult) -> dict[str, object]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(result).items()
        if name != "seconds"
    }


def test_every_item_is_a_row_or_a_refusal(tmp_path: Path) -> None:
    encoded = png(noise(12, 20))
    array = noise(9, 7, 1)
    missing = UnusableError("unreadable", "not there")
    out = output(tmp_path)
    result = read_block(Listed([encoded, b"words", array, missing]), 5, out)
    assert result.ok.tolist() == [True, False, True, False]
    assert [(i, reason) for i, reason, _ in result.refused] == [(1, "not_an_image"), (3, "unreadable")]
    assert hex_ids(result.sample_id[[0, 2]]) == [bytes_id(encoded), pixel_id(array)]
    assert result.width.tolist() == [20, 0, 7, 0]
    assert result.height.tolist() == [12, 0, 9, 0]
    squares, thumbs = out.squares.take(np.arange(5, 9)), out.thumbs.take(np.arange(5, 9))
    for row, pixels in ((0, noise(12, 20)), (2, array)):
        assert (squares[row] == to_square(pixels, 8, "rgb")).all()
        assert (thumbs[row] == thumbnail(pixels)).all()
    assert not squares[[1, 3]].any()
    assert not thumbs[[1, 3]].any()


def test_ids_keys_and_thumbnails_do_not_depend_on_what_the_dataset_is_to_be(tmp_path: Path) -> None:
    items: list[Item] = [png(noise(12, 20, seed)) for seed in range(5)]
    first = output(tmp_path, 8, "rgb", "crop")
    expected = fields(read_block(Listed(items), 0, first)), first.thumbs.take(np.arange(5)).tolist()
    (tmp_path / "other").mkdir()
    other = output(tmp_path / "other", 16, "grey", "pad")
    assert (fields(read_block(Listed(items), 0, other)), other.thumbs.take(np.arange(5)).tolist()) == expected


def test_equal_pixels_have_equal_keys() -> None:
    grey = noise(6, 10)[..., :1]
    key = pixel_key(grey)
    assert len(key) == 8
    assert pixel_key(np.repeat(grey, 3, axis=2)) == key
    assert pixel_key(grey.reshape(10, 6, 1)) != key
    other = grey.copy()
    other[0, 0] ^= 1
    assert pixel_key(other) != key


def test_the_key_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = noise(50, 10)[..., :1]
    key = pixel_key(grey)
    monkeypatch.setattr(reading, "_AT_ONCE", 70)
    assert pixel_key(grey) == key


@pytest.mark.parametrize("shape", [(16, 16), (64, 48), (7, 5), (1, 1), (3, 400), (400, 3), (16, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_thumbnail_shows_the_whole_image(shape: tuple[int, int], channels: int) -> None:
    pixels = np.zeros((*shape, channels), np.uint8)
    pixels[:, shape[1] // 2 :] = 200
    thumb = thumbnail(pixels)
    assert thumb.shape == (16, 16)
    assert thumb.dtype == np.uint8
    assert (thumb[:, 15] == 200).all()
    if shape[1] > 1:
        assert not thumb[:, 0].any()


def test_a_thumbnail_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(thumbnail(stripes).astype(int) - 127).max() <= 1


def test_squares_are_written_in_pieces_where_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items: list[Item] = [b"words", *(noise(8, 8, seed) for seed in range(9)), b"words", b"words"]
    monkeypatch.setattr(reading, "_BUFFER", 3 * 8 * 8 * 3)
    out = output(tmp_path)
    read_block(Listed(items), 0, out)
    squares = out.squares.take(np.arange(12))
    assert (squares[1:10] == np.stack([noise(8, 8, seed) for seed in range(9)])).all()
    assert not squares[[0, 10, 11]].any()


@pytest.mark.parametrize(
    "payload",
    [
        Breaks([png(noise(4, 4))], promised=3, error=OSError(5, "Input/output error", "/secret/path")),
        Breaks([png(noise(4, 4))], promised=3),
    ],
    ids=["an error", "too few items"],
)
def test_what_a_payload_does_not_give_is_unreadable(tmp_path: Path, payload: Payload) -> None:
    result = read_block(payload, 0, output(tmp_path))
    assert result.ok.tolist() == [True, False, False]
    assert [(i, reason) for i, reason, _ in result.refused] == [(1, "unreadable"), (2, "unreadable")]
    assert "secret" not in result.refused[0][2]


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), "too_large"), (RuntimeError("at 0x7fff"), "damaged")]
)
def test_whatever_goes_wrong_with_an_item_is_its_own_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(_: np.ndarray) -> None:
        raise error

    monkeypatch.setattr(reading, "thumbnail", fail)
    result = read_block(Listed([noise(4, 4)]), 0, output(tmp_path))
    assert result.refused[0][:2] == (0, reason)
    assert "0x7" not in result.refused[0][2]


def test_a_disk_that_is_full_is_nobodys_damage(tmp_path: Path) -> None:
    out = output(tmp_path)
    out.squares.close()
    with pytest.raises(OSError, match=r"[Bb]ad file descriptor"):
        read_block(Listed([noise(4, 4)]), 0, out)


def test_items_that_a_process_died_of_are_passed_over(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    items: list[Item] = [noise(4, 4, seed) for seed in range(5)]
    result = read_block(
        Listed(items),
        0,
        output(tmp_path),
        crashed={1},
        limit=3,
        watch=lambda index, has_read: seen.append((index, has_read)),
    )
    assert result.ok.tolist() == [True, False, True, False, False]
    assert [reason for _, reason, _ in result.refused] == ["damaged", "unreadable", "unreadable"]
    assert seen == [(i, has_read) for i in range(3) for has_read in (False, True)]


def test_an_empty_block_is_empty(tmp_path: Path) -> None:
    assert len(read_block(Listed([]), 0, output(tmp_path)).ok) == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 5)).map(
                lambda shape: np.zeros(shape, np.uint8)  # also of sides and channels that cannot be
            ),
            st.sampled_from(REASONS).map(lambda reason: UnusableError(reason, "as the payload says")),
        ),
        max_size=6,
    )
)
def test_any_items_are_rows_or_refusals(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> None:
    out = output(tmp_path_factory.mktemp("any"))
    result = read_block(Listed(items), 0, out)
    refused = {index for index, _, _ in result.refused}
    assert refused == set(np.flatnonzero(~result.ok).tolist())
    assert all(reason in REASONS for _, reason, _ in result.refused)
    assert len(out.squares) == len(out.thumbs) == len(items)
    out.squares.close()
    out.thumbs.close()


def test_grey_and_rgb_squares(tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    encoded = png(noise(8, 8))
    for color, folder in (("grey", tmp_path / "grey"), ("rgb", tmp_path)):
        out = output(folder, 8, color)
        read_block(Listed([encoded]), 0, out)
        assert (out.squares.take(np.array([0]))[0] == to_square(decode(encoded), 8, color)).all()


@pytest.fixture(params=["by position", "by seeking"])
def file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RowFile]:
    if request.param == "by seeking":  # as on Windows
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    with RowFile(tmp_path / "rows", (4, 3)) as opened:
        yield opened


def test_rows_come_back_in_any_order(file: RowFile) -> None:
    file.write(0, ROWS)
    assert len(file) == 50
    places = np.array([3, 4, 5, 49, 0, 1, 7, 6, 6, 9])
    assert (file.take(places) == ROWS[places]).all()
    assert (file.take(np.arange(50)) == ROWS).all()
    assert file.take(np.array([], np.int64)).shape == (0, 4, 3)


def test_rows_can_be_written_in_any_order_and_through_other_handles(file: RowFile, tmp_path: Path) -> None:
    with RowFile(tmp_path / "rows", (4, 3)) as other:
        other.write(30, ROWS[30:])
    file.write(0, ROWS[:10])
    assert (file.take(np.array([5, 35])) == ROWS[[5, 35]]).all()
    assert not file.take(np.array([20])).any()  # nobody wrote it


def test_strided_rows_are_written_as_they_look(file: RowFile) -> None:
    file.write(0, ROWS[::-2])
    assert (file.take(np.arange(25)) == ROWS[::-2]).all()


@pytest.mark.parametrize("place", [-1, 50])
def test_there_is_no_row_outside(file: RowFile, place: int) -> None:
    file.write(0, ROWS)
    with pytest.raises(IndexError):
        file.take(np.array([0, place]))


@pytest.mark.parametrize("rows", [ROWS[:, :3], ROWS.astype(np.int16)])
def test_rows_of_another_kind_are_refused(file: RowFile, rows: np.ndarray) -> None:
    with pytest.raises(ValueError, match="in a file of"):
        file.write(0, rows)
