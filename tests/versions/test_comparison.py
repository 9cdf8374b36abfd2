"""Which samples differ, and in what: against rules written out row by row."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from version_tables import ledger_of, samples_of

from stages.versions.comparison import CHANGE_COLUMNS, KINDS, Comparison, compare
from stages.versions.version import make_version

BASE = samples_of({"a": "train cat", "b": "train dog", "c": "val cat", "d": "test dog", "u": "unlabeled"})


def between(before: tuple, after: tuple) -> Comparison:
    return compare(make_version("A", *before), make_version("B", *after))


def changes(before: tuple, after: tuple) -> dict[str, str]:
    table = between(before, after).changes
    return dict(zip(table["sample_id"], table["change"], strict=True))


def test_a_version_does_not_differ_from_itself_in_another_order() -> None:
    ledger = ledger_of(BASE, a=("drop", None, "label_error", "policy"))
    result = between((BASE, ledger), (BASE[::-1], ledger.sample(frac=1, random_state=0)))
    assert result.changes.empty
    assert list(result.changes.columns) == CHANGE_COLUMNS
    assert result.same_effect == 0
    assert not result.other_test_set


def test_what_ingest_changed() -> None:
    after = samples_of(
        {"n": "train cat", "a": "val cat", "b": "train cat", "d": "test dog", "u": "unlabeled"}, {"d": 2.0}
    )
    assert changes((BASE,), (after,)) == {
        "n": "added",
        "a": "moved",
        "b": "relabelled_at_ingest",
        "d": "reweighted",
        "c": "removed",
    }


def test_what_curation_changed() -> None:
    before = ledger_of(BASE, a=("drop", None, "outlier", "policy"), b=("reweight", 0.5, "outlier", "policy"))
    after = ledger_of(
        BASE,
        b=("reweight", 0.25, "outlier", "policy"),
        c=("drop", None, "blurred", "reviewer"),
        d=("relabel", "cat", "reviewed", "reviewer"),
        u=("relabel", "dog", "reviewed", "reviewer"),
    )
    assert changes((BASE, before), (BASE, after)) == {
        "a": "taken_back",
        "b": "reweighted",
        "c": "dropped",
        "d": "relabelled",
        "u": "moved+relabelled",
    }


def test_a_row_says_all_of_both_sides() -> None:
    ledger = ledger_of(BASE, a=("relabel", "dog", "label_error", "policy"))
    after = samples_of({"a": "val cat", "n": "train dog"}, {"a": 3.0})
    table = between((BASE, ledger), (after,)).changes.set_index("sample_id")
    row = table.loc["a"]
    assert row["change"] == "moved+relabelled+reweighted"
    assert (row["split_before"], row["split_after"]) == ("train", "val")
    assert (row["label_before"], row["label_after"]) == ("dog", "cat")
    assert (row["given_label_before"], row["given_label_after"]) == ("cat", "cat")
    assert (row["action_before"], row["reason_before"], row["decided_by_before"]) == (
        "relabel",
        "label_error",
        "policy",
    )
    assert row[["action_after", "reason_after", "decided_by_after"]].isna().all()  # it has no ledger
    assert (row["weight_before"], row["weight_after"]) == (1.0, 3.0)
    assert row["source"] == "a.png"
    new = table.loc["n"]
    assert new[[name for name in table if name.endswith("_before")]].isna().all()
    assert (new["label_after"], new["weight_after"]) == ("dog", 1.0)
    assert table.loc["b", [name for name in table if name.endswith("_after")]].isna().all()
    assert table.loc["b", "source"] == "b.png"


def test_the_source_takes_over_what_curation_had_relabelled() -> None:
    ledger = ledger_of(BASE, a=("relabel", "dog", "label_error", "policy"))
    mended = samples_of(
        {"a": "train dog", "b": "train dog", "c": "val cat", "d": "test dog", "u": "unlabeled"}
    )
    assert changes((BASE, ledger), (mended, ledger_of(mended))) == {"a": "relabelled_at_ingest"}


def test_weights_are_the_sources_times_the_ledgers_and_nothing_where_dropped() -> None:
    heavy = samples_of({"a": "train cat"}, {"a": 4.0})
    half = ledger_of(heavy, a=("reweight", 0.5, "outlier", "policy"))
    row = between((heavy,), (heavy, half)).changes.iloc[0]
    assert (row["weight_before"], row["weight_after"], row["given_weight_after"]) == (4.0, 2.0, 4.0)
    gone = half.assign(action="drop")  # whatever its weight says
    assert between((heavy,), (heavy, gone)).changes.iloc[0]["weight_after"] == 0


def test_new_and_dropped_at_once() -> None:
    grown = samples_of({"a": "train cat", "n": "train dog"})
    ledger = ledger_of(grown, n=("drop", None, "label_error", "policy"))
    assert changes((grown[:1],), (grown, ledger)) == {"n": "added+dropped"}


def test_decisions_of_the_same_effect_are_counted_only() -> None:
    before = ledger_of(BASE, a=("keep", None, "outlier: kept by policy", "policy"))
    after = ledger_of(BASE, b=("keep", None, "looks right", "reviewer"))
    result = between((BASE, before), (BASE, after))
    assert result.changes.empty
    assert result.same_effect == 2
    assert between((BASE,), (BASE, after)).same_effect == 0  # nothing was decided before


def test_another_test_set_is_noticed() -> None:
    for decision, other in {
        ("drop", None): True,
        ("relabel", "cat"): True,
        ("reweight", 0.5): False,
    }.items():
        ledger = ledger_of(BASE, d=(*decision, "why", "reviewer"))
        assert between((BASE,), (BASE, ledger)).other_test_set is other
    trained = ledger_of(BASE, a=("drop", None, "why", "policy"))
    assert not between((BASE,), (BASE, trained)).other_test_set
    assert between((BASE,), (BASE[BASE["sample_id"] != "d"],)).other_test_set


def test_splits_are_not_compared_where_one_version_has_none() -> None:
    old = BASE.drop(columns=["split", "group", "weight"])
    assert changes((old,), (BASE,)) == {}
    assert changes((BASE,), (old,)) == {}


def test_versions_without_samples() -> None:
    nothing = BASE[:0]
    assert changes((nothing,), (nothing,)) == {}
    assert set(changes((nothing,), (BASE,)).values()) == {"added"}
    assert set(changes((BASE,), (nothing, ledger_of(nothing))).values()) == {"removed"}


# --- any two versions --------------------------------------------------------------------------

LABELS = st.sampled_from(["cat", "dog", None])
SAMPLE = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["train", "test", "unlabeled"]),
        "label": LABELS,
        "weight": st.sampled_from([1.0, 2.0]),
    }
)
DECISION = st.fixed_dictionaries(
    {
        "label": LABELS,
        "action": st.sampled_from(["keep", "drop", "relabel", "reweight"]),
        "weight": st.sampled_from([1.0, 0.5]),
        "reason": st.sampled_from(["", "label_error", "outlier"]),
        "decided_by": st.sampled_from(["policy", "reviewer"]),
    }
)


@st.composite
def versions(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    ids = draw(st.lists(st.sampled_from("abcdef"), unique=True))
    samples = pd.DataFrame(
        [{"sample_id": name, "source": name, **draw(SAMPLE)} for name in ids],
        columns=["sample_id", "source", "split", "label", "weight"],
    )
    if draw(st.booleans()):
        return samples, None
    ledger = pd.DataFrame(
        [{"sample_id": name, **draw(DECISION)} for name in draw(st.permutations(ids))],
        columns=["sample_id", "label", "action", "weight", "reason", "decided_by"],
    )
    return samples, ledger


def by_hand(version: tuple[pd.DataFrame, pd.DataFrame | None]) -> dict[str, dict]:
    samples, ledger = version
    rows = {}
    for sample in samples.astype(object).where(samples.notna(), None).to_dict("records"):
        row = {"split": sample["split"], "given": sample["label"], "label": sample["label"]}
        row |= {"weight": sample["weight"], "used": True}
        if ledger is not None:
            own = ledger[ledger["sample_id"] == sample["sample_id"]].iloc[0]
            row["label"] = None if pd.isna(own["label"]) else own["label"]
            row["used"] = own["action"] != "drop"
            row["weight"] *= own["weight"] if row["used"] else 0
        rows[sample["sample_id"]] = row
    return rows


def kinds_by_hand(old: dict | None, new: dict | None) -> set[str]:
    if old is None:
        return {"added"} if new["used"] else {"added", "dropped"}
    if new is None:
        return {"removed"}
    found = set()
    if old["used"] != new["used"]:
        found.add("dropped" if old["used"] else "taken_back")
    if old["split"] != new["split"]:
        found.add("moved")
    if old["given"] != new["given"]:
        found.add("relabelled_at_ingest")
    if old["used"] and new["used"]:
        touched = old["label"] != old["given"] or new["label"] != new["given"]
        if old["label"] != new["label"] and touched:
            found.add("relabelled")
        if old["weight"] != new["weight"]:
            found.add("reweighted")
    return found


@settings(deadline=None, max_examples=80)
@given(versions(), versions())
def test_any_two_versions_differ_in_what_a_look_at_each_row_says(before: tuple, after: tuple) -> None:
    result = between(before, after)
    old, new = by_hand(before), by_hand(after)
    wanted = {name: kinds_by_hand(old.get(name), new.get(name)) for name in {*old, *new}}
    found = dict(zip(result.changes["sample_id"], result.changes["change"], strict=True))
    assert {name: set(change.split("+")) for name, change in found.items()} == {
        name: kinds for name, kinds in wanted.items() if kinds
    }
    for kind in KINDS:
        assert set(result.changes["sample_id"][result.kinds[kind]]) == {
            name for name, kinds in wanted.items() if kind in kinds
        }
    # Laid over A, the changes give B.
    patched = {name: row for name, row in old.items() if "removed" not in wanted[name]}
    table = result.changes.astype(object).where(result.changes.notna(), None)
    for row in table.to_dict("records"):
        if "removed" not in row["change"]:
            patched[row["sample_id"]] = {
                "split": row["split_after"],
                "given": row["given_label_after"],
                "label": row["label_after"],
                "weight": row["weight_after"],
                "used": row["action_after"] != "drop",
            }
    for name, row in patched.items():
        # of what both leave out the ledger's label says nothing
        keys = ["split", "given", "weight", "used"] + ["label"] * row["used"]
        assert [row[key] for key in keys] == [new[name][key] for key in keys]
    assert set(patched) == set(new)


@settings(deadline=None, max_examples=25)
@given(versions(), versions())
def test_the_way_back_is_the_way_there_turned_round(before: tuple, after: tuple) -> None:
    there, back = between(before, after), between(after, before)
    turned = {"added": "removed", "removed": "added", "dropped": "taken_back", "taken_back": "dropped"}
    stayed = there.changes.set_index("sample_id").index.intersection(
        pd.Index(set(before[0]["sample_id"]) & set(after[0]["sample_id"]))
    )
    for kind in KINDS:
        one = set(there.changes["sample_id"][there.kinds[kind]])
        other = set(back.changes["sample_id"][back.kinds[turned.get(kind, kind)]])
        assert one & set(stayed) == other & set(stayed)
    assert np.array_equal(sorted(there.changes["sample_id"]), sorted(back.changes["sample_id"]))
    assert there.other_test_set == back.other_test_set
