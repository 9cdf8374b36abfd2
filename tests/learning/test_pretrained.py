import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.errors import WinnowError
from stages.learning.models import build_model, members_of
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.pretrained import backbone_from, pretrained_backbone, torchvision_architecture
from stages.learning.store import save_model

SPEC = ModelSpec("small_cnn", ["a", "b"], (16, 16, 1), [0.4], [0.2])


def test_the_same_classes_keep_backbone_and_head(tmp_path: Path):
    trained = build_model(SPEC, seed=5)
    save_model(tmp_path, trained)
    model, _ = backbone_from(tmp_path, SPEC, architecture=None, seed=0)
    assert torch.equal(model.head.weight, trained.head.weight)


def test_other_classes_keep_the_backbone_and_get_a_fresh_head(tmp_path: Path):
    trained = build_model(SPEC, seed=5)
    save_model(tmp_path, trained)
    other = ModelSpec("small_cnn", ["x", "y", "z"], (16, 16, 1), [0.4], [0.2])
    for source in (tmp_path, tmp_path / "model.safetensors"):
        model, _ = backbone_from(source, other, architecture=None, seed=0)
        assert model.head.out_features == 3
        own, theirs = model.backbone.state_dict(), trained.backbone.state_dict()
        assert all(torch.equal(own[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("shape", [(16, 16, 1), (32, 32, 3)])
def test_torchvisions_own_file_fits_grey_and_colour_images(tmp_path: Path, shape):
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    channels = shape[2]
    spec = ModelSpec("small_cnn", ["a", "b"], shape, [0.4] * channels, [0.2] * channels)
    model, _ = backbone_from(tmp_path / "resnet18.pth", spec, architecture="resnet18", seed=0)
    assert torch.equal(
        model.backbone.state_dict()[("1." if channels == 1 else "") + "layer4.1.conv2.weight"],
        network.layer4[1].conv2.weight,
    )
    assert model.eval()(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 2)
    (tmp_path / "again").mkdir()
    save_model(tmp_path / "again", model)
    again, _ = backbone_from(tmp_path / "again", spec, architecture=None, seed=0)
    assert again.spec == model.spec


def test_a_file_of_unknown_architecture_asks_for_it(tmp_path: Path):
    save_file({"weight": torch.ones(1)}, tmp_path / "some.safetensors")
    with pytest.raises(WinnowError, match="name it in `architecture`"):
        backbone_from(tmp_path / "some.safetensors", SPEC, architecture=None, seed=0)


def test_weights_of_another_network_are_refused_with_what_does_not_fit(tmp_path: Path):
    save_file({"weight": torch.ones(1)}, tmp_path / "some.safetensors")
    with pytest.raises(WinnowError, match="does not fit small_cnn") as error:
        backbone_from(tmp_path / "some.safetensors", SPEC, architecture="small_cnn", seed=0)
    assert "tensors missing" in str(error.value)


@pytest.mark.parametrize(
    "name", ["ResNet18", "ResNet18_Weights.IMAGENET1K_V9", "MaskRCNN_ResNet50_FPN_Weights.DEFAULT"]
)
def test_an_unknown_name_of_weights_lists_the_known_ones(name):
    with pytest.raises(
        WinnowError, match=r"no known name; known: .*ResNet18_Weights\.IMAGENET1K_V1"
    ) as error:
        pretrained_backbone(name, SPEC, seed=0)
    assert "finetune" not in str(error.value)


def test_what_a_slip_of_the_pen_may_have_meant_is_listed_first():
    with pytest.raises(WinnowError, match=r"known: ResNet18_Weights\.IMAGENET1K_V1"):
        pretrained_backbone("Resnet18_Weights.IMAGENET1K_V1", SPEC, seed=0)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("EfficientNet_B0_Weights.IMAGENET1K_V1", "efficientnet_b0"),
        ("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", "vit_b_16"),
        ("ConvNeXt_Tiny_Weights.IMAGENET1K_V1", "convnext_tiny"),
    ],
)
def test_weights_are_for_the_network_that_torchvision_has_them_for(name, architecture):
    assert torchvision_architecture(name) == architecture


def test_without_a_network_it_says_where_to_bring_the_file(tmp_path: Path, monkeypatch):
    from urllib.error import URLError

    def refuse(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WinnowError, match="bring https") as error:
        pretrained_backbone("ResNet18_Weights.IMAGENET1K_V1", SPEC, seed=0)
    assert str(tmp_path / "checkpoints" / "resnet18-") in str(error.value)


def test_a_cached_file_of_torchvisions_is_used(tmp_path: Path, monkeypatch):
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    model, origin = pretrained_backbone("ResNet18_Weights.IMAGENET1K_V1", SPEC, seed=0)
    assert origin == "ResNet18_Weights.IMAGENET1K_V1"
    assert torch.equal(model.backbone.state_dict()["1.conv1.weight"], network.conv1.weight)
    assert len(model.spec.mean) == 3


def test_layers_of_the_trained_model_are_taken_over(tmp_path: Path):
    trained = build_model(replace(SPEC, layers=Layers(dropout=0.3)), seed=5)
    save_model(tmp_path, trained)
    model, _ = backbone_from(tmp_path, replace(SPEC, classes=["x", "y", "z"]), architecture=None, seed=0)
    assert model.spec.layers.dropout == 0.3


def test_of_an_ensemble_each_member_is_taken_over(tmp_path: Path):
    trained = build_model(replace(SPEC, members=2), seed=5)
    save_model(tmp_path, trained)
    for classes in (SPEC.classes, ["x", "y", "z"]):
        model, _ = backbone_from(tmp_path, replace(SPEC, classes=classes), architecture=None, seed=0)
        pairs = list(zip(members_of(model), members_of(trained), strict=True))
        assert len(pairs) == 2
        for own, theirs in pairs:
            states = own.backbone.state_dict(), theirs.backbone.state_dict()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
            assert torch.equal(own.head.weight, theirs.head.weight) == (classes == SPEC.classes)


def test_a_second_head_comes_fresh_beside_the_first_that_is_kept(tmp_path: Path):
    trained = build_model(SPEC, seed=5)
    save_model(tmp_path, trained)
    model, origin = backbone_from(
        tmp_path, replace(SPEC, second_classes=["m", "n", "o"]), architecture=None, seed=0
    )
    assert torch.equal(model.head.weight, trained.head.weight)
    assert model.second_head.out_features == 3
    save_model(tmp_path, model)
    again, _ = backbone_from(tmp_path, model.spec, architecture=None, seed=9)
    assert torch.equal(again.second_head.weight, model.second_head.weight)
    assert origin.endswith("with its head")


def test_temperature_is_not_taken_over_since_training_goes_on(tmp_path: Path):
    trained = build_model(replace(SPEC, temperature=2.5), seed=5)
    save_model(tmp_path, trained)
    model, _ = backbone_from(tmp_path, SPEC, architecture=None, seed=0)
    assert model.spec.temperature == 1.0


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path):
    """As in VGG16_Weights.IMAGENET1K_FEATURES, whose last layers were never trained."""
    state = {key: value.contiguous() for key, value in build_model(SPEC, seed=5).state_dict().items()}
    state["backbone.blocks.0.0.weight"][0] = float("nan")
    save_file(state, tmp_path / "some.safetensors")
    with pytest.raises(WinnowError, match=r"no numbers for some weights of small_cnn: blocks\.0\.0\.weight"):
        backbone_from(tmp_path / "some.safetensors", SPEC, architecture="small_cnn", seed=0)


