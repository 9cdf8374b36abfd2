import numpy as np
import pytest
import torch
from torch import nn

from stages.errors import WinnowError
from stages.learning.models import ModelSpec, build_model
from stages.learning.transfer.adaptation import adapt_batch_norm, coral

SPEC = ModelSpec("small_cnn", ["a", "b"], (8, 8, 1), [0.4], [0.2])


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
