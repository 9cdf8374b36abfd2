from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.errors import WinnowError
from stages.learning.models import Ensemble, build_model, member_seed, members_of
from stages.learning.networks.layers import Layers, ModelSpec, Preprocessing


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
    changed = replace(
        before,
        layers=Layers(activation="gelu", dropout=0.1),
        members=3,
        second_classes=["x"],
        temperature=1.5,
        preprocessing=Preprocessing("pad", "rgb"),
    )
    assert ModelSpec.from_json(changed.to_json()) == changed
    with pytest.raises(WinnowError, match="not the description"):
        ModelSpec.from_json({"architecture": "small_cnn"})


def test_a_description_from_before_there_were_layers_is_read():
    old = spec("small_cnn").to_json()
    for key in ("layers", "members", "second_classes", "temperature", "preprocessing"):
        del old[key]
    assert ModelSpec.from_json(old) == spec("small_cnn")


def pixels(number: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 16, 16, 1), dtype=torch.uint8, generator=generator)


def test_an_ensemble_gives_the_mean_of_its_members_probabilities():
    model = build_model(spec("mlp", members=3), seed=0).eval()
    members = members_of(model)
    assert isinstance(model, Ensemble)
    expected = torch.stack([member(pixels()).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(model(pixels()).softmax(1), expected)
    features = model.embed(pixels())
    assert features.shape == (5, model.width)
    assert torch.equal(features, torch.cat([member.embed(pixels()) for member in members], 1))
    torch.testing.assert_close(model.classify(features), model(pixels()))


def test_members_differ_and_the_first_is_the_model_of_that_seed():
    members = members_of(build_model(spec("small_cnn", members=3), seed=4))
    alone = build_model(spec("small_cnn"), seed=4)
    assert members_of(alone) == [alone]
    weights = [member.head.weight for member in members]
    assert torch.equal(weights[0], alone.head.weight)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    seeds = [member_seed(seed, index) for seed in range(20) for index in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_members_that_were_trained_apart_become_one_model():
    apart = [build_model(spec("mlp", temperature=2.0), seed=seed) for seed in (1, 2)]
    together = Ensemble(apart)
    assert together.spec == spec("mlp", members=2)
    again = build_model(replace(together.spec, temperature=1.5), seed=0)
    assert again.spec.temperature == 1.5
    again.load_state_dict(together.state_dict())
    assert torch.equal(again.eval()(pixels()), together.eval()(pixels()))
    assert next(iter(together.state_dict())).startswith("members.0.backbone.")


def test_an_ensemble_is_of_equals():
    one, other = build_model(spec("mlp"), seed=0), build_model(spec("small_cnn"), seed=0)
    for members in ([], [one, other], [Ensemble([one]), Ensemble([one, one])]):
        with pytest.raises(ValueError, match="same description"):
            Ensemble(members)


@pytest.mark.parametrize("members", [1, 2])
def test_a_second_head_is_there_where_it_has_classes(members):
    model = build_model(spec("mlp", members=members, second_classes=["x", "y"]), seed=0).eval()
    second = model.classify_second(model.embed(pixels()))
    assert second.shape == (5, 2)
    assert any("second_head" in key for key in model.state_dict())
    plain = build_model(spec("mlp", members=members), seed=0).eval()
    torch.testing.assert_close(plain(pixels()), model(pixels()))  # it draws after all else
    with pytest.raises(ValueError, match="no second head"):
        plain.classify_second(plain.embed(pixels()))
    assert all(member.second_head is None for member in members_of(plain))