def test_files_from_before_batches_were_counted_are_taken(tmp_path: Path):
    """Such as torchvision's `ResNet18_Weights.IMAGENET1K_V1`."""
    import torchvision

    whole = torchvision.models.resnet18(weights=None).state_dict()
    old = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    assert len(old) == 102
    torch.save(old, tmp_path / "old.pth")
    spec = ModelSpec("small_cnn", ["a", "b"], (32, 32, 3), [0.5] * 3, [0.2] * 3)
    model, _ = backbone_from(tmp_path / "old.pth", spec, architecture="resnet18", seed=0)
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in old.items() if not key.startswith("fc."))
    assert state["bn1.num_batches_tracked"] == 0
    torch.save({key: value for key, value in old.items() if key != "bn1.running_var"}, tmp_path / "old.pth")
    with pytest.raises(WinnowError, match=r"no bn1\.running_var \(1 tensors missing"):
        backbone_from(tmp_path / "old.pth", spec, architecture="resnet18", seed=0)


def test_densenets_old_names_are_understood(tmp_path: Path, monkeypatch):
    import torchvision

    network = torchvision.models.densenet121(weights=None)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in network.state_dict().items()
    }
    assert set(old) != set(network.state_dict())
    weights = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(old, tmp_path / "checkpoints" / Path(weights.url).name)
    spec = replace(SPEC, image_shape=(32, 32, 3), mean=[0.4] * 3, std=[0.2] * 3)
    model, _ = pretrained_backbone("DenseNet121_Weights.IMAGENET1K_V1", spec, seed=0)
    kept = {name.rpartition("features.")[2]: value for name, value in model.backbone.state_dict().items()}
    key = "denseblock1.denselayer1.norm1.weight"
    assert torch.equal(kept[key], network.features.state_dict()[key])


def test_a_cached_file_that_would_run_code_is_not_loaded(tmp_path: Path, monkeypatch):
    import torchvision

    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"conv1.weight": Path("anything")}, tmp_path / "checkpoints" / Path(weights.url).name)
    with pytest.raises(WinnowError, match="holds more than weights"):
        pretrained_backbone("ResNet18_Weights.IMAGENET1K_V1", SPEC, seed=0)


def test_timms_weights_come_by_timms_name(monkeypatch):
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    monkeypatch.setattr("timm.create_model", without_a_download(timm.create_model, network))
    spec = replace(SPEC, image_shape=(32, 32, 1))
    model, origin = pretrained_backbone("timm/resnet10t.c3_in1k", spec, seed=0)
    assert origin == "timm/resnet10t.c3_in1k"
    assert model.spec.architecture == "timm/resnet10t"
    kept = list(model.backbone.state_dict().values())
    theirs = list(network.state_dict().values())
    assert all(torch.equal(one, two) for one, two in zip(kept, theirs, strict=True))


def without_a_download(create, network):
    def replaced(name, *, pretrained=False, **choices):
        return network if pretrained else create(name, pretrained=False, **choices)

    return replaced


def test_timms_weights_without_a_network_say_which_file_to_bring(monkeypatch):
    timm = pytest.importorskip("timm")

    def refuse(create):
        def replaced(name, *, pretrained=False, **choices):
            if pretrained:
                raise OSError("no network")
            return create(name, pretrained=False, **choices)

        return replaced

    monkeypatch.setattr("timm.create_model", refuse(timm.create_model))
    with pytest.raises(
        WinnowError, match=r"bring https://huggingface.co/timm/resnet10t.c3_in1k/.*safetensors"
    ):
        pretrained_backbone("timm/resnet10t.c3_in1k", replace(SPEC, image_shape=(32, 32, 1)), seed=0)
