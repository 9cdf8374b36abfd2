from dataclasses import replace
from typing import get_args

import pytest
import torch
from test_graph import ROOT
from torch import nn
from torch.nn import functional

from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.names import Activation, Initialisation, Normalisation
from stages.learning.networks.catalogue import OWN_NETWORKS, build_backbone, reason_against
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.networks.zoo import stages_of

CHOICES = [
    *((name, {}) for name in OWN_NETWORKS),
    *(("small_cnn", {"activation": name}) for name in get_args(Activation)),
    *(("mlp", {"initialisation": name}) for name in get_args(Initialisation)),
    *((network, {"normalisation": name}) for network in ("mlp", "gru") for name in get_args(Normalisation)),
    *(("resnet20", {"normalisation": name}) for name in ("group", "layer", "none")),
    *((name, {"dropout": 0.3}) for name in OWN_NETWORKS),
    *((name, {"residual": True, "stochastic_depth": 0.3}) for name in ("mlp", "small_cnn", "resnet9")),
]


def spec(architecture: str, shape=(16, 16, 1), **layers) -> ModelSpec:
    statistics = [[value] * shape[2] for value in (0.5, 0.25)]
    return ModelSpec(architecture, ["a", "b", "c"], shape, *statistics, layers=Layers(**layers))


def fit_of(*parameters: nn.Parameter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


@pytest.mark.parametrize(("name", "layers"), CHOICES)
def test_every_name_trains_two_steps(name, layers):
    model = build_model(spec(name, (8, 8, 1), **layers), seed=0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels = torch.arange(12) % 3
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    torch.manual_seed(0)
    moved = set()
    for _ in range(2):
        optimiser.zero_grad()
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        functional.cross_entropy(model(images), labels).backward()
        assert all(value.grad is not None for value in model.parameters())
        assert all(value.grad.isfinite().all() for value in model.parameters())
        optimiser.step()
        moved |= {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    still = [key for key, _ in model.named_parameters() if key not in moved]
    assert len(still) <= 1, still  # the bias in front of a normalisation has no gradient


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (24, 40, 3)])
@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_own_networks_take_every_size_and_colour(name, shape):
    backbone, width = build_backbone(spec(name, shape))
    assert backbone(torch.randn(2, shape[2], *shape[:2])).shape == (2, width)


def test_small_cnn_is_what_it_was_to_the_bit():
    made = build_model(spec("small_cnn"), seed=3).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        before, modules = 1, {}
        for index, width in ((0, 32), (1, 32), (3, 64), (4, 64), (6, 128), (7, 128)):
            modules[f"backbone.blocks.{index}.0"] = nn.Conv2d(before, width, 3, bias=False)
            modules[f"backbone.blocks.{index}.1"] = nn.BatchNorm2d(width)
            before = width
        modules["head"] = nn.Linear(128, 3)
    old = {f"{name}.{key}": value for name, one in modules.items() for key, value in one.state_dict().items()}
    assert list(made) == list(old)
    assert all(torch.equal(made[key], old[key]) for key in old)


@pytest.mark.parametrize(("name", "thousands"), [("resnet20", 270), ("resnet32", 464)])
def test_small_resnets_have_the_layers_and_weights_of_the_paper(name, thousands):
    model = build_model(replace(spec(name, (32, 32, 3)), classes=list("0123456789")), seed=0)
    weighted = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(weighted) == int(name.removeprefix("resnet"))
    assert sum(value.numel() for value in model.parameters()) // 1000 == pytest.approx(thousands, abs=2)


def test_a_residual_network_without_normalisation_starts_calm():
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = build_model(spec("resnet32", (16, 16, 3), normalisation="none"), seed=0).backbone(pixels)
    assert 0.01 < features.square().mean().sqrt().item() < 10


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_connections_change_what_is_computed_but_no_name(name):
    plain, residual = (build_model(spec(name, residual=value), seed=0).eval() for value in (False, True))
    assert [key for key, _ in plain.named_parameters()] == [key for key, _ in residual.named_parameters()]
    residual.load_state_dict(plain.state_dict())
    images = torch.full((1, 16, 16, 1), 200, dtype=torch.uint8)
    assert not torch.equal(plain(images), residual(images))


@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_dropout_is_for_training_alone(name):
    backbone = build_backbone(spec(name, dropout=0.5))[0]
    pixels = torch.randn(4, 1, 16, 16)
    backbone.eval()
    assert torch.equal(backbone(pixels), backbone(pixels))
    backbone.train()
    torch.manual_seed(0)
    assert not torch.equal(backbone(pixels), backbone(pixels))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_networks_read_rows_in_their_order(name):
    backbone = build_backbone(spec(name, (16, 16, 3)))[0].eval()
    pixels = torch.randn(2, 3, 16, 16)
    changed = pixels.clone()
    changed[:, :, [3, 9]] = pixels[:, :, [9, 3]]
    assert not torch.allclose(backbone(pixels), backbone(changed), atol=1e-4)
    assert backbone(pixels[:, :, :11]).shape == (2, 256)


def test_a_fresh_lstm_remembers():
    first = build_backbone(spec("lstm"))[0].recurrent[0]
    assert first.bias_ih_l0.view(4, -1)[1].eq(1).all()
    assert first.bias_hh_l0.eq(0).all()
    gate = first.weight_hh_l0.view(4, 128, 128)[2]
    torch.testing.assert_close(gate @ gate.T, torch.eye(128), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet19", "resnet18"),
        ("smallcnn", "small_cnn"),
        ("mobilnet_v2", "mobilenet_v2"),
        ("SMALL_CNN", "small_cnn"),
        ("?", "resnet9"),
        ("", "resnet9"),
        ("list_models", "timm/NAME"),
        ("fcn_resnet50", "resnet50"),
    ],
)
def test_a_wrong_name_lists_the_right_ones(name, close):
    with pytest.raises(WinnowError) as caught:
        build_backbone(spec(name))
    said = str(caught.value)
    assert said.startswith(f"network {name!r}: there is no network of this name")
    assert all(known in said for known in (*OWN_NETWORKS, close))


@pytest.mark.parametrize(
    ("name", "layers", "said"),
    [
        ("resnet18", {"activation": "gelu"}, "takes none of it"),
        ("mobilenet_v2", {"dropout": 0.1}, "takes none of it"),
        ("lstm", {"residual": True}, "set residual to false"),
        ("gru", {"stochastic_depth": 0.1}, "set stochastic_depth to 0.0"),
        ("airbench94", {"activation": "gelu"}, "takes dropout alone: set activation to relu"),
        ("lstm", {"residual": True, "stochastic_depth": 0.1}, "stochastic_depth to 0.0, residual to false"),
        ("mlp", {"stochastic_depth": 0.1}, "set residual to true"),
        ("small_cnn", {"stochastic_depth": 0.1}, "set residual to true"),
    ],
)
def test_layers_that_a_network_cannot_be_built_of(name, layers, said):
    assert said in str(reason_against(name, Layers(**layers)))
    with pytest.raises(WinnowError, match=said):
        build_backbone(spec(name, **layers))


def test_stages_of_own_networks_are_in_order():
    backbone = build_backbone(spec("small_cnn"))[0]
    widths = [list(stage.modules())[-3].out_channels for stage in stages_of(backbone)]
    assert widths == [32, 64, 128]


def test_docs_and_params_name_every_network_of_our_own():
    for path in ("docs/training.md", "params.yaml"):
        text = (ROOT / path).read_text("utf-8")
        assert [name for name in OWN_NETWORKS if name not in text] == [], path
