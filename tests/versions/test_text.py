"""What the console shows."""

from __future__ import annotations

import pandas as pd
from version_tables import ledger_of, samples_of

from stages.versions.comparison import compare
from stages.versions.text import describe
from stages.versions.version import make_version

BASE = samples_of({"a": "train cat", "b": "train dog", "c": "val cat", "d": "test dog"})


def lines(before: tuple, after: tuple, out: str | None = None) -> list[str]:
    return describe(compare(make_version("A", *before), make_version("B", *after)), out).split("\n")


def test_a_small_difference_is_read_at_a_glance() -> None:
    ledger = ledger_of(
        BASE, a=("relabel", "dog", "label_error", "policy"), b=("drop", None, "blurred", "reviewer")
    )
    text = lines((BASE, ledger_of(BASE)), (BASE, ledger))
    assert text[0:2] == ["A  A: 4 samples, 0 of them dropped", "B  B: 4 samples, 1 of them dropped"]
    assert "2 samples changed from A to B" in text
    table = text[text.index("Samples in use, and what happened to how many") + 1 :]
    assert [line.split() for line in table[:7]] == [
        ["in", "A", "in", "B", "dropped", "relabelled"],
        [table[1].strip()],
        ["train", "2", "1", "1", "-1", "+1"],
        ["cat", "1", "0", "-1"],
        ["dog", "1", "1", "1", "+1"],
        ["val", "1", "1"],
        ["test", "1", "1"],
    ]
    assert "  dropped     reviewer          1  reviewed" in text
    assert "  relabelled  policy            1  label_error" in text
    assert "Labels: cat → dog (1)" in text
    assert not any("do not compare" in line for line in text)


def test_no_difference_and_no_ledger() -> None:
    text = lines((BASE,), (BASE,))
    assert "No sample differs" in text
    assert sum("note: it has no ledger" in line for line in text) == 2
    assert not any(line.startswith(("Why", "Samples in use", "Labels")) for line in text)


def test_changes_without_effect_make_no_table() -> None:
    after = BASE.assign(label=["dog", *BASE["label"][1:]])
    ledger = ledger_of(BASE, a=("relabel", "dog", "label_error", "policy"))
    text = lines((BASE, ledger), (after, ledger_of(after)))
    assert "1 sample changed from A to B" in text
    assert "What is in use is the same in A and B: samples, splits, labels and weights." in text
    assert "Samples in use, and what happened to how many" not in text
    assert "  relabelled at ingest  ingest            1" in text
    assert "Given labels, to no effect: cat → dog (1)" in text


def test_another_test_split_is_pointed_out() -> None:
    text = lines((BASE,), (BASE[:3],))
    assert "The test split is another one: scores on A's and on B's do not compare." in text


def test_many_classes_and_reasons_are_cut_with_a_pointer_to_the_rest() -> None:
    many = samples_of({f"s{i}": f"train class {i:02}" for i in range(50)})
    ledger = ledger_of(many, **{f"s{i}": ("drop", None, f"reason {i}", "policy") for i in range(50)})
    text = lines((many,), (many, ledger), "changes.parquet")
    assert "  … and 30 more classes; all of them: changes.parquet" in text
    assert "  … and 30 for 30 more reasons; all of them: changes.parquet" in text
    assert len(text) < 60


def test_names_cannot_write_to_the_terminal() -> None:
    evil = samples_of({"a": "train \x1b[2Jcat\nB  fake"})
    ledger = ledger_of(evil, a=("drop", None, "\x1b]0;x\x07", "policy"))
    text = "\n".join(lines((evil,), (evil, ledger)))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\nB  fake" not in text


def test_made_images_are_counted() -> None:
    before = make_version("A", BASE, made={"augmented": pd.Series(["cat", "cat"])})
    made = {"augmented": pd.Series(["cat", "dog", "dog", "dog"]), "synthetic": pd.Series(["dog"])}
    text = describe(compare(before, make_version("B", BASE, made=made))).split("\n")
    assert "augmented images: 2 → 4 (dog +3, cat -1)" in text
    assert "synthetic images: none → 1" in text
