from __future__ import annotations

import pytest
import torch

from stages.synthesis.gan_networks import Discriminator, Generator, diff_augment, supports


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


@pytest.mark.parametrize("side", range(8, 65, 8))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_supported_shape_goes_through_both_networks(side, channels):
    shape = (side, 8, channels)
    assert supports(shape)
    generator, discriminator = Generator(shape, 3, 4, 8), Discriminator(shape, 3, 8, 2)
    labels = torch.tensor([0, 0, 2, 2])
    images = generator(torch.randn(4, 4), labels)
    assert images.shape == (4, channels, side, 8)
    assert images.abs().max() < 1
    assert discriminator(images, labels).shape == (4,)
