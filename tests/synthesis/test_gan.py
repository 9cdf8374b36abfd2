import numpy as np
import pytest
import torch

from stages.errors import WinnowError
from stages.synthesis.gan import GANConfig, diff_augment, train_gan
from stages.synthesis.networks import Discriminator, Generator, supports


def config(**changes):
    return GANConfig(
        **{"steps": 3, "batch_size": 8, "latent_dim": 8, "width": 8, "learning_rate": 1e-3} | changes
    )


def data(size=8, channels=1, count=24, classes=2):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = rng.integers(0, 60, (count, size, size, channels)).astype(np.uint8)
    images[labels == 1, : size // 2] += np.uint8(190)
    return images, labels.astype(np.int64)


def train(images, labels, seed=0, **changes):
    return train_gan(images, labels, config(**changes), seed=seed, device="cpu", description="")


@pytest.mark.parametrize("side", range(8, 65, 8))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_supported_shape_goes_through_both_networks(side, channels):
    shape = (side, 8, channels)
    assert supports(shape)
    generator, discriminator = Generator(shape, 3, 4, 8), Discriminator(shape, 3, 8, 2)
    labels = torch.tensor([0, 0, 2, 2])
    images = generator(torch.randn(4, 4), labels)
    assert images.shape == (4, channels, side, 8)
    assert images.abs().max() < 1
    assert discriminator(images, labels).shape == (4,)


@pytest.mark.parametrize("shape", [(12, 16, 1), (72, 72, 3), (16, 16, 2), (4, 4, 1), (0, 8, 1)])
def test_other_shapes_are_refused_in_one_line(shape):
    assert not supports(shape)
    with pytest.raises(WinnowError, match="8 to 64 pixels"):
        train(np.zeros((4, *shape), np.uint8), np.zeros(4, np.int64))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_seed_gives_the_same_bytes(channels):
    images, labels = data(channels=channels)
    wanted = np.array([0, 1, 1, 0, 1])
    first, second, other = train(images, labels), train(images, labels), train(images, labels, seed=1)
    made = first.generate(wanted, seed=5)
    assert made.shape == (5, 8, 8, channels)
    assert made.dtype == np.uint8
    assert np.array_equal(made, second.generate(wanted, seed=5))
    assert not np.array_equal(made, first.generate(wanted, seed=6))
    assert not np.array_equal(made, other.generate(wanted, seed=5))
    assert first.history == second.history
    assert first.generate(np.zeros(0, np.int64), seed=0).shape == (0, 8, 8, channels)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(*data())
    assert torch.equal(torch.rand(3), expected)


def test_it_learns_what_tells_the_classes_apart():
    images, labels = data(count=64)
    trained = train(images, labels, steps=150, batch_size=16, learning_rate=2e-3)
    for label in (0, 1):
        top = trained.generate(np.full(32, label), seed=0)[:, :4].mean()
        assert (top > 128) == (label == 1)
    assert [row["step"] for row in trained.history] == [25, 50, 75, 100, 125, 150]


@pytest.mark.parametrize("batch_size", [2, 9, 100])
def test_odd_batch_sizes_and_a_single_class(batch_size):
    images, labels = data(count=6, classes=1)
    assert train(images, labels, batch_size=batch_size).generate(np.zeros(2, np.int64), seed=0).shape[0] == 2


def test_losses_that_are_no_numbers_end_in_one_line():
    with pytest.raises(WinnowError, match="lower its learning_rate"):
        train(*data(), steps=60, learning_rate=1e12)


def test_augmentation_is_differentiable_seeded_and_does_not_flip():
    images = torch.linspace(-1, 1, 16).expand(64, 1, 16, 16).clone().requires_grad_()
    moved = diff_augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved, diff_augment(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(moved, images)
    moved.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    # A ramp rises from left to right; only a hole, which is flat, may interrupt it.
    rises = (moved[..., 1:] - moved[..., :-1]).detach()
    falls = (rises < -1e-6).float().sum(-1)
    assert falls.max() <= 1
