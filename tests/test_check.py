"""What the first stage refuses before anything runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from stages.check import check_params, main
from stages.errors import WinnowError
from stages.learning.networks.zoo import torchvision_names
from stages.workflow.params import Params

ROOT = Path(__file__).resolve().parent.parent
VALID = Path("reports/check/valid.txt")

Make = Callable[..., Params]


@pytest.fixture
def catalogue(workspace: Path) -> Path:
    (workspace / "data/raw").mkdir()
    return Path(shutil.copy(ROOT / "data/raw/dvc.yaml", workspace / "data/raw/dvc.yaml"))


def mine(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"ingest.source": "mine", "simulate.enabled": False, **(changes or {})}


def test_the_shipped_file_is_valid_before_anything_is_fetched(catalogue: Path) -> None:
    main([])
    first = VALID.read_bytes()
    assert sorted(path.name for path in VALID.parent.iterdir()) == ["valid.txt"]
    params = Path("params.yaml")
    params.write_text(params.read_text("utf-8").replace("epochs: 40", "epochs: 41"), "utf-8")
    main([])
    assert VALID.read_bytes() == first


def test_a_mistake_ends_with_status_2_and_one_line(catalogue: Path) -> None:
    main([])
    params = Path("params.yaml")
    params.write_text(params.read_text("utf-8").replace("color: grey", "color: blue"), "utf-8")
    command = [sys.executable, "-m", "stages.check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "ingest.color = 'blue'" in line
    assert "'grey' or 'rgb'" in line
    assert VALID.is_file()  # the last good run's output stays


def test_a_source_of_ones_own_has_to_be_there(catalogue: Path, make_params: Make) -> None:
    with pytest.raises(WinnowError, match=r"ingest\.source = 'mine': there is no such path"):
        check_params(make_params(mine()))
    Path("mine/a").mkdir(parents=True)
    with pytest.raises(WinnowError, match=r"ingest\.source = 'mine': the folder is empty"):
        check_params(make_params(mine()))
    Path("mine/a/1.png").touch()
    assert check_params(make_params(mine())) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_said_before_anything_runs(catalogue: Path, make_params: Make) -> None:
    with pytest.raises(WinnowError, match=r"device = 'cuda', but this machine has none"):
        check_params(make_params({"device": "cuda"}))


def test_more_devices_than_there_are(
    catalogue: Path, make_params: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for changes in ({"train.devices": 2}, {"train.devices": "auto"}, {"train.devices": 4, "device": "cpu"}):
        assert check_params(make_params(changes)) == []
    with pytest.raises(WinnowError, match=r"^train.devices = 3, but this machine has 2 GPU"):
        check_params(make_params({"train.devices": 3}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert check_params(make_params({"train.devices": 3})) == []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(WinnowError, match=r"^train.devices = 3 does not go with MPS"):
        check_params(make_params({"train.devices": 3}))


def test_a_tracked_source_may_be_brought_later(catalogue: Path, make_params: Make) -> None:
    Path("mine.dvc").touch()
    (note,) = check_params(make_params(mine()))
    assert "dvc pull mine.dvc" in note
    assert "dvc checkout mine.dvc" in note


def test_planting_is_for_the_catalogue_only(catalogue: Path, make_params: Make) -> None:
    Path("mine").mkdir()
    Path("mine/1.png").touch()
    with pytest.raises(WinnowError, match=r"simulate\.enabled = True"):
        check_params(make_params(mine({"simulate.enabled": True})))
    assert check_params(make_params({"ingest.source": "data/raw/cifar10"})) == []


def test_an_unknown_transform_is_refused(catalogue: Path, make_params: Make) -> None:
    with pytest.raises(WinnowError, match=r"augment\.policy"):
        check_params(make_params({"augment.policy": [{"name": "Sparkle", "args": {}}]}))


def test_what_the_preset_must_not_do_is_refused(catalogue: Path, make_params: Make) -> None:
    policy = [{"name": "RandomGamma", "args": {}}, {"name": "HorizontalFlip", "args": {"p": 0.5}}]
    with pytest.raises(WinnowError, match=r"augment\.policy\.1: HorizontalFlip mirrors left and right"):
        check_params(make_params({"augment.policy": policy}))
    assert check_params(make_params({"augment.policy": policy, "augment.preset": "photos"})) == []
    assert check_params(make_params({"augment.policy": policy, "augment.preset": None})) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.flip", True),
        ("detect_noise.flip", True),
        ("evaluate.test_time", "flip"),
        ("evaluate.test_time", "flip_shift"),
    ],
)
def test_flips_elsewhere_are_held_against_the_preset(
    catalogue: Path, make_params: Make, key: str, value: object
) -> None:
    for preset in ("digits", "medical"):
        with pytest.raises(WinnowError, match=f"^{key} = {value!r} mirrors .* augment.preset = '{preset}'"):
            check_params(make_params({key: value, "augment.preset": preset}))
    for preset in ("photos", "textures"):
        assert check_params(make_params({key: value, "augment.preset": preset})) == []
    assert check_params(make_params({"evaluate.test_time": "shift", "augment.preset": "digits"})) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"backbone": "weights.safetensors"},
            "finetune.backbone = 'weights.safetensors': there is no such path",
        ),
        ({"backbone": "models/finetune"}, "cannot start from its own output"),
        ({"backbone": "models/baseline", "pretrained": "ResNet18_Weights.DEFAULT"}, "only one can be used"),
        ({"pretrained": "ResNet18_Weights.BEST"}, "torchvision has no weights of this name"),
        ({"pretrained": "resnet18"}, "torchvision has no weights of this name"),
        (
            {"pretrained": "FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1"},
            "not for a classifier of images; those of torchvision are alexnet, ",
        ),
        ({"architecture": "resnet19"}, "there is no network of this name; close to it: resnet9, resnet18"),
        (
            {"pretrained": "ResNet18_Weights.DEFAULT"},
            "say ResNet18_Weights.IMAGENET1K_V1, for which it stands",
        ),
        ({"pretrained": "ResNet18_Weights.IMAGENET1K_V1", "architecture": "resnet34"}, "are for resnet18"),
        ({"pretrained": "models:/"}, "'models:/' is no registered model: models:/NAME@ALIAS or "),
        (
            {"pretrained": "models:/winnow/1", "architecture": "resnet18"},
            "models:/winnow/1 does: set it to null",
        ),
        ({"architecture": "resnet18"}, "models/train does: set it to null"),
        ({"backbone": "w.pth"}, "does not say which network it is for: name it in finetune.architecture"),
        ({"backbone": "bare/model.safetensors"}, "does not say which network it is for"),
        ({"backbone": "bare"}, "the folder holds no model of Winnow's (model.json); name a file"),
        ({"backbone": "whole", "architecture": "mlp"}, "whole does: set it to null"),
        ({"backbone": "whole/model.safetensors", "architecture": "mlp"}, "model.safetensors does: set it to"),
    ],
)
def test_backbones_that_cannot_work(
    catalogue: Path, make_params: Make, changes: dict[str, str], said: str
) -> None:
    places_of_weights()
    with pytest.raises(WinnowError) as caught:
        check_params(make_params({f"finetune.{key}": value for key, value in changes.items()}))
    assert said in str(caught.value)


def test_backbones_that_can_work(catalogue: Path, make_params: Make) -> None:
    places_of_weights()
    for changes in (
        {"finetune.backbone": "w.pth", "finetune.architecture": "resnet18"},
        {"finetune.backbone": "whole/other.pth", "finetune.architecture": "resnet18"},
        {"finetune.backbone": "whole"},
        {"finetune.backbone": "whole/model.safetensors"},
        {"finetune.pretrained": "models:/winnow@champion"},
        {"finetune.backbone": "models/baseline"},
        {"finetune.pretrained": "ResNet18_Weights.IMAGENET1K_V1", "finetune.architecture": "resnet18"},
    ):
        assert check_params(make_params(changes)) == []


def test_weights_that_timm_has(catalogue: Path, make_params: Make) -> None:
    pytest.importorskip("timm")
    for name in ("timm/resnet18", "timm/resnet18.a1_in1k"):
        assert check_params(make_params({"finetune.pretrained": name})) == []
    with pytest.raises(
        WinnowError, match=r"timm has no such weights; of resnet18 it has timm/resnet18.a1_in1k, "
    ):
        check_params(make_params({"finetune.pretrained": "timm/resnet18.a1"}))


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({"train.layers.normalisation": "group"}, "small_cnn"),
        ({"train.model": "vit_b_16"}, "vit_b_16"),
        ({"train.model": "vit_b_16", "finetune.backbone": "models/baseline"}, "vit_b_16"),
        ({"finetune.pretrained": "ConvNeXt_Tiny_Weights.IMAGENET1K_V1"}, "convnext_tiny"),
        ({"finetune.backbone": "w.pth", "finetune.architecture": "vgg11"}, "vgg11"),
    ],
)
def test_statistics_that_cannot_be_adapted(
    catalogue: Path, make_params: Make, changes: dict[str, Any], network: str
) -> None:
    places_of_weights()
    said = f"^finetune.adapt_batch_norm = True, and {network}, where finetune starts, has no batch norm"
    with pytest.raises(WinnowError, match=said):
        check_params(make_params({"ingest.image_size": 32, "finetune.adapt_batch_norm": True, **changes}))


def test_statistics_that_can_be_adapted(catalogue: Path, make_params: Make) -> None:
    places_of_weights()
    for changes in (
        {},
        {"train.model": "lstm"},
        {"train.model": "regnet_y_400mf"},
        {"train.layers.normalisation": "group", "finetune.pretrained": "ResNet18_Weights.IMAGENET1K_V1"},
        {"train.model": "vit_b_16", "finetune.backbone": "whole"},  # what it holds, finetune finds out
    ):
        assert check_params(make_params({"finetune.adapt_batch_norm": True, **changes})) == []


def test_coral_needs_unlabelled_images(catalogue: Path, make_params: Make) -> None:
    with pytest.raises(
        WinnowError, match=r"^finetune.coral = 0.5 .* and data/raw/digits has none: set it to 0"
    ):
        check_params(make_params({"finetune.coral": 0.5}))
    Path("mine").mkdir()
    Path("mine/a.png").touch()
    assert check_params(make_params(mine({"finetune.coral": 0.5}))) == []


def test_forward_correction_behind_mended_labels_is_worth_a_note(catalogue: Path, make_params: Make) -> None:
    loss = {"train.loss": "forward_correction"}
    (note,) = check_params(make_params(loss))
    assert "set curate.label_error.action and otherwise to keep" in note
    keep = {"curate.label_error.action": "keep", "curate.label_error.otherwise": "keep"}
    assert check_params(make_params(loss | keep)) == []


def places_of_weights() -> None:
    """A model's folder, one without a description, and a file of weights, all empty."""
    for name in (
        "whole/model.json",
        "whole/model.safetensors",
        "whole/other.pth",
        "bare/model.safetensors",
        "w.pth",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


def watch(*paths: str) -> None:
    """Add dependencies to the stage detect_noise."""
    graph, yaml = Path("dvc.yaml"), YAML()
    content = yaml.load(graph)
    content["stages"]["detect_noise"]["deps"] += paths
    yaml.dump(content, graph)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.safetensors", "there is no such file, and torchvision has no weights of this name"),
        ("resnet18", "there is no such file, and torchvision has no weights of this name"),
        ("ResNet18_Weights.BEST", "torchvision has no weights of this name"),
        ("VGG11_Weights.IMAGENET1K_V1", "is for vgg11, which is not in detect_noise.models (resnet18)"),
        ("FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1", "not for a classifier of images"),
        ("ResNet34_Weights.IMAGENET1K_V1", "is for resnet34, which is not in detect_noise.models (resnet18)"),
        ("ResNet18_Weights.DEFAULT", "say ResNet18_Weights.IMAGENET1K_V1, for which it stands"),
        ("elsewhere", "is a folder; name a file of weights"),
        ("models/train/model.safetensors", "this pipeline trains it on the labels in question"),
        ("./models/finetune", "this pipeline trains it on the labels in question"),
        (
            "elsewhere/w.pth",
            "add elsewhere/w.pth to the deps of detect_noise in dvc.yaml, or DVC does not see",
        ),
    ],
)
def test_weights_to_judge_by_that_cannot_work(
    catalogue: Path, make_params: Make, name: str, said: str
) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/w.pth").touch()
    with pytest.raises(WinnowError) as caught:
        check_params(make_params({"detect_noise.models": ["resnet18"], "detect_noise.pretrained": name}))
    assert str(caught.value).startswith(f"detect_noise.pretrained = {name!r}")
    assert said in str(caught.value)


