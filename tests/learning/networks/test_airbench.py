import pytest
import torch

from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.airbench import Airbench94, Whitening
from stages.learning.networks.catalogue import reason_against
from stages.learning.networks.layers import Layers, ModelSpec


def photos(count: int, side: int, channels: int = 3) -> torch.Tensor:
    """Neighbouring pixels and channels alike, as in photos."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, channels, side // 4, side // 4, generator=generator)
    noise = torch.randn(count, channels, side, side, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return smooth + smooth.mean(1, keepdim=True) + 0.2 * noise


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_are_uncorrelated_and_of_variance_one(channels: int):
    pixels, layer = photos(200, 16, channels), Whitening(channels)
    layer.fit(pixels)
    half = layer.width // 2
    answers = layer(pixels)[:, :half].transpose(0, 1).flatten(1)
    moments = answers @ answers.T / answers.shape[1]
    torch.testing.assert_close(moments, torch.eye(half), atol=0.02, rtol=0)
    assert torch.equal(layer.weight[half:], -layer.weight[:half])


def test_the_whitening_is_taken_once_and_is_kept_with_the_weights():
    layer, other = Whitening(3), Whitening(3)
    layer.fit(photos(20, 16))
    before = layer.weight.clone()
    layer.fit(photos(20, 16).flip(0) * 3)
    assert torch.equal(layer.weight, before)
    other.load_state_dict(layer.state_dict())
    other.fit(photos(20, 16) * 3)
    assert torch.equal(other.weight, before)


def test_of_large_images_some_are_enough():
    """500 of 128 pixels have more patches than are looked at: the rest may be anything."""
    pixels = torch.zeros(500, 1, 128, 128)
    looked_at = torch.arange(0, 500, 500 // 312)[:312]
    pixels[looked_at] = photos(312, 128, 1)
    one, other = Whitening(1), Whitening(1)
    one.fit(pixels)
    others = torch.ones(500, dtype=torch.bool)
    others[looked_at] = False
    pixels[others] = 100.0
    other.fit(pixels)
    assert torch.equal(one.weight, other.weight)


def test_neither_whitening_nor_scales_of_normalisation_learn():
    network = Airbench94(3, Layers())
    names = {name for name, _ in network.named_parameters()}
    assert "whitening.weight" not in names
    assert sorted(name for name in names if name.startswith("blocks.0.")) == [
        "blocks.0.0.weight",
        "blocks.0.2.bias",
        "blocks.0.4.weight",
        "blocks.0.5.bias",
    ]
    assert sum(value.numel() for value in network.parameters()) == 1_968_792


def test_the_bias_of_the_whitening_stops_learning():
    network = Airbench94(3, Layers())
    assert network.finished(0.0) == network.finished(0.29) == []
    for share in (0.3, 0.9):
        (finished,) = network.finished(share)
        assert finished is network.whitening.bias


def test_its_logits_have_no_bias():
    spec = ModelSpec(
        "airbench94", ["a", "b"], (16, 16, 3), [0.5] * 3, [0.25] * 3, second_classes=["x", "y", "z"]
    )
    model = build_model(spec, seed=0)
    assert model.head.bias is None
    assert model.second_head is not None
    assert model.second_head.bias is None


def test_kernels_start_as_identities():
    network = Airbench94(3, Layers())
    kernel = network.blocks[1][4].weight
    maps = torch.randn(2, 256, 4, 4)
    torch.testing.assert_close(torch.nn.functional.conv2d(maps, kernel, padding=1), maps)


@pytest.mark.parametrize("layers", [{"activation": "relu", "residual": True}, {"normalisation": "group"}])
def test_layers_that_it_is_not_built_of_are_refused(layers: dict):
    why = reason_against("airbench94", Layers(**layers))
    assert why is not None
    assert "dropout" in why
    with pytest.raises(WinnowError, match="airbench94"):
        build_model(
            ModelSpec("airbench94", ["a"], (16, 16, 1), [0.5], [0.25], layers=Layers(**layers)), seed=0
        )
