import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode

from stages.dataset.base import Dataset, View, split_view
from stages.errors import WinnowError
from stages.learning.devices import Autocast
from stages.learning.loop import Fit, fit
from stages.learning.models import Classifier, build_model
from stages.learning.networks.layers import Layers, ModelSpec
from stages.learning.networks.zoo import stages_of
from stages.learning.recipe import Recipe
from stages.learning.trainer import Trainer

RECIPE = Recipe(2, 3, 16, 5e-3, precision="fp32")
PLAIN = Layers(normalisation="none")


@pytest.fixture
def train(tiny_dataset: Dataset) -> View:
    return split_view(tiny_dataset, "train")


def model_for(view: View, architecture: str = "small_cnn", layers: Layers | None = None) -> Classifier:
    spec = ModelSpec(
        architecture, view.classes, view.images.shape[1:], [0.2], [0.3], layers=layers or Layers()
    )
    return build_model(spec, seed=0)


def trained(model: Classifier, view: View, recipe: Recipe, **more: object) -> Fit:
    return fit(model, view, recipe, seed=0, device="cpu", description="", **more)


def trainer_for(view: View, recipe: Recipe) -> Trainer:
    return Trainer(
        model_for(view), view, recipe, seed=0, device=torch.device("cpu"), autocast=Autocast("cpu", False)
    )


