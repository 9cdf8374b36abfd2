from dataclasses import fields

import numpy as np
import pytest
import torch

from stages.dataset.base import Dataset, View, split_view
from stages.errors import WinnowError
from stages.noise.folds import CrossValidation, OutOfSample, cross_validate
from stages.noise.labels import find_label_errors


def members(**changes) -> CrossValidation:
    return CrossValidation(
        **{
            "models": ("small_cnn",),
            "folds": 3,
            "repeats": 1,
            "epochs": 1,
            "batch_size": 16,
            "learning_rate": 5e-3,
            **changes,
        }
    )


@pytest.fixture
def noisy(tiny_dataset: Dataset) -> tuple[View, np.ndarray]:
    train = split_view(tiny_dataset, "train")
    labels = train.labels.copy()
    wrong = np.zeros(len(labels), bool)
    wrong[::10] = True
    labels[wrong] = (labels[wrong] + 1) % 3
    return View(train.images, labels, train.weights, train.sample_ids, train.classes), wrong


def test_planted_errors_stand_out_in_out_of_sample_probabilities(noisy, tiny_dataset: Dataset):
    train, wrong = noisy
    test = split_view(tiny_dataset, "test")
    rows: list[dict[str, float]] = []
    result = cross_validate(train, test.images, members(repeats=2, epochs=4), seed=0, on_fold=rows.append)
    found = find_label_errors(train.labels, result.train_probs)
    assert (found & wrong).sum() >= 5
    assert (found & ~wrong).sum() <= 3
    assert (result.other_probs.argmax(1) == test.labels).mean() > 0.9
    assert result.train_embeddings.shape == (len(train), 128)
    assert result.other_embeddings.shape == (len(test), 128)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(result.train_probs.sum(1), 1, atol=1e-5)


