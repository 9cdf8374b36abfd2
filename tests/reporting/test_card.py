from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import errors
from stages.dataset.ids import hex_ids
from stages.reporting.card import choose_examples, render, write_card
from stages.reporting.card_sections import REASONS, Card
from stages.reporting.figures import thumbnail
from stages.reporting.rendering import png_uri

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes and the visible text; closing tags have to match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.text += " " if tag != "bdi" else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())

    @property
    def pictures(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def table(columns, rows=()):
    return pd.DataFrame(list(rows), columns=columns.split())


IDS = hex_ids(np.arange(1, 9, dtype=np.uint64))
SAMPLES = ["train"] * 4 + ["val", "test", "test", "unlabeled"]


def picture(sample_ids):
    return np.stack([np.full((16, 16, 1), 20 * IDS_AT[key], np.uint8) for key in sample_ids])


IDS_AT = {key: at for at, key in enumerate(IDS)}


@pytest.fixture
def card():
    counts = [(HOSTILE, "train", 3), ("cat", "train", 1), ("cat", "val", 1), (HOSTILE, "test", 2)]
    labels = [HOSTILE, HOSTILE, HOSTILE, "cat", "cat", HOSTILE, HOSTILE, None]
    return Card(
        source="data/raw/mine",
        kind="class folders with test",
        notes=["3 hidden files were passed over"],
        warnings=["class 'emu' has no usable image and is left out"],
        summary={
            "files": 13,
            "images": 8,
            "splits": {"train": 4, "val": 1, "test": 2, "unlabeled": 1},
            "splits_brought_by_source": ["test"],
            "splits_frozen": 2,
            "splits_frozen_absent": 0,
            "groups": 1,
            "planted": None,
        },
        counts=table("class split count", [*counts, (None, "unlabeled", 1)]),
        sizes=table("width height count", [(640, 480, 7), (10, 60, 6)]),
        channels=table(
            "split channel mean std", [("train", "grey", 127.5, 51.0), ("val", "grey", np.nan, np.nan)]
        ),
        duplicates=table(
            "sample_id source label split kept_id kept_source",
            [("f" * 16, f"{HOSTILE}/copy{i}.png", HOSTILE, "train", IDS[0], "x/kept.png") for i in range(2)],
        ),
        near_duplicates=table(
            "sample_id source label split set nearest_id similarity outcome",
            [
                (IDS[1], "a/1.png", HOSTILE, "train", 0, IDS[2], 0.95, "grouped"),
                (IDS[2], "a/2.png", "cat", "train", 0, IDS[1], 0.95, "grouped"),
                ("e" * 16, "train/leak.png", "cat", "train", 1, IDS[5], 0.99, "left_out"),
                (IDS[5], "test/b.png", "cat", "test", 1, "e" * 16, 0.99, "kept"),
            ],
        ),
        conflicts=table(
            "sample_id label source", [(IDS[7], "cat", "cat/u.png"), (IDS[7], HOSTILE, "other/u.png")]
        ),
        quarantine=table(
            "path reason detail",
            [
                (f"{HOSTILE}.png", "not_an_image", HOSTILE),
                ("other/u.png", "conflicting_labels", "cat, other; cat/u.png is kept"),
                ("train/leak.png", "leakage", "near to test/b.png in test"),
            ],
        ),
        examples=table("sample_id split label", zip(IDS, SAMPLES, labels, strict=True)),
        read_images=picture,
        image_size=16,
        resize="crop",
        color="grey",
        val_share=0.2,
        test_share=0.1,
    )


def empty(card):
    names = (
        "counts",
        "sizes",
        "channels",
        "duplicates",
        "near_duplicates",
        "conflicts",
        "quarantine",
        "examples",
    )
    nothing = {name: getattr(card, name).head(0) for name in names}
    return dataclasses.replace(card, summary={}, notes=[], warnings=[], **nothing)


def test_tells_what_came_in_and_where_it_went(card):
    words = Page(render(card)).words
    for said in (
        "8 images of 2 classes",
        "From data/raw/mine, read as class folders with test.",
        "13 met in the source = 8 samples samples.parquet + 2 exact duplicates collapsed duplicates.parquet "
        "+ 3 in quarantine quarantine.parquet",
        "Every file is in exactly one of these tables.",
        "1 warning class 'emu' has no usable image and is left out",
        "3 hidden files were passed over",
        "In training the largest class has 3 times the images of the smallest",
        "1 image has no label",
        "test 2 28.6 % as the source brings it",
        "val 1 14.3 % dealt, class by class: 20.0 % wanted of 5, 20.0 % reached",
        "2 keep the split that data/splits.csv gives them.",
        "1 group of near-duplicates",
        "640 × 480 7 53.8 %",
        "46.2 % are enlarged",
        "127.5 ± 51.0 0.5000 ± 0.2000",
        "2 copies of 1 image collapsed",
        "x/kept.png is kept, of 3",
        "1 image is claimed by several classes",
        "4 images in 2 sets. None is in more than one of train, val and test. 1 set has several labels",
        "train/leak.png leakage: near to test/b.png in test",
        REASONS["not_an_image"][0],
    ):
        assert said in words
    assert "of data/splits.csv are for samples" not in words  # none were


def test_a_file_that_is_in_no_table_is_said_out_loud(card):
    card.summary["files"] = 14
    words = Page(render(card)).words
    assert "The sum is -1 off." in words
    assert "Every file is in exactly one of these tables" not in words


def test_what_simulate_took_away_is_accounted_for(card):
    card.summary.update(files=18, planted={"train": {"removed": 4, "wrong_labels": 9}, "val": {"removed": 1}})
    words = Page(render(card)).words
    assert "5 taken away by simulate truth.parquet" in words
    assert "Every file is in exactly one of these tables" in words


def test_names_are_text_and_never_markup(card):
    hostile = dataclasses.replace(card, source=HOSTILE, kind=HOSTILE, notes=[HOSTILE], warnings=[HOSTILE])
    text = render(hostile)
    page = Page(text)
    assert page.text.count(HOSTILE) > 10
    assert "script" not in {tag for tag, _ in page.tags}
    assert any(HOSTILE in attributes["alt"] for attributes in page.pictures)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_long_and_unprintable_names_are_cut(card):
    card.quarantine.loc[0, "path"] = "\x1b[31m" + "x" * 5000
    text = render(card)
    assert "\x1b" not in text
    assert "x" * 200 not in text


def test_needs_nothing_else_and_runs_no_scripts(card):
    page = Page(render(card))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert all(attributes["alt"] for attributes in page.pictures)


def test_every_link_in_the_page_has_its_target(card):
    page = Page(render(card))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {
        attributes["href"].removeprefix("#") for _, attributes in page.tags if "href" in attributes
    } == targets


def test_shows_the_examples_and_what_there_is_of_the_duplicates(card):
    shown = [attributes["alt"] for attributes in Page(render(card)).pictures]
    for key, split in zip(IDS, SAMPLES, strict=True):
        assert any(alt.endswith(f", {split}, {key}") for alt in shown)
    assert f"near-duplicate, train, {IDS[1]}" in shown
    assert not any("e" * 16 in alt for alt in shown)  # left out, so not in the base
    assert shown.count("the image of another split") == 1
    assert shown.count("an image under several labels") == 1


def test_leaves_out_pictures_that_are_not_in_the_base(card):
    def without(sample_ids):
        if IDS[3] in sample_ids:
            raise KeyError(IDS[3])
        return picture(sample_ids)

    shown = [
        attributes["alt"]
        for attributes in Page(render(dataclasses.replace(card, read_images=without))).pictures
    ]
    assert not any(IDS[3] in alt for alt in shown)
    assert any(IDS[4] in alt for alt in shown)


def test_sets_in_several_splits_are_counted(card):
    assert "is in several splits" not in Page(render(card)).words
    summary = {**card.summary, "near_duplicate_sets_in_several_splits": 1}
    assert "1 is in several splits" in Page(render(dataclasses.replace(card, summary=summary))).words


def test_copes_without_anything(card, tmp_path):
    words = Page(render(empty(card))).words
    assert "0 images of 0 classes" in words
    assert "No file was refused" in words
    write_card(tmp_path, empty(card))


@pytest.mark.parametrize(
    "key", ["files", "images", "splits", "splits_brought_by_source", "groups", "planted"]
)
def test_copes_without_one_key_of_the_summary(card, key):
    del card.summary[key]
    assert "8 images of 2 classes" in Page(render(card)).words


def test_many_classes_are_cut_to_the_largest_and_the_smallest(card):
    counts = table("class split count", [(f"c{i}", "train", 10_000 - i) for i in range(10_000)])
    page = Page(render(dataclasses.replace(card, counts=counts)))
    assert "and 9,970 more between these: reports/ingest/class_counts.csv" in page.words
    shown = re.findall(r"\bc\d+\b", page.text[: page.text.index("how it came about")])
    assert shown[-30:] == [f"c{i}" for i in [*range(20), *range(9990, 10_000)]]


def test_long_tables_are_cut_and_say_so(card):
    rows = [(f"{i:03}.png", "damaged", "cut off") for i in range(350)]
    many = dataclasses.replace(card, quarantine=table("path reason detail", rows))
    page = Page(render(many))
    assert "019.png" in page.words
    assert "020.png" not in page.words
    assert "and 330 more rows in reports/ingest/quarantine.parquet" in page.words
    assert "damaged 350" in page.words


@pytest.mark.parametrize(
    ("resize", "sizes", "enlarged", "hint"),
    [
        ("crop", [(8, 40, 9), (20, 20, 1)], "90.0 % are enlarged", "a smaller image_size"),
        ("pad", [(8, 40, 9), (8, 8, 1)], "10.0 % are enlarged", None),
        ("crop", [(100, 300, 9)], "0.0 % are enlarged", "cropping keeps half of them or less"),
        ("stretch", [(300, 100, 9)], "0.0 % are enlarged", "squeezed into squares"),
        ("crop", [(100, 110, 9)], "0.0 % are enlarged", None),
    ],
)
def test_says_what_resizing_does(card, resize, sizes, enlarged, hint):
    changed = dataclasses.replace(card, resize=resize, sizes=table("width height count", sizes))
    words = Page(render(changed)).words
    assert enlarged in words
    hints = ("a smaller image_size", "cropping keeps half of them or less", "squeezed into squares")
    assert [said for said in hints if said in words][:1] == ([hint] if hint else [])


def test_one_size_needs_no_chart(card):
    one = dataclasses.replace(card, sizes=table("width height count", [(32, 32, 9)]))
    words = Page(render(one)).words
    assert "All images have one size." in words
    assert "Darker is more images" not in words


def test_the_median_counts_images_not_sizes(card):
    sizes = table("width height count", [(10, 10, 100), (20, 20, 1), (30, 30, 1)])
    assert "10 to 30 pixels, median 10" in Page(render(dataclasses.replace(card, sizes=sizes))).words


def test_writes_the_page_and_two_pictures_always_the_same(card, tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_card(tmp_path / name, card)
        files = sorted((tmp_path / name).iterdir())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["data_card.html", "samples.png", "sizes.png"]
    for name in ("samples.png", "sizes.png"):
        with Image.open(tmp_path / "a" / name) as image:
            image.load()
            assert image.format == "PNG"
    assert written[0]["data_card.html"].decode() == render(card)


def test_every_reason_is_explained():
    assert list(REASONS) == list(errors.REASONS)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_thumbnail_keeps_its_pixels_and_a_large_one_is_reduced(channels):
    def pixels(picture):
        return np.asarray(picture.convert("RGB"))

    image = np.random.default_rng(0).integers(0, 255, (9, 9, channels)).astype(np.uint8)
    assert (pixels(thumbnail(image, 9, enlarge=False)) == np.broadcast_to(image, (9, 9, 3))).all()
    assert pixels(thumbnail(np.repeat(image, 20, axis=0), 60, enlarge=False)).shape == (60, 3, 3)


# --- choosing ----------------------------------------------------------------------------------


def choose(label, **bounds):
    label = np.asarray(label, np.int32)
    ids = np.random.default_rng(0).permutation(len(label)).astype(np.uint64)
    split = np.where(label < 0, 3, 0).astype(np.int8)
    names = [f"c{i}" for i in range(label.max(initial=-1) + 2)]
    return choose_examples(ids, label, split, names, **bounds), ids


def test_the_smallest_ids_of_each_class_are_shown_whatever_the_order():
    label = np.array([0] * 20 + [1] * 30 + [-1] * 10)
    chosen, ids = choose(label, each=4)
    assert chosen["label"].fillna("").tolist() == ["c1"] * 4 + ["c0"] * 4 + [""] * 4
    assert chosen["sample_id"].tolist() == [
        key for code in (1, 0, -1) for key in hex_ids(np.sort(ids[label == code])[:4])
    ]
    assert chosen["split"].tolist() == ["train"] * 8 + ["unlabeled"] * 4
    other = np.random.default_rng(1).permutation(len(label))
    again = choose_examples(
        ids[other],
        label[other].astype(np.int32),
        np.where(label < 0, 3, 0).astype(np.int8)[other],
        ["c0", "c1"],
        each=4,
    )
    pd.testing.assert_frame_equal(chosen, again)


def test_of_many_classes_the_largest_and_the_smallest_are_shown():
    label = np.repeat(np.arange(9), np.arange(9, 0, -1))
    chosen, _ = choose(label, most_classes=4, each=1)
    assert chosen["label"].tolist() == ["c0", "c1", "c7", "c8"]


def test_small_classes_are_shown_whole_and_empty_ones_not_at_all():
    chosen, _ = choose([0, 0, 2], each=8)
    assert chosen["label"].tolist() == ["c0", "c0", "c2"]
    assert choose([], each=8)[0].empty


def test_pictures_are_asked_for_once_in_a_batch(card):
    asked = []
    counted = dataclasses.replace(card, read_images=lambda ids: asked.append(list(ids)) or picture(ids))
    assert list(counted.images([IDS[0], IDS[1], IDS[0]])) == [IDS[0], IDS[1]]
    assert asked == [[IDS[0], IDS[1]]]
    assert counted.images([]) == {}
    assert png_uri(b"x") == "data:image/png;base64,eA=="
