import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.dataset.base import CONFLICT_COLUMNS, Dataset
from stages.dataset.ids import pixel_id
from stages.errors import WinnowError
from stages.review.suspects import Evidence


def ids(issues: pd.DataFrame, rows: list[int]) -> tuple[str, ...]:
    return tuple(issues["sample_id"].iloc[rows])


def test_the_worst_label_of_any_split_comes_first(tiny_dataset, issues, embeddings):
    evidence = Evidence(tiny_dataset, issues, embeddings)
    assert evidence.queue("label_error") == ids(issues, [80, 40, 62, 5])
    assert evidence.queue("label_error", split="train") == ids(issues, [40, 5])
    assert evidence.queue("label_error", split="train", given="a") == ids(issues, [5])
    assert evidence.queue("label_error", split="unlabeled") == ()
    assert evidence.queue("outlier") == ids(issues, [7])
    assert evidence.queue("near_duplicate") == (
        *ids(issues, [33]),
        *sorted(ids(issues, [8, 70])),
    )


def test_every_kind_of_issue_comes_up_worst_first_and_is_named(tiny_dataset, issues, embeddings):
    issues.loc[[3, 90], "is_blurry_issue"] = True
    issues.loc[[3, 90], "blurry_score"] = [0.2, 0.1]
    evidence = Evidence(tiny_dataset, issues, embeddings)
    assert evidence.queue("blurry") == ids(issues, [90, 3])
    assert evidence.queue("dark") == ()
    assert evidence.sample(issues["sample_id"][3]).kinds == ("blurry",)


def test_issues_of_an_older_version_are_one_line(tiny_dataset, issues, embeddings):
    with pytest.raises(WinnowError, match=r"older version's, without light, odd_size: run `dvc repro`"):
        Evidence(tiny_dataset, issues.drop(columns=["is_light_issue", "is_odd_size_issue"]), embeddings)


def test_a_sample_carries_issue_and_ledger(tiny_dataset, issues, embeddings):
    name = issues["sample_id"][40]
    ledger = pd.DataFrame(
        [[name, "relabel", "c", "label_error", "policy"]],
        columns=["sample_id", "action", "label", "reason", "decided_by"],
    )
    evidence = Evidence(tiny_dataset, issues, embeddings, ledger)
    sample = evidence.sample(name)
    assert (sample.given, sample.suggested, sample.label_score) == ("b", "c", 0.1)
    assert (sample.action, sample.label, sample.reason) == ("relabel", "c", "label_error")
    assert sample.kinds == ("label_error",)
    assert evidence.sample(issues["sample_id"][5]).action == ""  # not in the ledger yet
    with pytest.raises(KeyError):
        evidence.sample("0" * 16)


def test_unlabelled_samples_have_no_label_to_show(tiny_dataset, issues, embeddings):
    columns = ["given_label", "suggested_label", "label_score", "suggested_score"]
    issues.loc[7, columns] = [None, None, np.nan, np.nan]
    sample = Evidence(tiny_dataset, issues, embeddings).sample(issues["sample_id"][7])
    assert (sample.given, sample.suggested, sample.label_score, sample.suggested_score) == (None,) * 4


def test_unlabelled_samples_come_with_the_surest_suggestion_first(
    partly_labelled, pile, embeddings, conflicts
):
    evidence = Evidence(partly_labelled, pile, embeddings, None, conflicts)
    assert evidence.queue("unlabeled") == (*ids(pile, [2]), *sorted(ids(pile, [1, 3])))
    assert evidence.queue("unlabeled", given="a") == tuple(sorted(ids(pile, [1, 3])))
    assert evidence.queue("unlabeled", split="train") == ()
    assert evidence.queue("conflict") == evidence.queue("conflict", split="unlabeled") == ids(pile, [0])
    assert evidence.sample(pile["sample_id"][0]).kinds == ("conflict",)
    assert evidence.sample(pile["sample_id"][1]).kinds == ("unlabeled",)
    without = Evidence(partly_labelled, pile, embeddings)
    assert without.queue("conflict") == ()
    assert set(without.queue("unlabeled")) == set(ids(pile, [0, 1, 2, 3]))


def test_a_conflict_carries_who_claims_what(partly_labelled, pile, embeddings, conflicts):
    evidence = Evidence(partly_labelled, pile, embeddings, None, conflicts)
    claims = evidence.sample(pile["sample_id"][0]).claims
    assert claims == (("a", ("a/0.png",)), ("c", ("c/8.png", "c/9.png")))
    assert evidence.sample(pile["sample_id"][1]).claims == ()