def test_the_seed_decides(noisy):
    train, _ = noisy
    none = train.images[:0]
    one, same, other = (cross_validate(train, none, members(folds=2), seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.train_probs, same.train_probs)
    assert not np.array_equal(one.train_probs, other.train_probs)


def test_no_sample_is_judged_by_a_model_that_saw_it(noisy, monkeypatch):
    """Each image's answer says which image it is of, and which model gave it."""
    from stages.noise import folds

    train, _ = noisy
    number_of = {image.tobytes(): number for number, image in enumerate(train.images)}
    assert len(number_of) == len(train)
    taught: list[set[int]] = []
    asked: list[list[int]] = []
    original = folds.fit

    def spy(model, data, *args, **kwargs):
        taught.append({number_of[image.tobytes()] for image in data.images})
        return original(model, data, *args, **kwargs)

    def say_who(model, images, *_):
        numbers = [number_of[image.tobytes()] for image in images]
        asked.append(numbers)
        who = np.array(numbers, np.float32) / 1000
        return np.stack([who, np.full_like(who, len(taught) / 10), 0.9 - len(taught) / 10 - who], 1), who[
            :, None
        ]

    monkeypatch.setattr(folds, "fit", spy)
    monkeypatch.setattr(folds, "predict", say_who)
    result = cross_validate(train, train.images[:0], members(folds=4), seed=0)
    everyone = set(range(len(train)))
    left_out = [everyone - inside for inside in taught]
    assert [len(out) for out in left_out] == [15] * 4
    assert sorted(number for out in left_out for number in out) == sorted(everyone)
    # The first model is asked about its own training images too, for their embeddings alone.
    assert [set(numbers) for numbers in asked if numbers] == [left_out[0], taught[0], *left_out[1:]]
    judge = np.array([next(i for i, out in enumerate(left_out, 1) if n in out) for n in sorted(everyone)])
    expected = np.stack([np.arange(len(train)) / 1000, judge / 10], 1) / 0.9
    np.testing.assert_allclose(result.train_probs[:, :2], expected, rtol=1e-5)
    np.testing.assert_allclose(result.train_embeddings[:, 0], np.arange(len(train)) / 1000, rtol=1e-6)


def test_a_class_rarer_than_the_folds_is_carried_along(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    keep = np.flatnonzero((train.labels < 2) | (np.cumsum(train.labels == 2) <= 2))
    rare = View(
        train.images[keep], train.labels[keep], train.weights[keep], train.sample_ids[keep], train.classes
    )
    result = cross_validate(rare, train.images[:0], members(folds=5), seed=0)
    assert np.isfinite(result.train_probs).all()


def test_fewer_images_than_folds_is_said(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    few = View(train.images[:3], train.labels[:3], train.weights[:3], train.sample_ids[:3], train.classes)
    with pytest.raises(WinnowError, match=r"detect_noise\.folds = 5.*has 3 training images"):
        cross_validate(few, train.images[:0], members(folds=5), seed=0)


def groups_of(train: View, *members: list[int]) -> np.ndarray:
    """Every sample by itself, but for the members named."""
    groups = train.sample_ids.copy()
    for number, rows in enumerate(members):
        groups[rows] = f"group {number}"
    return groups


def test_groups_of_one_change_no_bit(noisy):
    train, _ = noisy
    plain, grouped = (
        cross_validate(train, train.images[:2], members(repeats=2), seed=4, groups=groups)
        for groups in (None, groups_of(train))
    )
    np.testing.assert_array_equal(plain.train_probs, grouped.train_probs)
    np.testing.assert_array_equal(plain.other_probs, grouped.other_probs)


def test_groups_keep_twins_from_hiding_a_wrong_label(tiny_dataset: Dataset):
    """A copy of a mislabelled image in another fold would teach the model the wrong label."""
    train = split_view(tiny_dataset, "train")
    rows = np.r_[np.arange(len(train)), np.repeat(59, 8)]  # an image of class c, nine times
    labels = train.labels[rows]
    labels[[59, *range(60, 68)]] = 0
    twins = View(train.images[rows], labels, np.ones(68, np.float32), train.sample_ids[rows], train.classes)
    none = train.images[:0]
    together = cross_validate(twins, none, members(epochs=12), seed=0, groups=train.sample_ids[rows])
    apart = cross_validate(twins, none, members(epochs=12), seed=0)
    assert together.train_probs[59:, 2].min() > 0.5
    assert apart.train_probs[59:, 2].mean() < together.train_probs[59:, 2].mean() - 0.2


def test_a_class_of_one_group_cannot_be_judged(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    groups = groups_of(train, list(range(50, 60)))
    result = cross_validate(train, train.images[:0], members(repeats=2), seed=0, groups=groups)
    assert result.train_judged.tolist() == [True] * 50 + [False] * 10


def test_a_fold_that_the_groups_leave_empty_is_left_out(noisy):
    train, _ = noisy
    halves = np.where(np.arange(len(train)) % 2, "odd", "even").astype(object)
    halves[:2] = "third"
    rows: list[dict[str, float]] = []
    result = cross_validate(train, train.images[:3], members(), seed=0, groups=halves, on_fold=rows.append)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(np.isfinite(row["agreement"]) for row in rows)
    np.testing.assert_allclose(result.other_probs.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(result.train_probs.sum(1), 1, atol=1e-5)


def test_weights_reach_the_training_of_the_folds(noisy, monkeypatch):
    from stages.noise import folds

    train, wrong = noisy
    weights = np.where(wrong, 0.0, 0.5).astype(np.float32)
    weighted = View(train.images, train.labels, weights, train.sample_ids, train.classes)
    seen: list[View] = []
    original = folds.fit

    def spy(model, data, *args, **kwargs):
        seen.append(data)
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(folds, "fit", spy)
    cross_validate(weighted, train.images[:0], members(folds=2), seed=0)
    weight_of = dict(zip(weighted.sample_ids, weights, strict=True))
    assert len(seen) == 2
    for data in seen:
        assert data.weights.tolist() == [weight_of[name] for name in data.sample_ids]


def test_votes_are_shares_of_the_members_that_did_not_see_the_sample(noisy):
    train, _ = noisy
    result = cross_validate(train, train.images[:5], members(repeats=4, models=("small_cnn",)), seed=0)
    assert result.train_votes.dtype == result.other_votes.dtype == np.float32
    assert set(np.unique(result.train_votes)) <= {0, 0.25, 0.5, 0.75, 1}
    np.testing.assert_allclose(result.train_votes.sum(1), 1)
    assert result.other_votes.shape == (5, 3)
    np.testing.assert_allclose(result.other_votes * 12, np.round(result.other_votes * 12), atol=1e-5)
    one = cross_validate(train, train.images[:5], members(), seed=0)
    np.testing.assert_array_equal(one.train_votes.argmax(1), one.train_probs.argmax(1))
    assert set(np.unique(one.train_votes)) == {0, 1}


def test_architectures_share_the_folds_of_a_repeat(noisy, monkeypatch):
    from stages.noise import folds

    train, _ = noisy
    seen: list[tuple[str, frozenset[str]]] = []
    original = folds.fit

    def spy(model, data, *args, **kwargs):
        seen.append((model.spec.architecture, frozenset(data.sample_ids)))
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(folds, "fit", spy)
    few = View(train.images[::2], train.labels[::2], train.weights[::2], train.sample_ids[::2], train.classes)
    both = members(models=("small_cnn", "resnet18"), folds=2)
    result = cross_validate(few, train.images[:1], both, seed=0)
    assert [name for name, _ in seen] == ["small_cnn"] * 2 + ["resnet18"] * 2
    assert [ids for _, ids in seen[:2]] == [ids for _, ids in seen[2:]]
    assert set(np.unique(result.train_votes)) <= {0, 0.5, 1}
    assert result.train_embeddings.shape == (len(few), 128)


def test_flips_change_training_and_prediction(noisy):
    train, _ = noisy
    none = train.images[:0]
    plain, flipped = (
        cross_validate(train, none, members(folds=2, flip=flip), seed=0) for flip in (False, True)
    )
    assert not np.array_equal(plain.train_probs, flipped.train_probs)
    mirrored = View(
        np.ascontiguousarray(train.images[:, :, ::-1]),
        train.labels,
        train.weights,
        train.sample_ids,
        train.classes,
    )
    others = np.concatenate([train.images[:4], mirrored.images[:4]])
    asked = cross_validate(train, others, members(folds=2, flip=True), seed=0).other_probs
    np.testing.assert_allclose(asked[:4], asked[4:], atol=1e-5)


def same(one: OutOfSample, other: OutOfSample) -> bool:
    return all(
        getattr(one, field.name).tobytes() == getattr(other, field.name).tobytes() for field in fields(one)
    )


class KilledError(Exception):
    pass


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """A count of the trainings, in a list of one; reset it at will."""
    from stages.noise import folds

    count = [0]
    original = folds.fit

    def counting(*args, **kwargs):
        count[0] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(folds, "fit", counting)
    return count


def kill_after(rows: int):
    def on_fold(row: dict[str, float]) -> None:
        if row["epoch"] == rows:
            raise KilledError

    return on_fold


def test_a_killed_run_goes_on_with_the_next_fold_and_gives_the_same_bytes(noisy, tmp_path, trained, capsys):
    train, _ = noisy
    others, choices = train.images[:3], members(repeats=2)
    rows: list[dict[str, float]] = []
    whole = cross_validate(train, others, choices, seed=0, on_fold=rows.append)
    with pytest.raises(KilledError):
        cross_validate(train, others, choices, seed=0, keep_in=tmp_path, on_fold=kill_after(4))
    trained[0] = 0
    again: list[dict[str, float]] = []
    resumed = cross_validate(train, others, choices, seed=0, keep_in=tmp_path, on_fold=again.append)
    assert trained == [2]
    assert same(whole, resumed)
    assert rows == again
    assert capsys.readouterr().err.count("kept from a run that did not end") == 4


def test_a_damaged_checkpoint_is_trained_anew(noisy, tmp_path, trained):
    train, _ = noisy
    whole = cross_validate(train, train.images[:3], members(), seed=0, keep_in=tmp_path)
    first, second, _ = sorted(tmp_path.rglob("*.part"))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-100])
    trained[0] = 0
    resumed = cross_validate(train, train.images[:3], members(), seed=0, keep_in=tmp_path)
    assert trained == [2]
    assert same(whole, resumed)


@pytest.mark.parametrize(
    "change", ["pixel", "label", "weight", "others", "group", "choice", "seed", "threads"]
)
def test_a_checkpoint_of_other_inputs_is_neither_used_nor_left(
    noisy, tmp_path, trained, monkeypatch, change: str
):
    train, _ = noisy
    arguments = {
        "train": train,
        "others": train.images[:3],
        "cv": members(),
        "seed": 0,
        "groups": groups_of(train),
    }
    cross_validate(**arguments, keep_in=tmp_path)
    old = list(tmp_path.iterdir())
    images, labels, weights = train.images.copy(), train.labels.copy(), train.weights.copy()
    match change:
        case "pixel":
            images[7, 3, 3] ^= 1
        case "label":
            labels[7] = (labels[7] + 1) % 3
        case "weight":
            weights[7] = 0.5
        case "others":
            arguments["others"] = train.images[1:4]
        case "group":
            arguments["groups"] = groups_of(train, [4, 5])
        case "choice":
            arguments["cv"] = members(learning_rate=4e-3)
        case "seed":
            arguments["seed"] = 1
        case "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    arguments["train"] = View(images, labels, weights, train.sample_ids, train.classes)
    trained[0] = 0
    cross_validate(**arguments, keep_in=tmp_path)
    assert trained == [3]
    assert len(old) == len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) != old


def test_other_code_makes_checkpoints_stale(noisy, tmp_path, trained, monkeypatch):
    from stages.noise import folds

    train, _ = noisy
    cross_validate(train, train.images[:0], members(folds=2), seed=0, keep_in=tmp_path)
    changed = tmp_path / "loop.py"
    changed.write_text("another loop")
    original = folds.resume.code_files
    monkeypatch.setattr(folds.resume, "code_files", lambda names: [*original(names)[:-1], changed])
    trained[0] = 0
    cross_validate(train, train.images[:0], members(folds=2), seed=0, keep_in=tmp_path / "again")
    cross_validate(train, train.images[:0], members(folds=2), seed=0, keep_in=tmp_path)
    assert trained == [4]


def test_suspects_weigh_less_from_the_second_repeat_on(noisy, monkeypatch):
    from stages.noise import folds

    train, wrong = noisy
    seen: list[View] = []
    original = folds.fit

    def spy(model, data, *args, **kwargs):
        seen.append(data)
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(folds, "fit", spy)
    choices = members(folds=2, repeats=3, epochs=8, downweight_suspects=True)
    result = cross_validate(train, train.images[:0], choices, seed=0)
    assert all((data.weights == 1).all() for data in seen[:2])
    for data in seen[2:]:
        planted = np.isin(data.sample_ids, train.sample_ids[wrong])
        assert data.weights[planted].mean() < 0.7 * data.weights[~planted].mean()
        assert data.weights.max() == 1
        for label in range(3):  # of each class some weigh fully, however rare it is
            assert data.weights[data.labels == label].max() > 0.9
    assert find_label_errors(train.labels, result.train_probs)[wrong].sum() >= 5


def test_a_resumed_run_downweights_as_an_uninterrupted_one(noisy, tmp_path):
    train, _ = noisy
    choices = members(folds=2, repeats=2, downweight_suspects=True)
    whole = cross_validate(train, train.images[:2], choices, seed=0)
    with pytest.raises(KilledError):
        cross_validate(train, train.images[:2], choices, seed=0, keep_in=tmp_path, on_fold=kill_after(3))
    assert same(whole, cross_validate(train, train.images[:2], choices, seed=0, keep_in=tmp_path))


def test_what_no_model_could_judge_keeps_its_weight(tiny_dataset: Dataset, monkeypatch):
    from stages.noise import folds

    train = split_view(tiny_dataset, "train")
    seen: list[View] = []
    original = folds.fit

    def spy(model, data, *args, **kwargs):
        seen.append(data)
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(folds, "fit", spy)
    groups = groups_of(train, list(range(50, 60)))
    choices = members(folds=2, repeats=2, downweight_suspects=True)
    cross_validate(train, train.images[:0], choices, seed=0, groups=groups)
    for data in seen:
        assert (data.weights[data.labels == 2] == 1).all()