class Small(nn.Module):
    """A backbone that has memory for so many images at most."""

    def __init__(self, inner: nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.inner(pixels)
        if self.training and len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return features


@pytest.mark.parametrize(("most", "parts"), [(15, 2), (5, 4), (1, 16)])
def test_where_memory_is_too_small_the_batch_is_computed_in_parts(train: View, most: int, parts: int, capsys):
    whole = model_for(train, layers=PLAIN)
    history = trained(whole, train, RECIPE).history
    model = model_for(train, layers=PLAIN)
    model.backbone = Small(model.backbone, most)
    result = trained(model, train, RECIPE)
    assert f"a batch of 16 is computed in {parts} parts" in result.notes[-1]
    assert result.notes[-1] in capsys.readouterr().err
    assert len(result.notes) == np.log2(parts)
    for row, expected in zip(result.history, history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_no_memory_for_a_single_image_says_what_to_do(train: View):
    model = model_for(train)
    model.backbone = Small(model.backbone, 0)
    with pytest.raises(WinnowError, match="memory is too small for a single image: take a smaller model"):
        trained(model, train, RECIPE)


def test_other_errors_are_not_taken_for_a_lack_of_memory(train: View, monkeypatch):
    model = model_for(train)
    monkeypatch.setattr(model.backbone, "forward", lambda pixels: pixels.reshape(3, 5))
    with pytest.raises(RuntimeError, match="shape"):
        trained(model, train, RECIPE)


def test_a_loss_that_is_no_number_is_said_with_its_step_and_rate(train: View, monkeypatch):
    rates, step = [], Trainer.step

    def broken(trainer: Trainer) -> None:
        rates.append(trainer.optimisation.rate)
        if trainer.steps == 4:
            with torch.no_grad():
                trainer.models[0].head.bias[0] = torch.inf
        step(trainer)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(WinnowError) as error:
        trained(model_for(train), train, replace(RECIPE, epochs=3))
    assert "the loss is not a number in step 5 " in str(error.value)
    assert f"(learning rate {rates[4]:.2g})" in str(error.value)
    assert len(rates) == 6  # it is looked for at the end of the epoch


def test_weights_that_the_last_step_broke_are_said(train: View, monkeypatch):
    step = Trainer.step

    def broken(trainer: Trainer) -> None:
        step(trainer)
        if trainer.steps == 6:
            with torch.no_grad():
                trainer.models[0].head.weight[0, 0] = torch.nan

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(WinnowError, match="weights are not numbers after step 6 "):
        trained(model_for(train), train, RECIPE)


def test_a_broken_peer_in_co_teaching_is_said(train: View, monkeypatch):
    """It would choose what the other learns from, and the other's loss says nothing of it."""
    step = Trainer.step

    def broken(trainer: Trainer) -> None:
        step(trainer)
        if trainer.steps == 2:
            with torch.no_grad():
                trainer.models[1].head.weight[0, 0] = torch.nan

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(WinnowError, match="weights are not numbers after step 3 "):
        trained(model_for(train), train, replace(RECIPE, loss="co_teaching"))


def test_batch_normalisation_of_single_images_says_what_to_do(train: View):
    recipe = replace(RECIPE, batch_size=1)
    with pytest.raises(WinnowError, match=r"with one image at a time \(batches of 1, in 1 part.*batch_size"):
        trained(model_for(train, "mlp"), train, recipe)
    trained(model_for(train, "mlp", Layers(normalisation="layer")), train, recipe)


def test_frozen_stages_keep_weights_and_batch_statistics(train: View):
    model = model_for(train)
    stages = stages_of(model.backbone)
    before = [{key: value.clone() for key, value in stage.state_dict().items()} for stage in stages]
    trained(model, train, replace(RECIPE, frozen_stages=2), val=train)
    same = [
        all(torch.equal(value, old[key]) for key, value in stage.state_dict().items())
        for stage, old in zip(stages, before, strict=True)
    ]
    assert same == [True, True] + [False] * (len(stages) - 2)


def test_the_moving_average_is_what_is_scored_and_kept(train: View):
    trainer = trainer_for(train, replace(RECIPE, average_weights=0.9))
    for _ in range(3):
        trainer.step()
    assert trainer.result is not trainer.models[0]
    assert not torch.equal(trainer.result.head.weight, trainer.models[0].head.weight)
    model = model_for(train)
    result = trained(model, train, replace(RECIPE, average_weights=0.9), val=train)
    assert result.model is model
    assert not torch.equal(model.head.weight, trained(model_for(train), train, RECIPE).model.head.weight)


def test_slow_weights_are_what_is_left_in_the_end(train: View):
    trainer = trainer_for(train, replace(RECIPE, lookahead=4))
    for step in range(1, 7):
        trainer.step()
        if step == 4:
            slow = trainer.models[0].head.weight.clone()
        if trainer.position == RECIPE.steps_per_epoch:
            trainer.end_epoch()
    assert torch.equal(trainer.models[0].head.weight, slow)


def test_a_network_is_shown_images_and_told_how_far_training_is(train: View):
    model, plain = model_for(train, "airbench94"), model_for(train, "airbench94")
    biases = []
    result = fit(
        model, train, replace(RECIPE, epochs=5, lookahead=0), seed=0, device="cpu", description="",
        on_epoch=lambda _: biases.append(model.backbone.whitening.bias.detach().clone()),
    )  # fmt: skip
    assert bool(model.backbone.whitening.fitted)
    assert not torch.equal(model.backbone.whitening.weight, plain.backbone.whitening.weight)
    assert [torch.equal(one, other) for one, other in pairwise(biases)] == [False, True, True, True]
    again = result.model.backbone.whitening.weight.clone()
    trained(model, train, replace(RECIPE, backbone_lr_factor=0.0))
    assert torch.equal(model.backbone.whitening.weight, again)
    assert not model.backbone.whitening.bias.requires_grad


def test_dropout_follows_from_the_seed_and_leaves_the_global_generator_alone(train: View):
    def weights(draw: int) -> Tensor:
        torch.manual_seed(draw)
        torch.rand(draw)
        return trained(model_for(train, layers=Layers(dropout=0.5)), train, RECIPE).model.head.weight

    torch.manual_seed(5)
    expected = torch.rand(3)
    first = weights(1)
    assert torch.equal(first, weights(2))
    torch.manual_seed(5)
    trained(model_for(train), train, RECIPE)
    assert torch.equal(torch.rand(3), expected)


class Reads(TorchDispatchMode):
    """Counts what reads a value of a tensor on the host, or has a shape that follows from values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            self.seen.append(name)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "choices",
    [
        {"shift": 1, "flip": True},
        {"loss": "early_learning", "class_weighting": "balanced", "deferred": 0.5},
        {"loss": "co_teaching", "optimiser": "sgd"},
        {"lookahead": 1, "flip": True, "alternate_flips": True},
    ],
)
def test_a_step_reads_nothing_off_the_device(train: View, choices: dict):
    trainer = trainer_for(train, replace(RECIPE, **choices))
    with Reads() as reads:
        for _ in range(2):
            trainer.step()
    assert reads.seen == []
    trainer._losses.sum().item()
    with Reads() as reads:
        trainer._losses.sum().item()
    assert reads.seen == ["_local_scalar_dense"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_a_gpu(train: View):
    device = torch.device("cuda")
    recipe = replace(RECIPE, shift=1, flip=True, mixup=0.2, average_weights=0.9)
    autocast = Autocast("cuda", True)
    model = model_for(train).to(device)
    trainer = Trainer(model, train, recipe, seed=0, device=device, autocast=autocast)
    trainer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Compiler:
    """In the place of torch.compile: `made` of each network, with the options it was called with."""

    def __init__(self, made: Callable[[nn.Module], nn.Module] = nn.Sequential) -> None:
        self.made, self.calls = made, []

    def __call__(self, network: nn.Module, **options: object) -> nn.Module:
        self.calls.append(options)
        return self.made(network)


@pytest.mark.parametrize(("loss", "networks"), [("cross_entropy", 1), ("co_teaching", 2)])
def test_networks_are_compiled_where_the_recipe_says_so(
    train: View, monkeypatch: pytest.MonkeyPatch, loss: str, networks: int
):
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    plain, compiled = model_for(train), model_for(train)
    trained(plain, train, replace(RECIPE, loss=loss))
    assert not compiler.calls
    trained(compiled, train, replace(RECIPE, loss=loss, compile="on"))
    assert compiler.calls == [{"dynamic": False}] * networks
    for one, other in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_compiler_that_fails_is_named_in_one_line(train: View, monkeypatch: pytest.MonkeyPatch):
    class Failing(nn.Sequential):
        def forward(self, pixels: Tensor) -> Tensor:
            raise TorchDynamoException("no C++ compiler\nfound\nanywhere")

    monkeypatch.setattr(torch, "compile", Compiler(Failing))
    with pytest.raises(
        WinnowError, match=r"^torch.compile failed \(no C\+\+ compiler\): set train.compile to off$"
    ):
        trained(model_for(train), train, replace(RECIPE, compile="on"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_torch_s_own_compiler_trains_as_well(train: View):
    plain, compiled = model_for(train), model_for(train)
    trained(plain, train, RECIPE)
    trained(compiled, train, replace(RECIPE, compile="on"))
    torch.testing.assert_close(plain.head.weight, compiled.head.weight, rtol=1e-2, atol=1e-3)
