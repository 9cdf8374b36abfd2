"""The figures of a comparison: they add up, and say who decided.

What the console shows.
"""

from __future__ import annotations

import pandas as pd
from version_tables import ledger_of, samples_of

from stages.versions.comparison import Comparison, compare
from stages.versions.summary import by_class, by_label, by_reason, describe
from stages.versions.version import make_version

BEFORE = samples_of(
    {"a": "train cat", "b": "train cat", "c": "train dog", "d": "test dog", "e": "val cat", "u": "unlabeled"}
)


AFTER = samples_of(
    {
        "a": "train cat",
        "b": "train cat",
        "c": "train dog",
        "d": "test cat",
        "u": "unlabeled",
        "n": "train eel",
    },
    {"c": 2.0},
)

LEDGER = ledger_of(BEFORE, b=("drop", None, "outlier", "policy"))

LATER = ledger_of(
    AFTER,
    a=("relabel", "dog", "label_error", "policy"),
    u=("relabel", "eel", "clearly an eel", "reviewer"),
)

BASE = samples_of({"a": "train cat", "b": "train dog", "c": "val cat", "d": "test dog"})


def compared() -> Comparison:
    return compare(make_version("A", BEFORE, LEDGER), make_version("B", AFTER, LATER))


def counts(table: pd.DataFrame) -> dict[tuple, dict[str, int]]:
    """The cells that are not zero, by split and class."""
    return {
        (row["split"], None if pd.isna(row["class"]) else row["class"]): {
            name: count for name, count in row.items() if name not in ("split", "class") and count
        }
        for row in table.to_dict("records")
    }


def test_by_class() -> None:
    table = by_class(compared())
    assert counts(table) == {
        ("train", "cat"): {"before": 1, "after": 1, "taken_back": 1, "relabelled_out": 1},
        ("train", "dog"): {"before": 1, "after": 2, "relabelled_in": 1, "reweighted": 1},
        ("train", "eel"): {"after": 2, "added": 1, "moved_in": 1, "relabelled_in": 1},
        ("val", "cat"): {"before": 1, "removed": 1},
        ("test", "cat"): {"after": 1, "relabelled_in": 1},
        ("test", "dog"): {"before": 1, "relabelled_out": 1},
        ("unlabeled", None): {"before": 1, "moved_out": 1, "relabelled_out": 1},
    }
    assert table["split"].drop_duplicates().tolist() == ["train", "val", "test", "unlabeled"]


def test_what_comes_and_goes_explains_the_difference() -> None:
    """Where nobody changed in two ways at once."""
    table = by_class(compared())
    table = table[table["class"].isin(["cat", "dog"])]
    came = table[["added", "taken_back", "moved_in", "relabelled_in"]].sum(axis=1)
    went = table[["removed", "dropped", "moved_out", "relabelled_out"]].sum(axis=1)
    assert (table["before"] + came - went == table["after"]).all()


def test_a_drop_is_counted_where_the_sample_was() -> None:
    ledger = ledger_of(BEFORE, a=("relabel", "dog", "label_error", "policy"))
    dropped = ledger_of(BEFORE, a=("drop", None, "label_error", "policy"))
    table = by_class(compare(make_version("A", BEFORE, ledger), make_version("B", BEFORE, dropped)))
    assert counts(table)["train", "dog"] == {"before": 2, "after": 1, "dropped": 1}
    assert counts(table)["train", "cat"] == {"before": 1, "after": 1}


def test_new_and_dropped_is_counted_as_both() -> None:
    ledger = ledger_of(AFTER, n=("drop", None, "label_error", "policy"))
    table = by_class(compare(make_version("A", AFTER[:-1]), make_version("B", AFTER, ledger)))
    assert counts(table)["train", "eel"] == {"added": 1, "dropped": 1}


def test_by_reason() -> None:
    assert by_reason(compared()).to_numpy().tolist() == [
        ["added", "", "ingest", 1],
        ["removed", "", "ingest", 1],
        ["taken_back", "no longer outlier", "policy", 1],
        ["moved", "unlabeled → train", "reviewer", 1],
        ["relabelled_at_ingest", "", "ingest", 1],
        ["relabelled", "label_error", "policy", 1],
        ["relabelled", "reviewed", "reviewer", 1],
        ["reweighted", "", "ingest", 1],
    ]


def test_reviewers_notes_are_one_reason_and_the_most_frequent_comes_first() -> None:
    ledger = ledger_of(
        BEFORE,
        a=("drop", None, "label_error", "policy"),
        b=("drop", None, "blurred", "reviewer"),
        c=("drop", None, "no animal", "reviewer"),
    )
    there = by_reason(compare(make_version("A", BEFORE), make_version("B", BEFORE, ledger)))
    assert there.to_numpy().tolist() == [
        ["dropped", "reviewed", "reviewer", 2],
        ["dropped", "label_error", "policy", 1],
    ]
    back = by_reason(compare(make_version("A", BEFORE, ledger), make_version("B", BEFORE)))
    assert back.to_numpy().tolist() == [
        ["taken_back", "no longer reviewed", "reviewer", 2],
        ["taken_back", "no longer label_error", "policy", 1],
    ]


def test_a_move_by_ingest_is_no_reviewers() -> None:
    after = BEFORE.assign(split=BEFORE["split"].replace("val", "train"))
    ledger = ledger_of(after, e=("keep", None, "fine", "reviewer"))
    table = by_reason(compare(make_version("A", BEFORE), make_version("B", after, ledger)))
    assert table.to_numpy().tolist() == [["moved", "val → train", "ingest", 1]]


def test_by_label() -> None:
    table = by_label(compared())
    assert table.dropna().to_numpy().tolist() == [["cat", "dog", 1], ["dog", "cat", 1]]
    assert table[table["before"].isna()]["after"].tolist() == ["eel"]


def test_given_labels_that_changed_to_no_effect() -> None:
    """a: the ledger says the same of both; b: dropped now; c: taken back, so its new label counts."""
    after = BEFORE.assign(label=["dog", "dog", "eel", *BEFORE["label"][3:]])
    old = ledger_of(BEFORE, a=("relabel", "dog", "label_error", "policy"), c=("drop", None, "x", "policy"))
    new = ledger_of(after, b=("drop", None, "outlier", "policy"))
    result = compare(make_version("A", BEFORE, old), make_version("B", after, new))
    assert by_label(result, given=True).to_numpy().tolist() == [["cat", "dog", 2]]
    assert by_label(result).empty


def test_nothing_changed() -> None:
    same = make_version("A", BEFORE)
    result = compare(same, same)
    assert by_reason(result).empty
    assert by_label(result).empty
    assert by_class(result)[["before", "after"]].sum().tolist() == [6, 6]


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
