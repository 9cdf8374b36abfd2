"""Classifiers of torchvision and of timm as backbones, with stems that fit small images."""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from stages.errors import WinnowError
from stages.learning.networks.stems import feature_width, fit_stem, is_small

if TYPE_CHECKING:
    from stages.learning.models import ModelSpec

TIMM = "timm/"  # before a name of timm's
_TOKENS = 8  # a side, of a small image in a vision transformer
_CLOSE = 5


@cache
def torchvision_names() -> tuple[str, ...]:
    """The classifiers of torchvision, by its own names."""
    import torchvision  # slow to import: only where it is asked for

    return tuple(torchvision.models.list_models(module=torchvision.models))


def is_torchvision(name: str | None) -> bool:
    """Whether torchvision has a classifier of that name."""
    return name in torchvision_names()


def timm_names() -> list[str]:
    """The networks of timm, each with `timm/` before it.

    Raises
    ------
    WinnowError
        Where timm is not installed.
    """
    return [TIMM + name for name in _timm().list_models()]


def close_names(name: str, known: tuple[str, ...] | list[str]) -> list[str]:
    """At most five of `known` that `name` could have been meant for, likeliest first."""
    return difflib.get_close_matches(name, known, _CLOSE, 0.5)


def torchvision_backbone(spec: ModelSpec) -> tuple[nn.Module, int]:
    """The network without its head, and the width of its features.

    With `spec.pretrained_stem` it is torchvision's own to the last tensor, and grey images enter it as three
    equal channels; otherwise the stem fits the images (see `stems.fit_stem`).

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
    """A network of timm without its head, and the width of its features; like `torchvision_backbone`.

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
    """With a stem for the images, unless `fitted`; a WinnowError where it takes no such images."""
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
    """maxvit_t with windows that divide the image at every resolution."""
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
    """Built for as many patches as the image has, and then given patches of that size."""
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
    """The largest patch that divides the image, up to its own size; of small images an eighth."""
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
    """Repeats the one channel of grey images for a backbone that was pretrained on colour."""

    def forward(self, pixels: Tensor) -> Tensor:
        """N×1×H×W to N×3×H×W, without a copy."""
        return pixels.expand(-1, 3, -1, -1)
