import numpy as np
import pytest

from stages.dataset import Dataset, View, split_view
from stages.errors import WinnowError
from stages.noise.folds import cross_validate
from stages.noise.labels import find_label_errors

CHOICES = {"architecture": "small_cnn", "epochs": 4, "batch_size": 16, "learning_rate": 5e-3}


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
    result = cross_validate(train, test.images, folds=3, repeats=2, seed=0, on_fold=rows.append, **CHOICES)
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
    one, same, other = (
        cross_validate(train, none, folds=2, repeats=1, seed=seed, **CHOICES | {"epochs": 1})
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.train_probs, same.train_probs)
    assert not np.array_equal(one.train_probs, other.train_probs)


def test_no_sample_is_judged_by_a_model_that_saw_it(noisy, monkeypatch):
    train, _ = noisy
    from stages.noise import folds

    seen: list[set[str]] = []
    original = folds.fit

    def spy(model, data, *args, **kwargs):
        seen.append(set(data.sample_ids))
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(folds, "fit", spy)
    monkeypatch.setattr(folds, "predict", lambda model, images, device: spy_predict(images))
    asked: list[int] = []

    def spy_predict(images):
        asked.append(len(images))
        return np.full((len(images), 3), 1 / 3, np.float32), np.zeros((len(images), 4), np.float32)

    cross_validate(train, train.images[:0], folds=4, repeats=1, seed=0, **CHOICES | {"epochs": 1})
    everyone = set(train.sample_ids)
    left_out = [everyone - inside for inside in seen]
    assert len(seen) == 4
    assert sorted(name for out in left_out for name in out) == sorted(everyone)


def test_a_class_rarer_than_the_folds_is_carried_along(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    keep = np.flatnonzero((train.labels < 2) | (np.cumsum(train.labels == 2) <= 2))
    rare = View(
        train.images[keep], train.labels[keep], train.weights[keep], train.sample_ids[keep], train.classes
    )
    result = cross_validate(rare, train.images[:0], folds=5, repeats=1, seed=0, **CHOICES | {"epochs": 1})
    assert np.isfinite(result.train_probs).all()


def test_fewer_images_than_folds_is_said(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    few = View(train.images[:3], train.labels[:3], train.weights[:3], train.sample_ids[:3], train.classes)
    with pytest.raises(WinnowError, match=r"detect_noise\.folds = 5.*has 3 training images"):
        cross_validate(few, train.images[:0], folds=5, repeats=1, seed=0, **CHOICES)
