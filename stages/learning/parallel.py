"""Train one model in several processes, each of which computes its share of every batch.

Every process draws the same indices and random numbers for the whole batch, computes the network's outputs
for its own rows, and puts all rows together with `World.gather`: losses, means and what they remember are
then those of one process with the same batch, whatever the loss. Gradients meet in DistributedDataParallel.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from stages.errors import ProcessGoneError, WinnowError
from stages.learning.devices import choose_device
from stages.learning.names import Device

# What gloo and NCCL say where the process at the other end has gone.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees them.

    Attributes
    ----------
    rank : which of them this one is; 0 writes and prints
    size : how many there are; 1 where one trains by itself
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this process is the one that writes, prints and tracks."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """Return this process's rows of `total`; the shares of two processes differ by one row at most."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def gather(self, own: Tensor, total: int) -> Tensor:
        """Gather the rows of all processes, float32 `total`×…, from `own`, the `rows(total)` of this one.

        Differentiable where every process computes the same loss from the result: the gradient of `own` is
        then so scaled that DistributedDataParallel's mean over the processes is the gradient of that loss.
        """
        if self.size == 1:
            return own
        every: Tensor = _Gather.apply(own, self, total)
        return every

    def from_main(self, text: str) -> str:
        """Return the first process's `text`, which must be ASCII and of the same length in all."""
        if self.size == 1:
            return text
        sent = torch.tensor(list(text.encode("ascii")), dtype=torch.uint8)
        dist.broadcast(sent, 0)
        return bytes(sent.tolist()).decode("ascii")

    def alike(self, number: int) -> bool:
        """Return whether all processes have the same `number`."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return ends.tolist() == [number, -number]

    @contextlib.contextmanager
    def together(self, network: nn.Module) -> Iterator[nn.Module]:
        """Wrap `network` for training: gradients and batch statistics are then those of all processes.

        What is frozen must be so before. The parameters, buffers and their names are the network's own, and
        afterwards it is as it was. Every process starts from the weights of the first.

        Parameters
        ----------
        network : on its device; one `forward` a step, with rows of the same batch in every process
        """
        if self.size == 1:
            yield network
            return
        replaced = _share_batch_norm(network)
        try:
            with warnings.catch_warnings():
                # torch 2.14 renames broadcast_buffers, and 2.6 does not know the new name.
                warnings.simplefilter("ignore", FutureWarning)
                # Not sent round: shared batch statistics are the same everywhere.
                wrapped = DistributedDataParallel(network, broadcast_buffers=False, static_graph=True)
            yield wrapped
        finally:
            for parent, name, original in replaced:
                original.train(getattr(parent, name).training)
                setattr(parent, name, original)


def world() -> World:
    """Return the processes that this one has joined; outside of `joined` it is by itself."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextlib.contextmanager
def joined(device: Device) -> Iterator[World]:
    """Join the processes that torchrun started with this one, and leave them at the end.

    Without torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), or with a
    WORLD_SIZE of 1, it does nothing. On GPUs process i of a machine takes `cuda:i`, by NCCL; on CPUs they
    talk by gloo.

    Raises
    ------
    WinnowError
        Where there are fewer GPUs than processes, and on MPS.
    ProcessGoneError
        Where another process ended too early.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world().size > 1:
        yield world()
        return
    target, local = choose_device(device), int(os.environ["LOCAL_RANK"])
    if target.type == "mps":
        raise WinnowError("several processes cannot train on MPS: set device: cpu, or train.devices: 1")
    if target.type == "cuda":
        count = torch.cuda.device_count()
        if local >= count:
            raise WinnowError(f"more processes than the {count} GPU(s) of this machine: start fewer")
        torch.cuda.set_device(local)
    _tell_that_the_first_waits()
    if target.type == "cuda":
        place = torch.device("cuda", local)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=place)
    else:
        dist.init_process_group("gloo")
    try:
        yield world()
    except RuntimeError as error:
        if any(text in str(error) for text in _GONE):
            raise ProcessGoneError("another process of this training ended: see what it said") from error
        raise
    # Not after an error: the others may wait for this one, and NCCL would wait for them.
    dist.destroy_process_group()


def first_waits() -> bool:
    """Wait until the first process is where it waits for this one, which has not joined: True then.

    False where nobody can know: this process has joined, or torchrun keeps no store for its processes. Where
    the first ends without getting there, torchrun ends this process meanwhile.
    """
    if world().size > 1:
        return False
    with contextlib.suppress(RuntimeError):  # torchrun went away, or nothing came in all this time
        if (store := _torchruns_store()) is not None:
            store.wait([_waits_key()], timedelta(minutes=30))  # as long as processes wait to join
            return True
    return False


def _tell_that_the_first_waits() -> None:
    if os.environ.get("RANK") == "0" and (store := _torchruns_store()) is not None:
        store.set(_waits_key(), "")


def _torchruns_store() -> Any:
    """A TCPStore, where processes leave word for one another before they have joined; None without one."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(*place)  # type: ignore[attr-defined]


