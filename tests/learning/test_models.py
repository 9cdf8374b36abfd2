import numpy as np
import pytest
import torch

from stages.errors import WinnowError
from stages.learning.models import ModelSpec, build_model


def spec(architecture: str, shape=(16, 16, 1), **changes) -> ModelSpec:
    channels = changes.pop("normalised_channels", shape[2])
    return ModelSpec(architecture, ["a", "b", "c"], shape, [0.5] * channels, [0.25] * channels, **changes)


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (64, 64, 3)])
def test_every_size_and_colour_gives_logits_and_features(architecture, shape):
    model = build_model(spec(architecture, shape), seed=0).eval()
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    assert model(images).shape == (2, 3)
    assert model.embed(images).shape == (2, model.head.in_features)


def test_grey_images_enter_a_pretrained_colour_stem():
    model = build_model(spec("resnet18", normalised_channels=3, pretrained_stem=True), seed=0).eval()
    assert model(torch.zeros(2, 16, 16, 1, dtype=torch.uint8)).shape == (2, 3)


def test_normalisation_is_that_of_the_spec():
    model = build_model(spec("small_cnn"), seed=0)
    pixels = torch.full((1, 16, 16, 1), 255, dtype=torch.uint8)
    np.testing.assert_allclose(model.normalise(pixels).numpy(), 2.0)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    one, same, other = (build_model(spec("small_cnn"), seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(WinnowError) as error:
        build_model(spec("resnet19"), seed=0)
    assert all(name in str(error.value) for name in ("small_cnn", "resnet18"))


def test_a_spec_survives_json():
    before = spec("resnet34", (64, 64, 3))
    assert ModelSpec.from_json(before.to_json()) == before
    with pytest.raises(WinnowError, match="not the description"):
        ModelSpec.from_json({"architecture": "small_cnn"})
