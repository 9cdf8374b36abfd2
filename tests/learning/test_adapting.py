from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stages.dataset.base import Dataset, View, split_view
from stages.errors import WinnowError
from stages.learning.adapting import Phase, adapt_batch_norm, phases, transfer
from stages.learning.losses import coral
from stages.learning.models import Classifier, build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.recipe import Recipe

SPEC = ModelSpec("small_cnn", ["a", "b"], (8, 8, 1), [0.4], [0.2])
RECIPE = Recipe(epochs=6, steps_per_epoch=4, batch_size=16, learning_rate=0.01, shift=1, flip=True)


@pytest.fixture
def images() -> np.ndarray:
    """Sorted by their brightness, as classes often are; more than one batch."""
    levels = np.repeat(np.linspace(0, 200, 300), 64).reshape(300, 8, 8, 1)
    return (levels + np.random.default_rng(0).integers(0, 50, levels.shape)).astype(np.uint8)


def test_the_first_layers_statistics_are_those_of_all_images(images):
    model = build_model(SPEC, seed=0)
    adapt_batch_norm(model, images, seed=0, device="cpu")
    convolution, normalisation = model.backbone.blocks[0][0], model.backbone.blocks[0][1]
    with torch.no_grad():
        outputs = convolution(model.normalise(torch.from_numpy(images)))
    # The variance between batches is what the mean of two batches' variances lacks.
    torch.testing.assert_close(normalisation.running_mean, outputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normalisation.running_var, outputs.var((0, 2, 3)), rtol=0.05, atol=1e-3)


def test_weights_stay_and_training_goes_on_as_before(images):
    model, other = build_model(SPEC, seed=0), build_model(SPEC, seed=0)
    adapt_batch_norm(model, images, seed=0, device="cpu")
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.momentum for layer in layers} == {0.1}
    assert not any(layer.training for layer in model.modules())


def test_what_was_estimated_before_plays_no_part_and_the_order_follows_from_the_seed(images):
    model, other = build_model(SPEC, seed=0), build_model(SPEC, seed=0)
    adapt_batch_norm(other, 255 - images, seed=3, device="cpu")
    for each in (model, other):
        adapt_batch_norm(each, images, seed=0, device="cpu")
    states = model.state_dict(), other.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_network_without_batch_normalisation_is_an_error(images):
    model = build_model(SPEC, seed=0)
    model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.LayerNorm(128))
    with pytest.raises(WinnowError, match="small_cnn has no batch normalisation"):
        adapt_batch_norm(model, images, seed=0, device="cpu")


def test_one_image_has_no_variance(images):
    with pytest.raises(WinnowError, match="two images"):
        adapt_batch_norm(build_model(SPEC, seed=0), images[:1], seed=0, device="cpu")


def test_coral_is_the_distance_of_covariances():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) * 3
    expected = np.square(np.cov(source.T) - np.cov(target.T)).sum() / (4 * 5**2)
    found = coral(torch.from_numpy(source), torch.from_numpy(target))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_coral_pulls_features_together_and_ignores_where_they_lie():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(64, 4, generator=generator).requires_grad_()
    assert coral(source, source.detach() + 7).item() == pytest.approx(0.0, abs=1e-6)
    target = 2 * torch.randn(64, 4, generator=generator)
    before = coral(source, target)
    (gradient,) = torch.autograd.grad(before, source)
    with torch.no_grad():
        assert coral(source - 10 * gradient, target) < before


