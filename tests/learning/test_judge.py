import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from stages.dataset.base import View
from stages.errors import WinnowError
from stages.learning.judge import train_judge


def _view(images, labels, classes):
    ids = np.array([str(i) for i in range(len(labels))], object)
    return View(images, labels.astype(np.int64), np.ones(len(labels), np.float32), ids, classes)


@pytest.fixture(scope="module")
def digits():
    raw = load_digits(n_class=3)
    return np.clip(raw.images * 16, 0, 255).astype(np.uint8)[..., None], raw.target


@pytest.fixture(scope="module")
def real(digits):
    images, labels = digits
    chosen = np.concatenate([np.flatnonzero(labels == label)[:40] for label in range(3)])
    return _view(images[chosen], labels[chosen], ["0", "1", "2"])


@pytest.fixture
def quick(monkeypatch):
    """Models of few steps: where it is not about how good they are."""
    monkeypatch.setattr("stages.learning.judge._STEPS", (20, 20))


@pytest.fixture(scope="module")
def judge(real):
    return train_judge(real, seed=1, device="cpu", description="")


def test_images_are_judged_by_the_model_that_did_not_see_them(judge, real):
    assert len(judge.models) == 2
    assert np.bincount(judge.fold).tolist() == [60, 60]
    for label in range(3):
        assert np.bincount(judge.fold[real.labels == label]).tolist() == [20, 20]
    held_out = judge.held_out()
    assert (held_out.argmax(1) == real.labels).mean() > 0.9
    parents = np.array([5, 110, 5])
    assert judge.of_copies(real.images[parents], parents) == pytest.approx(held_out[parents], abs=1e-5)


def test_a_model_cannot_repeat_wrong_labels_that_it_learned(digits):
    # Labels at random: who saw an image knows its label, who did not can only guess.
    images, _ = digits
    labels = np.random.default_rng(0).integers(0, 2, 60)
    judge = train_judge(_view(images[:60], labels, ["a", "b"]), seed=0, device="cpu", description="")
    own = judge.held_out()[np.arange(60), labels]
    swapped = type(judge)(judge.real, judge.models[::-1], judge.fold, "cpu")
    assert 0.25 < (own > 0.5).mean() < 0.75
    assert (swapped.held_out()[np.arange(60), labels] > 0.5).mean() > 0.9


def test_new_images_are_judged_by_the_mean(judge, digits):
    images, labels = digits
    unseen = images[-30:]
    probs = judge.of_new(unseen)
    assert (probs.argmax(1) == labels[-30:]).mean() > 0.8
    assert probs.sum(1) == pytest.approx(np.ones(30), abs=1e-5)
    assert judge.embed(unseen, 1).shape == (30, 128)
    assert not np.array_equal(judge.embed(unseen, 0), judge.embed(unseen, 1))
    assert judge.of_new(unseen[:0]).shape == (0, 3)


def test_the_judge_is_seeded(real, quick):
    state = torch.random.get_rng_state()
    judge, again = (train_judge(real, seed=1, device="cpu", description="") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(again.held_out(), judge.held_out())
    assert not np.array_equal(train_judge(real, seed=2, device="cpu", description="").fold, judge.fold)


def test_groups_share_a_fold(real, quick):
    groups = np.array([f"patient {i // 3}" for i in range(len(real))], object)
    fold = train_judge(real, groups=groups, folds=3, seed=0, device="cpu", description="").fold
    for name in np.unique(groups):
        assert len(np.unique(fold[groups == name])) == 1
    assert np.bincount(fold).min() >= 36


def test_rare_classes_are_known_to_every_model_where_they_can_be(digits):
    images, labels = digits
    chosen = np.r_[
        np.flatnonzero(labels == 0)[:30], np.flatnonzero(labels == 1)[:2], np.flatnonzero(labels == 2)[:1]
    ]
    view = _view(images[chosen], labels[chosen], ["0", "1", "2", "none of it"])
    judge = train_judge(view, seed=0, device="cpu", description="")
    assert sorted(judge.fold[30:32]) == [0, 1]
    held_out = judge.held_out()
    assert held_out.shape == (33, 4)
    assert held_out[32].argmax() != 2  # the only image of its class


@pytest.mark.parametrize("shape", [(8, 8, 3), (4, 4, 1)])
def test_constant_and_coloured_images(shape, quick):
    images = np.full((12, *shape), 7, np.uint8)
    judge = train_judge(_view(images, np.arange(12) % 2, ["a", "b"]), seed=0, device="cpu", description="")
    assert np.isfinite(judge.held_out()).all()


@pytest.mark.parametrize("groups", [None, np.array(["p", "p"], object)])
def test_too_few_to_split(digits, groups):
    images, labels = digits
    count = 1 if groups is None else 2
    with pytest.raises(WinnowError, match="bring more"):
        train_judge(_view(images[:count], labels[:count], ["0", "1", "2"]), groups=groups, seed=0)