def test_weights_to_judge_by_that_can_work(catalogue: Path, make_params: Make) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/w.pth").touch()
    Path("w.pth.dvc").touch()
    watch("elsewhere", "./w.pth")
    for name in (
        "ResNet18_Weights.IMAGENET1K_V1",
        "elsewhere/w.pth",
        str(Path("elsewhere/w.pth").absolute()),
    ):
        changes = {"detect_noise.models": ["small_cnn", "resnet18"], "detect_noise.pretrained": name}
        assert check_params(make_params(changes)) == []
    (note,) = check_params(make_params({"detect_noise.pretrained": "w.pth"}))
    assert "dvc pull w.pth.dvc" in note


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"train.model": "smallcnn"}, "train.model = 'smallcnn'", "close to it: small_cnn"),
        ({"train.model": "resnet18", "train.layers.dropout": 0.1}, "train.model = 'resnet18'", "none of it"),
        ({"train.model": "gru", "train.layers.residual": True}, "train.model = 'gru'", "residual to false"),
        (
            {"train.model": "inception_v3", "ingest.image_size": 8},
            "train.model = 'inception_v3'",
            "takes no images of 8×8 pixels",
        ),
        (
            {"train.model": "mlp", "train.batch_size": 1},
            "train.model = 'mlp'",
            "from one image: raise batch_",
        ),
        (
            {"detect_noise.models": ["resnet18", "mlp"], "detect_noise.batch_size": 1},
            "detect_noise.models = 'mlp'",
            "cannot learn from one image: raise batch_size",
        ),
        (
            {"detect_noise.models": ["small_cnn", "vit"]},
            "detect_noise.models = 'vit'",
            "known are mlp, small_cnn, resnet9, resnet20, resnet32, airbench94, lstm, gru, any classifier of "
            "torchvision",
        ),
    ],
)
def test_networks_that_there_are_not(
    catalogue: Path, make_params: Make, changes: dict[str, Any], key: str, said: str
) -> None:
    with pytest.raises(WinnowError) as caught:
        check_params(make_params(changes))
    assert str(caught.value).startswith(f"{key}: ")
    assert said in str(caught.value)


