"""Turn classifiers of torchvision and timm into backbones, and list a backbone's stages in order.

They are made for photos: on small images the stem is changed so that it keeps their resolution.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from stages.errors import WinnowError

if TYPE_CHECKING:
    from stages.learning.networks.layers import ModelSpec


_SMALL = 64  # pixels; smaller images keep their resolution through the stem
TIMM = "timm/"  # before a name of timm's
_TOKENS = 8  # a side, of a small image in a vision transformer
_CLOSE = 5
_TRUNKS = {"features", "classifier", "encoder", "trunk_output", "blocks", "layers", "stages", "heads"}
NORMALISATIONS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def is_small(height: int, width: int) -> bool:
    """Return whether a stem that was made for photos would leave next to nothing of such an image."""
    return min(height, width) < _SMALL


def feature_width(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the width D of a network's features for images H×W×C, without computing any.

    Raises
    ------
    ValueError
        Where it takes no such images, or gives anything but N×D; it says why.
    """
    height, width, channels = shape
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    state = {name: value.to("meta") for name, value in tensors}
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
    pools = [name for name, part in network.named_modules() if isinstance(part, nn.MaxPool2d)]
    for pool in pools:
        if _works(network, shape):
            return
        network.set_submodule(pool, nn.Identity())


def _leave_out_next(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Take the stride from the next reduction behind the stem, and from parallel ones in its block."""
    reduction = next(((name, part) for name, part in network.named_modules() if _reduces(part)), None)
    if reduction is None:
        return
    name, part = reduction
    if isinstance(part, nn.MaxPool2d):
        network.set_submodule(name, nn.Identity())
        return
    for end in range(name.count(".") + 1):
        block = network.get_submodule(name.rsplit(".", end)[0])
        strided = [layer for _, layer in _convolutions(block) if _reduces(layer)]
        before = [layer.stride for layer in strided]
        for layer in strided:
            layer.stride = (1, 1)
        if _works(network, shape):
            return
        for layer, stride in zip(strided, before, strict=True):
            layer.stride = stride


def _works(network: nn.Module, shape: tuple[int, int, int]) -> bool:
    try:
        feature_width(network, shape)
    except ValueError:
        return False
    return True


def _convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    return ((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))


def _reduces(part: nn.Module) -> bool:
    """Return whether a layer makes maps smaller."""
    if not isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return False
    stride = part.stride
    return (stride if isinstance(stride, int) else stride[0]) > 1


def _like(
    first: nn.Conv2d, channels: int, kernel: int, stride: int, padding: int | tuple[int, int] = 0
) -> nn.Conv2d:
    """Build a convolution in place of the first one."""
    layer = nn.Conv2d(channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


@cache
def torchvision_names() -> tuple[str, ...]:
    """List the classifiers of torchvision, by its own names."""
    import torchvision  # slow to import: only where it is asked for

    return tuple(torchvision.models.list_models(module=torchvision.models))


def is_torchvision(name: str | None) -> bool:
    """Return whether torchvision has a classifier of that name."""
    return name in torchvision_names()


def timm_names() -> list[str]:
    """List the networks of timm, each with `timm/` before it.

    Raises
    ------
    WinnowError
        Where timm is not installed.
    """
    return [TIMM + name for name in _timm().list_models()]


def close_names(name: str, known: tuple[str, ...] | list[str]) -> list[str]:
    """Return at most five of `known` that `name` could be a misspelling of, likeliest first."""
    return difflib.get_close_matches(name, known, _CLOSE, 0.5)


def torchvision_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """Build a network of torchvision without its head; also return the width of its features.

    With `spec.pretrained_stem` it is torchvision's own to the last tensor, and grey images enter it as three
    equal channels; otherwise the stem fits the images (see `fit_stem`).

    Raises
    ------
    WinnowError
        Where it takes no images of that shape.
    """
    import torchvision

    build = getattr(torchvision.models, spec.architecture)
    if spec.architecture.startswith("vit_"):
        network, fitted = _vision_transformer(build, spec), True
    else:
        network, fitted = _plain(build, spec), spec.pretrained_stem
    _remove_head(network)
    return _finished(network, spec, fitted)


def timm_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """Build a network of timm without its head, like `torchvision_backbone`.

    Raises
    ------
    WinnowError
        Where timm is not installed, or the network takes no images of that shape.
    """
    timm = _timm()
    name = spec.architecture.removeprefix(TIMM)
    height, width, channels = spec.image_shape
    # Positional embeddings fit one size of images, to be said when the network is built.
    fixed = bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))
    options: dict[str, Any] = {"img_size": (height, width)} if fixed else {}
    if fixed and is_small(height, width) and not spec.pretrained_stem and "patch" in name:
        options["patch_size"] = _patch(min(height, width), 16)
    try:
        network = timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            in_chans=3 if spec.pretrained_stem else channels,
            **options,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise _unfit(spec, str(error)) from error
    return _finished(network, spec, fixed or spec.pretrained_stem)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise WinnowError(
            "networks timm/… come from timm, which is not installed: pip install winnow[timm]"
        ) from error
    return timm


def _finished(network: nn.Module, spec: ModelSpec, fitted: bool) -> tuple[nn.Module, int]:
    """Fit the stem to the images, unless `fitted`; a WinnowError where the network takes no such images."""
    height, width, channels = spec.image_shape
    if not fitted:
        fit_stem(network, spec.image_shape)
    try:
        features = feature_width(network, (height, width, 3 if spec.pretrained_stem else channels))
    except ValueError as error:
        raise _unfit(spec, str(error)) from error
    if spec.pretrained_stem and channels == 1:
        network = nn.Sequential(GreyToColour(), network)
    return network, features


def _unfit(spec: ModelSpec, why: str) -> WinnowError:
    height, width, _ = spec.image_shape
    own = " with the stem that its weights were trained with" if spec.pretrained_stem else ""
    return WinnowError(
        f"{spec.architecture}{own} takes no images of {height}×{width} pixels ({why.partition(chr(10))[0]}); "
        "take larger images, or another network"
    )


def _plain(build: Any, spec: ModelSpec) -> nn.Module:
    options: dict[str, Any] = {}
    if spec.architecture in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    if spec.architecture.startswith("maxvit"):
        # It is built for one size, which a stem that keeps the resolution sees doubled.
        doubled = is_small(*spec.image_shape[:2]) and not spec.pretrained_stem
        return _max_vit(spec, 2 if doubled else 1)
    return cast(nn.Module, build(weights=None, **options))


def _max_vit(spec: ModelSpec, scale: int) -> nn.Module:
    """Build maxvit_t with windows that divide the image at every resolution."""
    from torchvision.models import MaxVit

    height, width = (scale * size for size in spec.image_shape[:2])
    windows = [side for side in range(7, 0, -1) if height % (32 * side) == 0 and width % (32 * side) == 0]
    if not windows:
        raise _unfit(spec, f"sides must be multiples of {32 // scale}")
    return MaxVit(
        input_size=(height, width),
        stem_channels=64,
        partition_size=windows[0],
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )


def _vision_transformer(build: Any, spec: ModelSpec) -> nn.Module:
    """Build it for as many patches as the image has, and then give it patches of that size."""
    height, width, channels = spec.image_shape
    own = int(spec.architecture.rpartition("_")[2])
    if height != width:
        raise _unfit(spec, "they must be square")
    if spec.pretrained_stem:
        if height % own:
            raise _unfit(spec, f"the side must be a multiple of {own}")
        return cast(nn.Module, build(weights=None, image_size=height))
    patch = _patch(height, own)
    network = build(weights=None, image_size=own * (height // patch))
    network.image_size, network.patch_size = height, patch
    network.conv_proj = nn.Conv2d(channels, network.hidden_dim, patch, patch)
    nn.init.trunc_normal_(network.conv_proj.weight, std=(channels * patch**2) ** -0.5)
    nn.init.zeros_(network.conv_proj.bias)
    return cast(nn.Module, network)


def _patch(size: int, own: int) -> int:
    """Return the largest patch that divides the image, up to its own size; of small images an eighth."""
    largest = max(1, size // _TOKENS) if is_small(size, size) else own
    return next(patch for patch in range(min(own, largest), 0, -1) if size % patch == 0)


def _remove_head(network: nn.Module) -> None:
    """Let the network end before its last layer, the one for the classes it was made for."""
    if type(network).__name__ == "SqueezeNet":  # its classes are the channels of a convolution
        network.classifier = nn.Sequential(nn.Dropout(), nn.AdaptiveAvgPool2d(1))
        return
    name = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    network.set_submodule(name, nn.Identity())


class GreyToColour(nn.Module):
    """Repeat the one channel of grey images for a backbone that was pretrained on colour."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Expand N×1×H×W to N×3×H×W, without a copy."""
        return pixels.expand(-1, 3, -1, -1)


def stages_of(backbone: nn.Module) -> list[nn.Module]:
    """List the stages of a backbone, from the image to the features.

    Together they hold every parameter, each once. Networks of our own say theirs; of torchvision's and
    timm's they are the children, with the long sequences called `features`, `blocks` and the like taken
    apart. A normalisation belongs to the stage before it, parameters of the network itself (the
    class token of a transformer) to the stage after them.
    """
    own = getattr(backbone, "stages", None)
    if callable(own) and not isinstance(own, nn.Module):
        return list(own())
    if isinstance(backbone, nn.Sequential) and isinstance(backbone[0], GreyToColour):
        backbone = backbone[1]
    stages: list[list[nn.Module]] = []
    loose: list[nn.Module] = []
    for part in _parts(backbone):
        if isinstance(part, nn.ParameterList):
            loose.append(part)
        elif isinstance(part, NORMALISATIONS) and stages and not loose:
            stages[-1].append(part)
        else:
            stages.append([*loose, part])
            loose = []
    if loose:
        stages.append(loose)
    return [parts[0] if len(parts) == 1 else nn.ModuleList(parts) for parts in stages]


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield children in order, trunks taken apart; parameters that are in no child as a list."""
    own = list(module.parameters(recurse=False))
    if own:
        yield nn.ParameterList(own)
    for name, child in module.named_children():
        if name in _TRUNKS:
            yield from _parts(child)
        elif next(child.parameters(), None) is not None:
            yield child
