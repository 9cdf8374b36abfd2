from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.dataset.base import Dataset, View, split_view
from stages.errors import WinnowError
from stages.learning.loop import fit
from stages.learning.losses import BalancedSoftmax, Objective, log_shares
from stages.learning.models import Classifier, build_model, pixel_statistics
from stages.learning.networks.layers import ModelSpec
from stages.learning.prediction import predict
from stages.learning.recipe import Recipe, steps_per_epoch

RECIPE = Recipe(epochs=6, steps_per_epoch=4, batch_size=16, learning_rate=5e-3)


def spec_for(view: View, architecture: str = "small_cnn") -> ModelSpec:
    mean, std = pixel_statistics(view.images)
    return ModelSpec(architecture, view.classes, view.images.shape[1:], mean, std)


def weights_of(model: Classifier) -> torch.Tensor:
    return torch.cat([p.detach().flatten().float() for p in model.state_dict().values()])


def test_it_learns_what_can_be_learned(tiny_dataset: Dataset):
    train, test = split_view(tiny_dataset, "train"), split_view(tiny_dataset, "test")
    result = fit(build_model(spec_for(train), seed=0), train, RECIPE, seed=0, description="")
    probabilities, embeddings = predict(result.model, test.images)
    assert (probabilities.argmax(1) == test.labels).mean() > 0.9
    assert embeddings.shape == (len(test), 128)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_dataset: Dataset, precision: str):
    train = split_view(tiny_dataset, "train")
    recipe = Recipe(2, 3, 16, 5e-3, shift=1, flip=True, precision=precision)

    def trained(seed: int) -> torch.Tensor:
        return weights_of(
            fit(build_model(spec_for(train), seed=seed), train, recipe, seed=seed, description="").model
        )

    assert torch.equal(trained(3), trained(3))
    assert not torch.equal(trained(3), trained(4))


