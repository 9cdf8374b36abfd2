from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.learning.models import Ensemble, ModelSpec, build_model
from stages.learning.prediction import predict, predict_logits, views_of

SPEC = ModelSpec("small_cnn", ["a", "b", "c"], (16, 16, 1), [0.5], [0.2])


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
