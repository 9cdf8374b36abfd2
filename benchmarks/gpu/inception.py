"""Inception-v3 as feature extractor, from a file of weights: what published FIDs are computed with."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import WinnowError

FID_CLASSES = 1008  # that the FID's own network tells apart; torchvision's has 1,000
_SIDE = 299  # pixels that images are brought to
_BATCH = 256
_AVERAGING = ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b")  # blocks with average pooling
_MAXIMUM = "7c"


@dataclass(frozen=True)
class Inception:
    """The network up to its last pooling.

    Attributes
    ----------
    network : in evaluation mode, on `device`
    is_fid : whether the weights are those that published FIDs are computed with
    """

    network: nn.Module
    device: torch.device
    is_fid: bool

    @torch.inference_mode()
    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features, N×2048, of RGB images uint8 N×H×W×3."""
        parts = []
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + _BATCH])).to(self.device)
            pixels = batch.permute(0, 3, 1, 2).float().div(127.5).sub(1)
            large = functional.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
            parts.append(self.network(large).cpu().numpy())
        return np.concatenate(parts)


def load_inception(path: Path, device: torch.device) -> Inception:
    """Inception-v3 with the weights in a file, a state dict that `torch.save` wrote.

    Two kinds are known. The FID's own (`pt_inception-2015-12-05-6726825d.pth` of mseitzer/pytorch-fid, or
    torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`), whose network pools otherwise than
    torchvision's; and torchvision's `inception_v3_google-*.pth`, other weights, whose FIDs are other
    figures. Images are resized as pytorch-fid does, bilinearly to 299 pixels, and scaled to -1 to 1.

    Raises
    ------
    WinnowError
        Where the file is not there, or holds something else.
    """
    from torchvision.models import inception_v3

    if not path.is_file():
        raise WinnowError(f"--inception {path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classes = len(state["fc.bias"])
        network = inception_v3(
            num_classes=classes,
            aux_logits=any(name.startswith("AuxLogits.") for name in state),
            transform_input=False,
            init_weights=False,
        )
        network.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, OSError, EOFError, pickle.UnpicklingError) as error:
        what = " ".join(str(error).split())[:120]
        raise WinnowError(
            f"--inception {path} is no state dict of Inception-v3 ({what}): give it pytorch-fid's"
        ) from error
    if classes == FID_CLASSES:
        for name in _AVERAGING:
            pool_otherwise(getattr(network, f"Mixed_{name}"), _average)
        pool_otherwise(getattr(network, f"Mixed_{_MAXIMUM}"), _maximum)
    network.fc = nn.Identity()
    return Inception(network.eval().to(device), device, classes == FID_CLASSES)


def pool_otherwise(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Let the pooling branch of one of Inception's blocks see the block's input pooled by `pool`.

    The FID's network averages without the padding, and in its last block takes the maximum (mseitzer's
    pytorch-fid, `inception.py`, says where).
    """
    entered: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    branch: nn.Module = block.branch_pool  # type: ignore[assignment]
    branch.register_forward_pre_hook(lambda _, inputs: (pool(entered.pop()),))


_average = partial(functional.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum = partial(functional.max_pool2d, kernel_size=3, stride=1, padding=1)
