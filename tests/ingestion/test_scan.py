"""Reading a whole source, good items and bad."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from awkward import Deadly, Item, Listed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.dataset.ids import SPLITS
from stages.errors import WinnowError
from stages.images.decode import to_square
from stages.ingestion import scan as module
from stages.ingestion.blocks import BlockResult, Shape, thumbnail
from stages.ingestion.items import NO_LABEL, NO_SPLIT, SPLIT_CODE
from stages.ingestion.scan import Scan, _next_size, scan, start_pool
from stages.ingestion.source import Block, Quarantined, Source, only_refused

COLUMNS = (
    "place sample_id pixel_key perceptual flat label split group weight width height".split()  # noqa: SIM905
)


@dataclass
class Rows:
    """A source of given blocks."""

    given: list[Block]
    classes: Sequence[str] = ()
    kind: str = "rows"
    notes: Sequence[str] = ()
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = sum(len(block.payload) for block in self.given)

    def blocks(self) -> Iterator[Block]:
        """The blocks."""
        return iter(self.given)


def block(items: list[Item], names: list[str] | None = None, **columns: list) -> Block:
    count = len(items)
    return Block(
        names=names or [f"{id(items) % 97}/{i}.png" for i in range(count)],
        labels=columns.get("labels", ["a"] * count),
        splits=columns.get("splits", [None] * count),
        groups=columns.get("groups", [None] * count),
        weights=columns.get("weights", [1.0] * count),
        payload=Listed(items),
        refused=columns.get("refused", []),
    )


def noise(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read(source: Source, folder: Path, workers: int | None = 0) -> Scan:
    return scan(source, folder, Shape(8, "rgb"), workers=workers)


def many() -> Rows:
    blocks = []
    for start in range(0, 600, 50):
        seeds = range(start, start + 50)
        items: list[Item] = [b"not an image" if seed % 100 == 7 else png(noise(seed)) for seed in seeds]
        labels = ["ab"[seed % 2] for seed in seeds]
        blocks.append(block(items, [f"{seed:03d}.png" for seed in seeds], labels=labels))
    return Rows(blocks)


def test_good_items_are_found_and_bad_ones_named(tmp_path: Path) -> None:
    result = read(many(), tmp_path)
    found = result.items
    assert len(found) == 594
    assert [row.path for row in result.quarantine] == [f"{i}07.png" for i in range(6)]
    assert {row.reason for row in result.quarantine} == {"not_an_image"}
    assert set(found.width.tolist()) == {9}
    assert set(found.height.tolist()) == {6}
    assert found.sources() == [f"{place:03d}.png" for place in found.place]
    for row in (0, 7, 593):
        pixels = noise(int(found.place[row]))
        assert (result.squares.take(found.place[row : row + 1])[0] == to_square(pixels, 8, "rgb")).all()
        assert (result.thumbs.take(found.place[row : row + 1])[0] == thumbnail(pixels)).all()


def test_columns_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read(many(), tmp_path)
    monkeypatch.setattr(module, "_PIECE", 16)
    found = read(many(), tmp_path).items
    assert found.names.num_chunks > 1
    assert found.sources() == plain.items.sources()
    for name in COLUMNS:
        assert (getattr(found, name) == getattr(plain.items, name)).all()


@pytest.mark.parametrize("workers", [1, 3, None])
def test_the_number_of_processes_changes_nothing(tmp_path: Path, workers: int | None) -> None:
    plain, result = read(many(), tmp_path / "plain"), read(many(), tmp_path / "other", workers)
    assert result.quarantine == plain.quarantine
    assert result.items.classes == plain.items.classes
    assert result.items.names.equals(plain.items.names)
    for name in COLUMNS:
        assert (getattr(result.items, name) == getattr(plain.items, name)).all()
        assert getattr(result.items, name).dtype == getattr(plain.items, name).dtype
    assert result.squares.path.read_bytes() == plain.squares.path.read_bytes()
    assert result.thumbs.path.read_bytes() == plain.thumbs.path.read_bytes()


def test_processes_take_over_where_few_items_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read(many(), tmp_path / "plain")
    clock = itertools.count()  # each look at it is a second: a machine may be quick, or busy
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(module, "_PATIENCE", 20)
    used = []
    pool = module.Pool
    monkeypatch.setattr(module, "Pool", lambda *settings: used.append(1) or pool(*settings))
    result = read(many(), tmp_path / "other", None)
    assert used
    assert (result.items.sample_id == plain.items.sample_id).all()
    assert result.squares.path.read_bytes() == plain.squares.path.read_bytes()


def test_known_classes_come_first_and_later_ones_sorted(tmp_path: Path) -> None:
    labels = ["zebra", None, "ant", "dog", "cat", "bee"]
    items: list[Item] = [noise(seed) for seed in range(6)]
    items[5] = b"no image: its class is nowhere"
    result = read(Rows([block(items, labels=labels)], classes=("dog", "cow")), tmp_path).items
    assert result.classes == ["dog", "cow", "ant", "cat", "zebra"]
    assert [result.classes[code] if code != NO_LABEL else None for code in result.label] == labels[:5]


def test_splits_groups_and_weights_are_taken_over(tmp_path: Path) -> None:
    splits = ["train", "val", "test", "unlabeled", None]
    first = block(
        [noise(seed) for seed in range(5)],
        splits=splits,
        groups=["p1", None, "p2", "p1", ""],
        weights=[0.0, 0.5, 1.0, 2.0, 1e-3],
    )
    found = read(Rows([first, block([noise(9)], groups=["p1"])]), tmp_path).items
    assert found.split.tolist() == [*(SPLIT_CODE[name] for name in SPLITS), NO_SPLIT, NO_SPLIT]
    assert found.group[0] == found.group[3] == found.group[5]
    assert found.group[1] == 0
    assert len({0, *found.group.tolist()}) == 4
    assert found.weight.tolist() == pytest.approx([0.0, 0.5, 1.0, 2.0, 1e-3, 1.0])


def test_what_the_reader_refused_stands_beside_what_could_not_be_decoded(tmp_path: Path) -> None:
    link = Quarantined("b.png", "outside_source", "a link")
    twice = Quarantined("a.png", "bad_row", "line 3")
    blocks = [
        only_refused([link]),
        block([b"words", noise(1)], ["a.png", "c.png"], refused=[twice]),
    ]
    result = read(Rows(blocks), tmp_path)
    assert [(row.path, row.reason) for row in result.quarantine] == [
        ("a.png", "bad_row"),
        ("a.png", "not_an_image"),
        ("b.png", "outside_source"),
    ]
    assert result.items.sources() == ["c.png"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_empty_source_has_empty_columns(tmp_path: Path, workers: int) -> None:
    result = read(Rows([]), tmp_path, workers)
    assert len(result.items) == len(result.items.names) == 0
    assert result.items.label.dtype == np.int32
    assert result.quarantine == []


def test_an_item_that_kills_a_process_is_a_row_of_the_quarantine(tmp_path: Path) -> None:
    items: list[Item] = [noise(0), Deadly(), noise(2)]
    result = read(Rows([block(items, ["0.png", "1.png", "2.png"])]), tmp_path, workers=1)
    assert result.items.sources() == ["0.png", "2.png"]
    assert [(row.path, row.reason) for row in result.quarantine] == [("1.png", "damaged")]


def test_what_was_in_the_scratch_folder_is_written_over(tmp_path: Path) -> None:
    read(many(), tmp_path)
    result = read(Rows([block([noise(1)])]), tmp_path)
    assert len(result.squares) == len(result.thumbs) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_source_ends_the_scan(tmp_path: Path, workers: int) -> None:
    class Broken(Rows):
        def blocks(self) -> Iterator[Block]:
            yield from self.given
            raise WinnowError("the archive ends here")

    with pytest.raises(WinnowError, match="ends here"):
        read(Broken([block([noise(1)])]), tmp_path, workers)


def test_a_full_disk_is_said_in_this_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "read_block", full)
    with pytest.raises(WinnowError, match="No space left on device"):
        read(Rows([block([noise(1)])]), tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.one_of(st.binary(max_size=40), st.just(png(noise(3)))), max_size=4), max_size=4))
def test_every_item_ends_in_exactly_one_table(
    tmp_path_factory: pytest.TempPathFactory, content: list[list[Item]]
) -> None:
    blocks = [
        block(items, [f"{number}/{i}" for i in range(len(items))]) for number, items in enumerate(content)
    ]
    result = read(Rows(blocks), tmp_path_factory.mktemp("any"))
    for file in (result.squares, result.thumbs):
        file.close()
    ends = result.items.sources() + [row.path for row in result.quarantine]
    assert sorted(ends) == sorted(name for one in blocks for name in one.names)


@pytest.mark.parametrize(
    ("seconds", "before", "after"),
    [(0.004, 16, 32), (4.0, 16, 1), (0.25, 16, 16), (100.0, 1, 1), (0.0, 200, 256), (0.0001, 128, 256)],
)
def test_pieces_take_a_quarter_of_a_second(seconds: float, before: int, after: int) -> None:
    ok = np.ones(before, np.bool_)
    empty = np.zeros(before, np.uint64)
    result = BlockResult(ok, empty, empty, empty, ok, empty, empty, [], seconds)
    assert _next_size(result, before) == after


def test_a_pool_that_was_started_beforehand_gives_the_same(tmp_path: Path) -> None:
    shape = Shape(8, "grey", "pad")
    with start_pool(tmp_path / "before", shape) as pool:
        scanned = scan(many(), tmp_path / "before", shape, pool=pool)
    plain = scan(many(), tmp_path / "after", shape, workers=0)
    places = plain.items.place
    assert (scanned.squares.take(places) == plain.squares.take(places)).all()
    assert (scanned.thumbs.take(places) == plain.thumbs.take(places)).all()
    assert scanned.quarantine == plain.quarantine
    assert (scanned.items.sample_id == plain.items.sample_id).all()


def test_second_labels_are_coded_by_their_sorted_names(tmp_path: Path) -> None:
    first, second = block([noise(1), b"no image", noise(2)]), block([noise(3), noise(4)])
    first = replace(first, second_labels=["wool", "felt", None])
    second = replace(second, second_labels=["silk", "wool"])
    found = read(Rows([first, only_refused([]), second]), tmp_path / "a").items
    assert found.second_classes == ["silk", "wool"]
    names = [found.second_classes[code] if code >= 0 else None for code in found.second]
    assert names == ["wool", None, "silk", "wool"]
    assert found.second.dtype == np.int32
    plain = read(Rows([block([noise(1)])]), tmp_path / "b").items
    assert (plain.second, plain.second_classes) == (None, [])
