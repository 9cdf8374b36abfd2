"""Networks for large photos on small images: the stem keeps the resolution that there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.func import functional_call

_SMALL = 64  # pixels; smaller images keep their resolution through the stem


def is_small(height: int, width: int) -> bool:
    """Whether a stem that was made for photos would leave next to nothing of such an image."""
    return min(height, width) < _SMALL


def feature_width(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """The width D of what a network gives for images of H×W×C; nothing is computed for it.

    Raises
    ------
    ValueError
        Where it takes no such images, or gives anything but N×D; it says why.
    """
    height, width, channels = shape
    state = {name: value.to("meta") for name, value in _tensors(network)}
    training = network.training
    network.eval()
    try:
        pixels = torch.zeros(2, channels, height, width, device="meta")
        features = functional_call(network, state, (pixels,))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error
    finally:
        network.train(training)
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        raise ValueError("it gives no vector for an image")
    return int(features.shape[1])


def fit_stem(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Make the first convolution take the image's channels, and leave small images their resolution.

    Where an image has fewer than 64 pixels a side, or the network would not take it, the first convolution
    takes every pixel (patches become 2×2), and the reduction after it, most often a max pool, is left out:
    a total of 32 becomes 8, as is usual for CIFAR. Where that is not enough, further max pools are left
    out, or patches become single pixels.

    Parameters
    ----------
    network : from pixels to features, changed in place; it begins with its first convolution
    shape : height, width and channels
    """
    channels, small = shape[2], is_small(*shape[:2])
    name, first = next(_convolutions(network))
    strided = first.stride[0] > 1
    patches = strided and first.kernel_size == first.stride
    if not (small and strided):
        padding = cast("tuple[int, int]", first.padding)
        network.set_submodule(name, _like(first, channels, first.kernel_size[0], first.stride[0], padding))
        if not small and _works(network, shape):
            return
    if patches:
        network.set_submodule(name, _like(first, channels, 2, 2))
        if not _works(network, shape):
            network.set_submodule(name, _like(first, channels, 1, 1))
        return
    if strided:
        network.set_submodule(name, _like(first, channels, 3, 1, 1))
        _leave_out_next(network, shape)
    for pool in list(_pools(network)):
        if _works(network, shape):
            return
        network.set_submodule(pool, nn.Identity())


def _leave_out_next(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Take the stride from what reduces next behind the stem, and from what runs beside it in its block."""
    found = next(((name, part) for name, part in network.named_modules() if _reduces(part)), None)
    if found is None:
        return
    name, part = found
    if isinstance(part, nn.MaxPool2d):
        network.set_submodule(name, nn.Identity())
        return
    for end in range(name.count(".") + 1):
        block = network.get_submodule(name.rsplit(".", end)[0])
        strided = [one for _, one in _convolutions(block) if _reduces(one)]
        before = [one.stride for one in strided]
        for one in strided:
            one.stride = (1, 1)
        if _works(network, shape):
            return
        for one, stride in zip(strided, before, strict=True):
            one.stride = stride


def _works(network: nn.Module, shape: tuple[int, int, int]) -> bool:
    try:
        feature_width(network, shape)
    except ValueError:
        return False
    return True


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))


def _pools(network: nn.Module) -> Iterator[str]:
    return (name for name, part in network.named_modules() if isinstance(part, nn.MaxPool2d))


def _reduces(part: nn.Module) -> bool:
    """Whether maps leave it smaller than they came."""
    if not isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return False
    stride = part.stride
    return (stride if isinstance(stride, int) else stride[0]) > 1


def _like(
    first: nn.Conv2d, channels: int, kernel: int, stride: int, padding: int | tuple[int, int] = 0
) -> nn.Conv2d:
    """A convolution in place of the first one."""
    made = nn.Conv2d(channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()