def test_a_conflict_is_suggested_a_claimed_label_or_none(partly_labelled, pile, embeddings, conflicts):
    """The models would have b at first; a and c are claimed."""
    probs = np.tile(np.array([0.1, 0.6, 0.3], np.float32), (len(pile), 1))
    name, other = pile["sample_id"][[0, 1]]
    evidence = Evidence(partly_labelled, pile, embeddings, None, conflicts, probs)
    sample = evidence.sample(name)
    assert (sample.suggested, sample.suggested_score) == ("c", pytest.approx(0.3))
    assert evidence.queue("conflict", given="c") == (name,)
    assert evidence.sample(other).suggested == "a"  # no conflict: as detect_noise had it
    blind = Evidence(partly_labelled, pile, embeddings, None, conflicts).sample(name)
    assert (blind.suggested, blind.suggested_score) == (None, None)


def test_a_label_brings_a_sample_to_training_or_back(partly_labelled, pile, embeddings, conflicts):
    conflicts["split"] = "test"
    evidence = Evidence(partly_labelled, pile, embeddings, None, conflicts)
    assert [evidence.sample(name).label_brings_to for name in pile["sample_id"][[0, 1, 4]]] == [
        "test",
        "train",
        "",
    ]


def test_conflicts_of_samples_that_are_not_there_are_left_out(tiny_dataset, issues, embeddings):
    gone = pd.DataFrame([("f" * 16, "a", "x.png", None)], columns=CONFLICT_COLUMNS)
    assert Evidence(tiny_dataset, issues, embeddings, None, gone).queue("conflict") == ()


def test_a_labelled_test_image_can_be_in_conflict(tiny_dataset, issues, embeddings):
    rows = [(issues["sample_id"][95], label, f"{label}.png", None) for label in "cb"]
    claimed = pd.DataFrame(rows, columns=CONFLICT_COLUMNS)
    evidence = Evidence(tiny_dataset, issues, embeddings, None, claimed)
    assert evidence.queue("conflict", split="test") == ids(issues, [95])
    assert evidence.queue("unlabeled") == ()


def test_neighbours_are_the_nearest_by_cosine(tiny_dataset, issues, embeddings):
    embeddings[10] = 5 * embeddings[3]  # length does not count
    embeddings[11] = embeddings[3] + 0.01
    embeddings[12] = 0.0
    found = Evidence(tiny_dataset, issues, embeddings).neighbours(issues["sample_id"][3])
    assert [sample.sample_id for sample, _ in found[:2]] == list(ids(issues, [10, 11]))
    assert len(found) == 3
    assert found[0][1] == pytest.approx(1.0, abs=1e-5)
    assert found[0][1] >= found[1][1] >= found[2][1]


def test_a_lone_sample_has_no_neighbours(tiny_dataset, issues, embeddings):
    lone = Dataset(tiny_dataset.images[:1], tiny_dataset.samples[:1], tiny_dataset.classes)
    assert Evidence(lone, issues[:1], embeddings[:1]).neighbours(issues["sample_id"][0]) == []


def test_near_duplicates_are_the_rest_of_the_set(tiny_dataset, issues, embeddings):
    evidence = Evidence(tiny_dataset, issues, embeddings)
    assert [s.sample_id for s in evidence.near_duplicates(issues["sample_id"][8])] == list(ids(issues, [70]))
    assert evidence.near_duplicates(issues["sample_id"][0]) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_is_the_ingested_one(tiny_dataset, issues, embeddings, channels):
    images = np.repeat(tiny_dataset.images, channels, axis=3)
    base = Dataset(images, tiny_dataset.samples, tiny_dataset.classes)
    png = Evidence(base, issues, embeddings).png(issues["sample_id"][20])
    pixels = np.asarray(Image.open(io.BytesIO(png))).reshape(16, 16, channels)
    np.testing.assert_array_equal(pixels, images[20])


def test_issues_of_other_data_are_refused(tiny_dataset, issues, embeddings):
    message = "data/noise was made from other samples"
    with pytest.raises(WinnowError, match=message):
        Evidence(tiny_dataset, issues[:-1], embeddings)
    with pytest.raises(WinnowError, match=message):
        Evidence(tiny_dataset, issues, embeddings[:-1])
    with pytest.raises(WinnowError, match=message):
        Evidence(tiny_dataset, issues, embeddings, pred_probs=np.zeros((len(issues), 2), np.float32))
    issues.loc[3, "sample_id"] = pixel_id(np.zeros((1, 1, 1), np.uint8))
    with pytest.raises(WinnowError, match=message):
        Evidence(tiny_dataset, issues, embeddings)
