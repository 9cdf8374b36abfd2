import importlib.util
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.catalogue import build_backbone, reason_against
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.networks.zoo import is_torchvision, stages_of, torchvision_names

# The smallest of each family.
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11_bn",
    "vit_b_16",
]


def spec(architecture: str, shape=(32, 32, 1), **changes) -> ModelSpec:
    channels = changes.pop("normalised_channels", shape[2])
    return ModelSpec(architecture, ["a", "b"], shape, [0.5] * channels, [0.25] * channels, **changes)


def built(architecture: str, size: int, channels: int = 1, **changes):
    """Backbone, width and features of two images; without memory where the network can be built so."""
    shape = (size, size, channels)
    regnet = architecture.startswith("regnet")
    with nullcontext() if regnet else torch.device("meta"):
        backbone, width = build_backbone(spec(architecture, shape, **changes))
        features = backbone.eval()(torch.zeros(2, channels, size, size))
    return backbone, width, features


def all_once(backbone: nn.Module) -> bool:
    """Whether the stages hold every parameter, each once."""
    found = [id(value) for stage in stages_of(backbone) for value in stage.parameters()]
    return sorted(found) == sorted(id(value) for value in backbone.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_small_grey_images(name):
    backbone, width, features = built(name, 32)
    assert features.shape == (2, width)
    assert len(stages_of(backbone)) > 3
    assert all_once(backbone)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 64, 224])
def test_all_of_torchvision(size):
    for name in torchvision_names():
        if name != "regnet_y_128gf":  # 2.6 GB
            backbone, width, features = built(name, size, 3)
            assert features.shape == (2, width), name
            assert all_once(backbone), name


def test_names_are_those_of_classifiers():
    assert is_torchvision("convnext_tiny")
    assert not is_torchvision("fcn_resnet50")
    assert not is_torchvision("small_cnn")
    assert not is_torchvision(None)


def test_small_images_keep_their_resolution():
    small, large = built("resnet18", 32, 3)[0], built("resnet18", 64, 3)[0]
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(small.maxpool, nn.Identity)
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(large.maxpool, nn.MaxPool2d)


def test_the_next_reduction_is_left_out_with_what_runs_beside_it():
    block = built("regnet_y_400mf", 32)[0].trunk_output.block1[0]
    assert block.proj[0].stride == block.f.b[0].stride == (1, 1)
    assert built("mobilenet_v2", 32)[0].features[2].conv[1][0].stride == (1, 1)


def test_patches_get_small():
    assert built("convnext_tiny", 32)[0].features[0][0].stride == (2, 2)
    assert built("convnext_tiny", 8)[0].features[0][0].stride == (1, 1)
    assert built("convnext_tiny", 64)[0].features[0][0].stride == (4, 4)


def test_a_network_without_strides_loses_as_many_pools_as_it_must():
    pools = {
        size: sum(isinstance(part, nn.MaxPool2d) for part in built("vgg11", size)[0].modules())
        for size in (8, 16, 32)
    }
    assert pools == {8: 3, 16: 4, 32: 5}


@pytest.mark.parametrize(
    ("name", "size", "patch"), [("vit_b_16", 32, 4), ("vit_b_32", 64, 32), ("vit_b_16", 72, 12)]
)
def test_vision_transformers_get_patches_that_divide_the_image(name, size, patch):
    backbone = built(name, size)[0]
    assert backbone.conv_proj.stride == (patch, patch)
    assert backbone.encoder.pos_embedding.shape[1] == (size // patch) ** 2 + 1


def test_pretrained_weights_find_torchvisions_own_tensors():
    import torchvision

    for name, size in (("resnet18", 32), ("vit_b_16", 224), ("convnext_tiny", 64)):
        backbone = built(name, size, 3, normalised_channels=3, pretrained_stem=True)[0]
        with torch.device("meta"):
            theirs = getattr(torchvision.models, name)(weights=None).state_dict()
        ours = backbone.state_dict()
        assert all(theirs[key].shape == value.shape for key, value in ours.items())
        assert len(theirs) - len(ours) == 2  # weight and bias of the head


def test_grey_images_enter_a_pretrained_stem_and_its_stages():
    backbone, width, features = built("resnet18", 32, 1, normalised_channels=3, pretrained_stem=True)
    assert features.shape == (2, width)
    assert len(stages_of(backbone)) == 5
    assert all_once(backbone)


@pytest.mark.parametrize(
    ("name", "shape", "changes", "said"),
    [
        ("inception_v3", (8, 8, 1), {}, "inception_v3 takes no images of 8×8 pixels"),
        ("vit_b_16", (32, 16, 1), {}, "must be square"),
        ("vit_b_16", (40, 40, 3), {"pretrained_stem": True}, "multiple of 16"),
        ("maxvit_t", (8, 8, 3), {}, "multiples of 16"),
        ("convnext_tiny", (16, 16, 3), {"pretrained_stem": True}, "with the stem that its weights"),
    ],
)
def test_images_that_a_network_cannot_take(name, shape, changes, said):
    with torch.device("meta"), pytest.raises(WinnowError, match=said):
        build_backbone(spec(name, shape, **changes))


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_network_of_torchvision_trains_two_steps(name):
    model = build_model(spec(name, (16, 16, 3)), seed=0)
    again = build_model(spec(name, (16, 16, 3)), seed=0)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    images = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        assert all(value.grad.isfinite().all() for value in model.parameters())
        torch.optim.SGD(model.parameters(), 0.01).step()
    assert not torch.equal(model.head.weight, again.head.weight)


def test_stages_go_from_the_image_to_the_features():
    stages = stages_of(built("resnet18", 32)[0])
    assert [sum(value.numel() for value in stage.parameters()) for stage in stages] == [
        704,  # the stem with its normalisation
        147_968,
        525_568,
        2_099_712,
        8_393_728,
    ]
    transformer = built("vit_b_16", 32)[0]
    first, *blocks, last = stages_of(transformer)
    assert {id(transformer.class_token), id(transformer.conv_proj.weight)} <= set(map(id, first.parameters()))
    assert len(blocks) == 11
    assert id(transformer.encoder.ln.weight) in set(map(id, last.parameters()))


def test_timm_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(WinnowError, match=r"pip install winnow\[timm\]"):
        build_backbone(spec("timm/resnet18"))


needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


@needs_timm
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_timm(name, channels):
    backbone, width, features = built(f"timm/{name}", 32, channels)
    assert features.shape == (2, width)
    assert all_once(backbone)
    grey = built(f"timm/{name}", 160, 1, normalised_channels=3, pretrained_stem=True)[0]
    assert next(value for value in grey.parameters() if value.dim() == 4).shape[1] == 3


@needs_timm
def test_names_of_timm_are_its_own():
    assert reason_against("timm/resnet18", Layers()) is None
    assert "timm/resnet18" in str(reason_against("timm/resnet18x", Layers()))
    assert reason_against("timm/hf-hub:timm/resnet18", Layers()) is not None  # nothing is fetched by a name
    assert "takes none of it" in str(reason_against("timm/resnet18", Layers(dropout=0.1)))
