"""A backbone's parts in order, for learning rates and freezing by depth."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.learning.networks.zoo import GreyToColour

_TRUNKS = {"features", "classifier", "encoder", "trunk_output", "blocks", "layers", "stages", "heads"}
NORMALISATIONS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def stages_of(backbone: nn.Module) -> list[nn.Module]:
    """The stages of a backbone, from the image to the features.

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
    """Children in order, trunks taken apart; parameters that are in no child as a list of their own."""
    own = list(module.parameters(recurse=False))
    if own:
        yield nn.ParameterList(own)
    for name, child in module.named_children():
        if name in _TRUNKS:
            yield from _parts(child)
        elif next(child.parameters(), None) is not None:
            yield child