def test_samples_of_weight_zero_teach_nothing(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    wrong = train.labels.copy()
    wrong[:15] = (wrong[:15] + 1) % 3
    weights = np.ones(len(train), np.float32)
    weights[:15] = 0
    poisoned = View(train.images, wrong, weights, train.sample_ids, train.classes)
    result = fit(build_model(spec_for(train), seed=0), poisoned, RECIPE, seed=0, description="")
    probabilities, _ = predict(result.model, train.images[:15])
    assert (probabilities.argmax(1) == train.labels[:15]).mean() > 0.8


def test_early_stopping_keeps_the_best_epoch_and_spends_the_whole_budget(tiny_dataset: Dataset):
    train, val = split_view(tiny_dataset, "train"), split_view(tiny_dataset, "val")
    recipe = Recipe(5, 3, 16, 0.02, early_stopping=True)
    result = fit(build_model(spec_for(train), seed=0), train, recipe, seed=0, val=val, description="")
    accuracies = [row["val_accuracy"] for row in result.history]
    assert len(accuracies) == 5
    assert result.best_epoch == max(range(1, 6), key=lambda epoch: (accuracies[epoch - 1], epoch))
    probabilities, _ = predict(result.model, val.images, precision=result.precision)
    kept = -np.log(probabilities[np.arange(len(val)), val.labels]).mean()
    assert kept == pytest.approx(result.history[result.best_epoch - 1]["val_loss"], rel=1e-3)


def test_with_balanced_softmax_early_stopping_goes_by_balanced_accuracy(tiny_dataset: Dataset):
    train, val = split_view(tiny_dataset, "train"), split_view(tiny_dataset, "val")
    rows = np.concatenate([np.flatnonzero(val.labels == 0), np.flatnonzero(val.labels == 1)[:1]])
    skewed = View(val.images[rows], val.labels[rows], val.weights[rows], val.sample_ids[rows], val.classes)
    recipe = Recipe(6, 2, 16, 0.02, early_stopping=True, loss="balanced_softmax")
    result = fit(build_model(spec_for(train), seed=0), train, recipe, seed=0, val=skewed, description="")
    merits = [row["val_balanced_accuracy"] for row in result.history]
    assert result.best_epoch == max(range(1, 7), key=lambda epoch: (merits[epoch - 1], epoch))
    hits = predict(result.model, skewed.images)[0].argmax(1) == skewed.labels
    assert merits[result.best_epoch - 1] == pytest.approx((hits[:-1].mean() + hits[-1]) / 2)
    plain = fit(build_model(spec_for(train), seed=0), train, RECIPE, seed=0, val=skewed, description="")
    assert "val_balanced_accuracy" not in plain.history[0]


@pytest.mark.parametrize(
    ("choices", "balanced"),
    [({"loss": "ldam"}, True), ({"class_weighting": "sqrt"}, True), ({"sampling": "balanced"}, False),
     ({"loss": "focal"}, False)],
)  # fmt: skip
def test_early_stopping_goes_by_what_loss_and_weights_are_after(
    tiny_dataset: Dataset, choices: dict, balanced: bool
):
    train, val = split_view(tiny_dataset, "train"), split_view(tiny_dataset, "val")
    recipe = Recipe(1, 2, 16, 0.02, early_stopping=True, **choices)
    result = fit(build_model(spec_for(train), seed=0), train, recipe, seed=0, val=val, description="")
    columns = ["epoch", "train_loss", "val_loss", "val_accuracy"]
    assert list(result.history[0]) == columns + ["val_balanced_accuracy"] * balanced


def test_a_frozen_backbone_stays_as_it_is_and_the_head_moves(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    model = build_model(spec_for(train), seed=0)
    backbone = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    head = model.head.weight.detach().clone()
    fit(model, train, Recipe(2, 3, 16, 5e-3, backbone_lr_factor=0.0), seed=0, description="")
    assert all(torch.equal(value, backbone[key]) for key, value in model.backbone.state_dict().items())
    assert not torch.equal(model.head.weight, head)


def flat(labels: np.ndarray, classes: int = 3) -> View:
    """Images that say nothing of their labels."""
    images = np.full((len(labels), 8, 8, 1), 128, np.uint8)
    names = np.arange(len(labels)).astype(object)
    return View(
        images, labels, np.ones(len(labels), np.float32), names, [str(label) for label in range(classes)]
    )


def learned_prior(view: View, **choices) -> np.ndarray:
    """What a model believes of images that say nothing, after training on `view`."""
    recipe = Recipe(6, 10, 20, 0.02, weight_decay=0.0, precision="fp32", **choices)
    result = fit(build_model(spec_for(view), seed=0), view, recipe, seed=0, description="")
    return predict(result.model, view.images[:1])[0][0]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_balanced_softmax_takes_the_classes_shares_out_of_what_is_predicted(smoothing: float):
    view = flat(np.repeat([0, 1, 2], [80, 15, 5]))
    skewed = learned_prior(view, label_smoothing=smoothing)
    even = learned_prior(view, label_smoothing=smoothing, loss="balanced_softmax")
    assert skewed[0] > 0.5
    np.testing.assert_allclose(even, 1 / 3, atol=0.06)


def test_balanced_softmax_counts_a_class_as_what_its_samples_weigh():
    view = flat(np.repeat([0, 1, 2], [80, 15, 5]))
    down = replace(view, weights=np.where(view.labels == 0, 0.25, 1.0).astype(np.float32))
    np.testing.assert_allclose(learned_prior(down, loss="balanced_softmax"), 1 / 3, atol=0.06)


def test_balanced_softmax_on_even_mass_is_cross_entropy():

    view = flat(np.repeat([0, 1, 2], [60, 30, 10]))
    even = replace(view, weights=np.repeat([1, 2, 6], [60, 30, 10]).astype(np.float32))
    logits = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(view.labels)
    for shares in (log_shares(even, "shuffle"), log_shares(view, "balanced")):
        for smoothing in (0.0, 0.1):
            balanced = BalancedSoftmax(shares, smoothing)(logits, labels, labels)
            torch.testing.assert_close(balanced, Objective(smoothing)(logits, labels, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_softmax_never_predicts_a_class_without_samples(tiny_dataset: Dataset, smoothing: float):
    train = split_view(tiny_dataset, "train")
    without = View(*(part[train.labels < 2] for part in (
        train.images, train.labels, train.weights, train.sample_ids)), train.classes)  # fmt: skip
    recipe = replace(RECIPE, loss="balanced_softmax", label_smoothing=smoothing)
    result = fit(build_model(spec_for(without), seed=0), without, recipe, seed=0, description="")
    assert np.isfinite([row["train_loss"] for row in result.history]).all()
    probabilities, _ = predict(result.model, without.images)
    assert (probabilities.argmax(1) == without.labels).mean() > 0.9
    assert probabilities[:, 2].mean() < 0.2


def test_steps_follow_from_the_ingested_split_alone():
    assert steps_per_epoch(100, 32) == 4
    assert steps_per_epoch(1, 32) == 1


def test_nothing_to_train_on_is_said(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    empty = View(train.images[:0], train.labels[:0], train.weights[:0], train.sample_ids[:0], train.classes)
    with pytest.raises(WinnowError, match="no training images"):
        fit(build_model(spec_for(train), seed=0), empty, RECIPE, seed=0, description="")


def test_samples_that_all_weigh_nothing_are_said(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    weightless = replace(train, weights=np.zeros_like(train.weights))
    with pytest.raises(WinnowError, match="all samples weigh nothing"):
        fit(build_model(spec_for(train), seed=0), weightless, RECIPE, seed=0, description="")


def test_weights_that_are_no_numbers_are_said(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    broken = replace(train, weights=np.full_like(train.weights, np.nan))
    with pytest.raises(WinnowError, match=r"not a number in step 1 \(learning rate 0\.0005\): lower it"):
        fit(build_model(spec_for(train), seed=0), broken, RECIPE, seed=0, description="")


@pytest.mark.parametrize("unlabeled", [None, np.zeros((0, 16, 16, 1), np.uint8)])
def test_there_is_no_adapting_to_images_that_are_not_there(tiny_dataset: Dataset, unlabeled):
    train = split_view(tiny_dataset, "train")
    model, recipe = build_model(spec_for(train), seed=0), replace(RECIPE, coral=1.0)
    with pytest.raises(WinnowError, match="coral = 1, but there are no unlabelled images"):
        fit(model, train, recipe, seed=0, description="", unlabeled=unlabeled)


def test_there_is_no_covariance_of_single_images(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    recipe = replace(RECIPE, coral=1.0, batch_size=1)
    with pytest.raises(WinnowError, match="a batch of one image has not: raise batch_size"):
        fit(build_model(spec_for(train), seed=0), train, recipe, seed=0, description="",
            unlabeled=train.images)  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_an_error(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    with pytest.raises(WinnowError, match="device = 'cuda'"):
        fit(build_model(spec_for(train), seed=0), train, RECIPE, seed=0, device="cuda", description="")


def test_predicting_nothing_gives_empty_arrays(tiny_dataset: Dataset):
    train = split_view(tiny_dataset, "train")
    probabilities, embeddings = predict(build_model(spec_for(train), seed=0), train.images[:0])
    assert probabilities.shape == (0, 3)
    assert embeddings.shape == (0, 128)
