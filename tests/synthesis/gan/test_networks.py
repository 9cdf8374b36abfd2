import pytest
import torch

from stages.synthesis.gan.networks import Discriminator, Generator, supports


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
