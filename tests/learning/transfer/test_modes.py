from pathlib import Path

import numpy as np
import pytest
import torch

from stages.dataset import Dataset, View, split_view
from stages.errors import WinnowError
from stages.learning.models import Classifier, ModelSpec, build_model
from stages.learning.recipe import Recipe
from stages.learning.transfer.modes import Phase, phases, transfer

RECIPE = Recipe(epochs=6, steps_per_epoch=4, batch_size=16, learning_rate=0.01, shift=1, flip=True)


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

    monkeypatch.setattr("stages.learning.transfer.modes.fit", record)
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