def _waits_key() -> str:
    # torchrun may start the processes again, and they find the same store.
    return f"winnow/first waits/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


class _Gather(torch.autograd.Function):
    """Gather rows of all processes; see `World.gather`."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, here: World, total: int) -> Tensor:
        ctx.here, ctx.total, ctx.dtype = here, total, own.dtype
        # A sum with zeros is exact, and takes shares of unequal size, which all_gather does not.
        every = own.new_zeros((total, *own.shape[1:]), dtype=_at_least_float32(own))
        every[here.rows(total)] = own.to(every.dtype)
        dist.all_reduce(every)
        return every

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        own = gradients[0][ctx.here.rows(ctx.total)] * ctx.here.size
        return own.to(ctx.dtype), None, None


def _at_least_float32(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _share_batch_norm(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replace batch normalisation by layers that share statistics; return parents, names and originals."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, _BatchNorm) or isinstance(layer, nn.SyncBatchNorm | SharedBatchNorm):
                continue
            weight = layer.running_mean if layer.weight is None else layer.weight
            kind = nn.SyncBatchNorm if weight is not None and weight.is_cuda else SharedBatchNorm
            shared = kind(
                layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
            )
            shared._parameters.clear()  # some are buffers in layers of our own
            shared._parameters.update(layer._parameters)  # the same tensors, not copies
            shared._buffers.update(layer._buffers)
            setattr(parent, name, shared.train(layer.training))
            replaced.append((parent, name, layer))
    return replaced


class SharedBatchNorm(_BatchNorm):
    """Normalise by the statistics of all processes' rows (Ioffe & Szegedy, arXiv 1502.03167).

    torch's own SyncBatchNorm does the same on GPUs, and refuses CPUs.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation takes N×C×…, not {input.dim()} dimension(s)")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`, N×C×…; in evaluation by the running statistics, as ever."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        normalised: Tensor
        normalised, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.num_batches_tracked is not None and self.running_mean is not None:
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)  # type: ignore[union-attr]
        return normalised


class _Normalise(torch.autograd.Function):
    """Normalise over the rows of all processes, with one message forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = rows.to(_at_least_float32(rows))
        over = [0, *range(2, rows.dim())]
        count = pixels.new_tensor([rows.numel() // rows.shape[1]])
        variance, mean = torch.var_mean(pixels, over, correction=0)
        each = [mean.new_empty(2 * len(mean) + 1) for _ in range(dist.get_world_size())]
        dist.all_gather(each, torch.cat([count, mean, variance]))
        # Variances about each process's own mean, then about the common one: nothing cancels out.
        counts, means, variances = torch.stack(each).split([1, len(mean), len(mean)], 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        ctx.save_for_backward(rows, weight, mean, (variance + eps).rsqrt(), total)
        ctx.mark_non_differentiable(mean, variance, total)
        normalised = functional.batch_norm(pixels, mean, variance, weight, bias, training=False, eps=eps)
        return normalised.to(rows.dtype), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        rows, weight, mean, inverse, total = ctx.saved_tensors
        over, gradient = [0, *range(2, rows.dim())], gradients[0].to(mean.dtype)
        shape = (1, -1, *(1,) * (rows.dim() - 2))
        standard = (rows.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        sums = torch.cat([gradient.sum(over), (gradient * standard).sum(over)])
        for_bias, for_weight = sums.clone().chunk(2)  # of this process: DistributedDataParallel adds them up
        dist.all_reduce(sums)
        along_mean, along_spread = (sums / total).chunk(2)
        slope = gradient - along_mean.view(shape) - standard * along_spread.view(shape)
        scale = inverse if weight is None else inverse * weight
        own = (slope * scale.view(shape)).to(rows.dtype)
        return own, None if weight is None else for_weight, None if weight is None else for_bias, None
