from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graph import ROOT, imported

from stages.dataset.base import Dataset, split_view
from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.resume import code_files
from stages.learning.store import save_model
from stages.noise.folds import _CODE, CrossValidation, cross_validate, inputs_digest

# The samples' tables, messages, and rules that are applied to finished probabilities: no fold's figures
# follow from their code. What they hold of the data is in the digest.
NO_FIGURES = {
    "stages/__init__.py",
    "stages/dataset/__init__.py",
    "stages/dataset/base.py",
    "stages/errors.py",
    "stages/dataset/files.py",
    "stages/dataset/ids.py",
    "stages/learning/__init__.py",
    "stages/noise/__init__.py",
    "stages/noise/labels.py",
}
SPEC = ModelSpec("small_cnn", ["a", "b", "c"], (16, 16, 1), [0.2], [0.3])
CHOICES = CrossValidation(("small_cnn",), folds=2, repeats=1, epochs=1, batch_size=16, learning_rate=5e-3)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights of a small network that was trained on other classes."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    save_model(folder, build_model(replace(SPEC, classes=["x", "y"]), seed=7))
    return folder / "model.safetensors"


def test_without_pretrained_weights_every_model_starts_afresh():
    one, two = (CHOICES.start("small_cnn", SPEC, 3), build_model(SPEC, seed=3))
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])
    assert CHOICES.recipe(33, "small_cnn").steps_per_epoch == 3
    assert CHOICES.recipe(33, "small_cnn").backbone_lr_factor == 1


def test_a_file_of_weights_is_the_start_of_the_last_model(weights: Path):
    choices = replace(CHOICES, models=("resnet18", "small_cnn"), pretrained=str(weights))
    given = build_model(SPEC, seed=7).backbone.state_dict()
    started = choices.start("small_cnn", SPEC, 3)
    for key, value in started.backbone.state_dict().items():
        assert torch.equal(value, given[key])
    assert started.head.out_features == 3
    assert choices.recipe(33, "small_cnn").backbone_lr_factor < 1
    assert choices.start("resnet18", SPEC, 3).spec.architecture == "resnet18"
    assert choices.recipe(33, "resnet18").backbone_lr_factor == 1


def test_a_pretrained_backbone_is_cross_validated(tiny_dataset: Dataset, weights: Path):
    train = split_view(tiny_dataset, "train")
    none = train.images[:0]
    choices = replace(CHOICES, pretrained=str(weights))
    fresh, started = (cross_validate(train, none, each, seed=0) for each in (CHOICES, choices))
    assert not np.array_equal(fresh.train_probs, started.train_probs)
    np.testing.assert_allclose(started.train_probs.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet18_Weights.NONE_SUCH", r"detect_noise\.pretrained: .*no known name; known: ResNet18_Weights"),
        ("weights/none.safetensors", r"detect_noise\.pretrained: weights file .* is not there"),
        ("resnet34_Weights", r"is for resnet34, which is not in detect_noise\.models \(resnet18\)"),
    ],
)
def test_weights_that_cannot_be_had_are_said_before_training(
    tiny_dataset: Dataset, monkeypatch, name: str, message: str
):
    from stages.noise import folds

    monkeypatch.setattr(folds, "fit", lambda *_, **__: pytest.fail("it trained"))
    train = split_view(tiny_dataset, "train")
    choices = replace(CHOICES, models=("resnet18",), pretrained=name)
    with pytest.raises(WinnowError, match=message) as error:
        cross_validate(train, train.images[:0], choices, seed=0)
    assert "finetune" not in str(error.value)


def test_without_a_network_the_error_says_where_to_bring_the_weights(monkeypatch, tmp_path: Path):
    from urllib.error import URLError

    from torchvision.models import ResNet18_Weights

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    choices = replace(CHOICES, models=("resnet18",), pretrained="ResNet18_Weights.IMAGENET1K_V1")
    with pytest.raises(WinnowError, match=r"detect_noise\.pretrained: .*no network.*bring https") as error:
        choices.check(SPEC)
    assert "finetune" not in str(error.value)


def test_a_model_of_these_classes_is_refused_since_it_saw_the_labels(tmp_path: Path, weights: Path):
    save_model(tmp_path, build_model(SPEC, seed=0))
    own = replace(CHOICES, pretrained=str(tmp_path / "model.safetensors"))
    with pytest.raises(WinnowError, match="was trained on these classes"):
        own.check(SPEC)
    with pytest.raises(WinnowError, match=r"elsewhere is a folder; name a file of weights"):
        replace(CHOICES, pretrained=str(weights.parent)).check(SPEC)


def test_other_weights_make_checkpoints_stale(
    tiny_dataset: Dataset, weights: Path, tmp_path: Path, monkeypatch
):
    train = split_view(tiny_dataset, "train")
    choices = replace(CHOICES, pretrained=str(weights))
    cross_validate(train, train.images[:0], choices, seed=0, keep_in=tmp_path / "kept")
    old = list((tmp_path / "kept").iterdir())
    save_model(weights.parent, build_model(replace(SPEC, classes=["x", "y"]), seed=8))
    cross_validate(train, train.images[:0], choices, seed=0, keep_in=tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) != old


def test_all_code_that_the_folds_run_makes_checkpoints_stale():
    seen, queue = set(), {"stages/noise/folds.py"}
    while queue:
        path = queue.pop()
        seen.add(path)
        queue |= set() if path in NO_FIGURES else imported(path) - seen
    assert seen - NO_FIGURES <= {path.relative_to(ROOT).as_posix() for path in code_files(_CODE)}


def test_the_way_of_computing_makes_checkpoints_stale(tiny_dataset: Dataset, monkeypatch):
    train = split_view(tiny_dataset, "train")

    def digest() -> str:
        return inputs_digest(train, train.images[:0], None, CHOICES, seed=0, device="cpu")

    digests = {digest()}
    for fast in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        digests.add(digest())
    assert len(digests) == 2
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
    assert digest() not in digests