def test_networks_that_there_are(catalogue: Path, make_params: Make) -> None:
    for changes in (
        {"train.model": "mlp", "train.layers.residual": True, "train.layers.stochastic_depth": 0.1},
        {"train.model": "regnet_y_400mf", "train.batch_size": 1},
        {"train.model": "vit_b_16", "ingest.image_size": 32, "train.batch_size": 1},
        {"train.model": "mlp", "train.layers.normalisation": "layer", "train.batch_size": 1},
        {"train.batch_size": 1},
        {"detect_noise.models": ["lstm", "mobilenet_v3_small"]},
        {"finetune.pretrained": "models:/winnow@champion"},
        {"finetune.pretrained": "EfficientNet_V2_S_Weights.IMAGENET1K_V1"},
    ):
        assert check_params(make_params(changes)) == []


def test_timm_has_to_be_installed_for_its_networks(
    catalogue: Path, make_params: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for key in ("train.model", "finetune.pretrained"):
        with pytest.raises(WinnowError, match=rf"^{key} = 'timm/resnet18': .*pip install winnow\[timm\]"):
            check_params(make_params({key: "timm/resnet18"}))


def test_torchvision_is_not_imported_for_networks_of_our_own(
    catalogue: Path, make_params: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    torchvision_names.cache_clear()
    assert check_params(make_params({"train.model": "resnet9", "detect_noise.models": ["mlp"]})) == []
    with pytest.raises(ImportError):
        check_params(make_params({"train.model": "resnet18"}))