def test_coral_computes_in_full_precision_under_autocast():
    source, target = (torch.randn(32, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(coral(source, target), coral_outside(source, target))


def coral_outside(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return coral(source, target)


def plan(mode: str, recipe: Recipe = RECIPE, **changes) -> list[Phase]:
    given = {"head_epochs": 2, "backbone_lr_factor": 0.1, "layer_decay": 0.6, "stages": 4} | changes
    return phases(mode, recipe, **given)


def test_feature_extraction_is_the_head_on_features_that_know_flips_alone():
    recipe = Recipe(6, 4, 16, 0.01, shift=1, flip=True, cutout=3, mixup=0.2, cutmix=1.0)
    (head,) = plan("feature_extraction", recipe)
    assert head.on_features
    assert head.recipe == Recipe(2, 4, 16, 0.01, flip=True, backbone_lr_factor=0.0)


def test_probing_is_followed_by_all_at_a_lower_rate():
    head, both = plan("probe_then_full")
    assert (head.recipe.epochs, head.recipe.backbone_lr_factor) == (2, 0.0)
    assert (both.recipe.epochs, both.recipe.backbone_lr_factor) == (6, 0.1)
    assert {both.recipe.layer_decay, both.recipe.frozen_stages} == {1.0, 0}


def test_with_a_frozen_backbone_probing_goes_on_with_the_head_and_says_so():
    assert [phase.name for phase in plan("probe_then_full", backbone_lr_factor=0.0)] == ["head", "head"]
    assert [phase.name for phase in plan("probe_then_full")] == ["head", "head and backbone"]


@pytest.mark.parametrize("mode", ["probe_then_full", "gradual"])
@pytest.mark.parametrize("change", [{"shift": 1}, {"cutout": 2}, {"mixup": 0.1}, {"cutmix": 0.1}, {}])
def test_the_probe_is_on_features_only_where_that_changes_nothing(mode, change):
    head = plan(mode, Recipe(6, 4, 16, 0.01, flip=True, **change))[0]
    assert head.on_features == (change == {})


def test_gradual_unfreezes_from_the_top_an_epoch_each_and_spends_all_epochs():
    head, *rest = plan("gradual")
    assert head.recipe.epochs == 2
    assert [phase.recipe.frozen_stages for phase in rest] == [3, 2, 1, 0]
    assert [phase.recipe.epochs for phase in rest] == [1, 1, 1, 3]


@pytest.mark.parametrize(("epochs", "frozen"), [(1, [0]), (2, [2, 0]), (3, [2, 1, 0])])
def test_with_fewer_epochs_than_stages_several_are_unfrozen_at_once(epochs, frozen):
    found = plan("gradual", Recipe(epochs, 4, 16, 0.01), head_epochs=0)
    assert [phase.recipe.frozen_stages for phase in found] == frozen
    assert sum(phase.recipe.epochs for phase in found) == epochs


@pytest.mark.parametrize(("mode", "decay"), [("full", 1.0), ("layer_wise", 0.6)])
def test_all_at_once_is_one_phase(mode, decay):
    (phase,) = plan(mode)
    assert phase.recipe.epochs == 6
    assert phase.recipe.layer_decay == decay
    assert not phase.on_features


@pytest.mark.parametrize("mode", ["gradual", "layer_wise", "full"])
def test_a_mode_for_the_backbone_with_a_frozen_one_is_an_error(mode):
    with pytest.raises(WinnowError, match=f"mode {mode} trains the backbone"):
        plan(mode, backbone_lr_factor=0.0)


def test_a_mode_that_would_train_nothing_is_an_error():
    with pytest.raises(WinnowError, match="trains nothing"):
        plan("feature_extraction", head_epochs=0)


def test_coral_is_for_features_that_change():
    recipe = Recipe(6, 4, 16, 0.01, coral=1.0)
    with pytest.raises(WinnowError, match="coral must be 0"):
        plan("feature_extraction", recipe)
    head, both = plan("probe_then_full", recipe)
    assert (head.recipe.coral, both.recipe.coral) == (0.0, 1.0)


# --- training ----------------------------------------------------------------------------------


@pytest.fixture
def views(tiny_dataset: Dataset) -> tuple[View, View]:
    return split_view(tiny_dataset, "train"), split_view(tiny_dataset, "val")


@pytest.fixture
def model() -> Classifier:
    return build_model(ModelSpec("small_cnn", list("abc"), (16, 16, 1), [0.3], [0.3]), seed=0)


def state_of(model: Classifier) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_on_features_the_head_learns_as_it_does_on_images(views, model):
    """The frozen backbone computes the same either way, mirrored images too."""
    recipe = Recipe(3, 4, 16, 0.01, flip=True, backbone_lr_factor=0.0, precision="fp32", early_stopping=True)
    models = [model, build_model(model.spec, seed=0)]
    for each, on_features in zip(models, (True, False), strict=True):
        (result,) = transfer(
            each, views[0], [Phase("head", recipe, on_features)], seed=0, val=views[1], device="cpu",
            description=None,
        )  # fmt: skip
        assert result.model is each
        assert len(result.history) == 3
    assert not torch.equal(models[0].head.weight, build_model(model.spec, seed=0).head.weight)
    torch.testing.assert_close(models[0].head.weight, models[1].head.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(models[0].backbone.state_dict(), models[1].backbone.state_dict())


def test_feature_extraction_leaves_the_backbone_and_its_statistics_alone(views, model):
    before = state_of(model)
    transfer(
        model, views[0], plan("feature_extraction"), seed=0, val=views[1], device="cpu", description=None
    )
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("backbone."))
    assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.parametrize("mode", ["probe_then_full", "gradual", "layer_wise", "full"])
def test_each_mode_trains_the_backbone_and_repeats(views, model, mode):
    before = state_of(model)
    other = build_model(model.spec, seed=0)
    recipe = Recipe(2, 2, 16, 0.01)
    for each in (model, other):
        results = transfer(
            each, views[0], plan(mode, recipe, head_epochs=1), seed=0, device="cpu", description=None
        )
    assert sum(len(result.history) for result in results) >= 2
    after, again = model.state_dict(), other.state_dict()
    assert not any(
        torch.equal(before[key], after[key]) for key in ("backbone.blocks.0.0.weight", "head.weight")
    )
    assert all(torch.equal(after[key], again[key]) for key in after)


def test_phases_have_seeds_and_folders_of_their_own(views, model, monkeypatch, tmp_path: Path):
    seen = []

    def record(model, data, recipe, *, seed, keep_in, description, **_rest):
        from stages.learning.loop import Fit

        seen.append((seed, keep_in, description))
        return Fit(model)

    monkeypatch.setattr("stages.learning.adapting.fit", record)
    transfer(model, views[0], plan("probe_then_full"), seed=2**32 - 2, device="cpu", keep_in=tmp_path)
    assert seen == [
        (2**32 - 1, tmp_path / "phase_0", "head"),
        (0, tmp_path / "phase_1", "head and backbone"),
    ]


def test_coral_without_unlabelled_images_is_an_error_before_anything_is_trained(views, model):
    before = state_of(model)
    recipe = Recipe(2, 2, 16, 0.01, coral=1.0)
    with pytest.raises(WinnowError, match="samples of the split `unlabeled`"):
        transfer(
            model,
            views[0],
            plan("probe_then_full", recipe),
            seed=0,
            unlabeled=np.zeros((0, 16, 16, 1), np.uint8),
        )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
