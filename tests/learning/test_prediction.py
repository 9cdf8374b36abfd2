from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.dataset.base import Dataset, split_view
from stages.learning.calibration import Calibration, calibrate, fit_temperature
from stages.learning.metrics import calibration_error
from stages.learning.models import Ensemble, build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.prediction import predict, predict_logits, views_of

SPEC = ModelSpec("small_cnn", ["a", "b", "c"], (16, 16, 1), [0.5], [0.2])


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def drawn(images: int, *, wrong: float = 0.0, seed: int = 0, classes: int = 10):
    """Logits that say exactly how likely each class is, true labels drawn from them, and given ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (images, classes)).astype(np.float32)
    true = np.array([rng.choice(classes, p=row) for row in softmax(logits.astype(float))])
    other = (true + rng.integers(1, classes, images)) % classes
    return logits, true, np.where(rng.random(images) < wrong, other, true)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_finds_by_what_logits_were_multiplied(scale):
    logits, true, _ = drawn(2000)
    found = fit_temperature(scale * logits, true)
    assert found.temperature == pytest.approx(scale, rel=0.12)
    assert found.wrong_labels < 0.02
    assert found.images == 2000


@pytest.mark.parametrize("wrong", [0.1, 0.3])
def test_wrong_labels_do_not_make_it_unsure(wrong):
    logits, _, given = drawn(2000, wrong=wrong)
    found = fit_temperature(logits, given)
    assert found.temperature == pytest.approx(1, abs=0.2)
    assert found.wrong_labels == pytest.approx(wrong, abs=0.05)


def test_calibrated_by_wrong_labels_the_error_on_clean_images_falls():
    logits, _, given = drawn(300, wrong=0.2, seed=1)
    held_out, true, _ = drawn(2000, seed=2)
    temperature = fit_temperature(0.4 * logits, given).temperature
    before, after = (calibration_error(true, softmax(0.4 * held_out / t), 15) for t in (1, temperature))
    assert after < before / 2


@pytest.mark.parametrize("seed", range(5))
def test_twenty_images_do_not_carry_it_away(seed):
    logits, _, given = drawn(20, wrong=0.3, seed=seed)
    assert 0.5 < fit_temperature(logits, given).temperature < 2


def test_the_worst_of_logits_stay_within_bounds():
    labels = np.arange(200) % 2
    sure = np.where(labels[:, None] == np.arange(2), 1e4, -1e4).astype(np.float32)
    assert fit_temperature(np.zeros((200, 2), np.float32), labels).temperature == 1.0
    assert 0.2 <= fit_temperature(sure, labels).temperature <= 1.0
    upside_down = fit_temperature(-sure, labels)
    assert 1.0 <= upside_down.temperature <= 5.0
    with pytest.raises(ValueError, match="no images"):
        fit_temperature(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))


def test_many_images_are_thinned_out_evenly():
    logits, true, _ = drawn(600)
    every = fit_temperature(np.repeat(logits, 20, axis=0), np.repeat(true, 20))
    assert every.images == 4000
    assert every.temperature == pytest.approx(1.0, abs=0.15)


def test_a_model_is_given_its_temperature_and_keeps_its_answers(tiny_dataset: Dataset):
    model = build_model(ModelSpec("small_cnn", ["a", "b", "c"], (16, 16, 1), [0.5], [0.2]), seed=0)
    val = split_view(tiny_dataset, "val")
    before, _ = predict(model, val.images, "cpu")
    val = replace(val, labels=before.argmax(1))  # always right, and never sure
    found = calibrate(model, val, "cpu")
    assert model.spec.temperature == found.temperature < 1.0
    after, _ = predict(model, val.images, "cpu")
    np.testing.assert_array_equal(before.argmax(1), after.argmax(1))
    assert not np.array_equal(before, after)
    # fitted to the logits themselves, whatever temperature there was
    assert calibrate(model, val, "cpu") == found
    assert calibrate(model, split_view(tiny_dataset, "unlabeled"), "cpu") == Calibration()
    assert model.spec.temperature == 1.0


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1)).astype(np.uint8)


def test_probabilities_are_those_of_the_logits_divided_by_the_temperature(images):
    model = build_model(SPEC, seed=0)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images)).softmax(1).numpy()
    plain, embeddings = predict(model, images, "cpu")
    np.testing.assert_array_equal(plain, expected)
    assert embeddings.shape == (7, model.width)
    model.spec = replace(SPEC, temperature=0.5)
    sharper, _ = predict(model, images, "cpu")
    squares = expected.astype(float) ** 2
    np.testing.assert_allclose(sharper, squares / squares.sum(1, keepdims=True), rtol=1e-4)
    np.testing.assert_array_equal(predict(model, images, "cpu", temperature=1.0)[0], expected)
    assert sharper.dtype == embeddings.dtype == np.float32


def test_views_are_the_image_its_mirror_and_what_lies_beside_it():
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3, 1)
    assert [len(list(views_of(image, views))) for views in ("none", "flip", "shift", "flip_shift")] == [
        1, 2, 3, 6
    ]  # fmt: skip
    up_left, down_right = [view[0, ..., 0].tolist() for view in list(views_of(image, "shift"))[1:]]
    assert up_left == [[0, 0, 1], [0, 0, 1], [3, 3, 4]]
    assert down_right == [[4, 5, 5], [7, 8, 8], [7, 8, 8]]
    views = list(views_of(image, "flip_shift"))
    assert views[3][0, ..., 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    for view, mirrored in zip(views[:3], views[3:], strict=True):
        assert torch.equal(view.flip(2), mirrored)


def test_test_time_views_are_averaged_and_embeddings_are_the_images_own(images):
    model = build_model(SPEC, seed=0)
    each = [
        predict(model, view.numpy(), "cpu")[0] for view in views_of(torch.from_numpy(images), "flip_shift")
    ]
    mean, embeddings = predict(model, images, "cpu", views="flip_shift")
    np.testing.assert_allclose(mean, np.mean(each, 0), atol=1e-6)
    np.testing.assert_array_equal(embeddings, predict(model, images, "cpu")[1])
    # an image and its mirror image are the same to such a model
    mirrored, _ = predict(model, images[:, :, ::-1], "cpu", views="flip")
    np.testing.assert_allclose(predict(model, images, "cpu", views="flip")[0], mirrored, atol=1e-6)


def test_an_ensemble_says_the_mean_of_its_members_and_has_one_temperature(images):
    members = [build_model(SPEC, seed=seed) for seed in range(3)]
    model = Ensemble(members)
    each = np.mean([predict(member, images, "cpu")[0] for member in members], 0)
    mean, embeddings = predict(model, images, "cpu")
    np.testing.assert_allclose(mean, each, atol=1e-6)
    assert embeddings.shape == (7, model.width)
    model.spec = replace(model.spec, temperature=2.0)
    softer = np.sqrt(each.astype(float))
    found, _ = predict(model, images, "cpu")
    np.testing.assert_allclose(found, softer / softer.sum(1, keepdims=True), atol=1e-6)


def test_no_images_and_many_batches(images, monkeypatch):
    model = build_model(SPEC, seed=0)
    probabilities, embeddings = predict(model, images[:0], "cpu", views="flip")
    assert (probabilities.shape, embeddings.shape) == ((0, 3), (0, model.width))
    whole, logits = predict(model, images, "cpu")[0], predict_logits(model, images, "cpu")
    monkeypatch.setattr("stages.learning.prediction._CPU_BATCH", 3)
    np.testing.assert_allclose(predict(model, images, "cpu")[0], whole, atol=1e-6)
    np.testing.assert_allclose(predict_logits(model, images, "cpu"), logits, atol=1e-5)
