from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.errors import WinnowError
from stages.learning.models import ModelSpec, build_model
from stages.learning.store import save_model
from stages.learning.transfer.sources import backbone_from, pretrained_from_torchvision

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
    with pytest.raises(WinnowError, match=r"finetune\.architecture"):
        backbone_from(tmp_path / "some.safetensors", SPEC, architecture=None, seed=0)


def test_weights_of_another_network_are_refused_with_what_does_not_fit(tmp_path: Path):
    save_file({"weight": torch.ones(1)}, tmp_path / "some.safetensors")
    with pytest.raises(WinnowError, match="does not fit small_cnn") as error:
        backbone_from(tmp_path / "some.safetensors", SPEC, architecture="small_cnn", seed=0)
    assert "tensors missing" in str(error.value)


def test_an_unknown_name_of_weights_lists_the_known_ones():
    with pytest.raises(WinnowError, match=r"ResNet18_Weights\.IMAGENET1K_V1"):
        pretrained_from_torchvision("ResNet18", SPEC, seed=0)


def test_without_a_network_it_says_where_to_bring_the_file(tmp_path: Path, monkeypatch):
    from urllib.error import URLError

    def refuse(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WinnowError, match="bring https") as error:
        pretrained_from_torchvision("ResNet18_Weights.IMAGENET1K_V1", SPEC, seed=0)
    assert str(tmp_path / "checkpoints" / "resnet18-") in str(error.value)


def test_a_cached_file_of_torchvisions_is_used(tmp_path: Path, monkeypatch):
    import torchvision

    network = torchvision.models.resnet18(weights=None)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / Path(weights.url).name)
    model, origin = pretrained_from_torchvision("ResNet18_Weights.IMAGENET1K_V1", SPEC, seed=0)
    assert origin == "ResNet18_Weights.IMAGENET1K_V1"
    assert torch.equal(model.backbone.state_dict()["1.conv1.weight"], network.conv1.weight)
    assert len(model.spec.mean) == 3
