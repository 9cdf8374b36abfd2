"""Training as torchvision's reference script has it: image files, workers, fp32 or fp16.

Written after what `references/classification/train.py` of pytorch/vision does
(https://github.com/pytorch/vision/tree/main/references/classification); no line of it is here. In four
things it is kinder than the script to the peer: random crops instead of random resized ones, workers that
outlive an epoch, copies that the host does not wait for, and nothing that is printed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.gpu.peer import algorithms_tried
from stages.learning.models import Classifier

Batches = Iterable[tuple[Tensor, Tensor]]

WORKERS = 16  # the script's default
BATCH_SIZE = 32  # the script's default
_RATE, _MOMENTUM, _WEIGHT_DECAY = 0.1, 0.9, 1e-4  # the script's defaults
_PADDING = 4  # pixels around an image before a crop
_PREFETCHED = 2  # batches a worker, torch's default
_SHARED = Path("/dev/shm")  # noqa: S108 (where workers leave batches on Linux)


@dataclass(frozen=True)
class Files:
    """Images as files, in a folder a class.

    Attributes
    ----------
    folder : of the classes' folders
    side : pixels
    mean, std : to normalise by, of the 0 to 1 scale
    """

    folder: Path
    side: int
    mean: list[float]
    std: list[float]


def make_loader(
    files: Files, batch_size: int, workers: int, device: torch.device
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of `ImageFolder`: normalised pixels, float32 N×3×H×W, and labels, int64 N."""
    from torchvision import datasets, transforms

    change = transforms.Compose(
        [
            transforms.RandomCrop(files.side, padding=_PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(files.mean, files.std),
        ]
    )
    return DataLoader(
        datasets.ImageFolder(str(files.folder), change),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def usable_workers(batch_size: int, side: int) -> int:
    """As many workers as the script's default, or fewer: as there are cores, and room in shared memory.

    Workers whose batches do not fit into it are killed by the kernel.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(WORKERS, cores)
    if _SHARED.is_dir():
        batch = batch_size * 3 * side * side * 4
        workers = min(workers, shutil.disk_usage(_SHARED).free // (2 * _PREFETCHED * batch))
    return max(1, workers)


class ReferenceLoop:
    """The script's training of one epoch a call, with SGD and cross-entropy.

    Parameters
    ----------
    model : whose network is trained, in contiguous memory
    batches : of one epoch, each time they are gone through
    amp : fp16 where autocast has it, with scaled gradients: the script's --amp
    """

    def __init__(self, model: Classifier, batches: Batches, device: torch.device, *, amp: bool) -> None:
        network = nn.Sequential(model.backbone, model.head)
        self._network = network.to(memory_format=torch.contiguous_format).to(device).train()
        self._batches, self._device, self._amp = batches, device, amp
        # CPUs emulate fp16, some hundred times slower than all else: to try this out bf16 will do there.
        self._half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self._criterion = nn.CrossEntropyLoss()
        self._optimiser = torch.optim.SGD(
            network.parameters(), lr=_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp)
        self.loss = float("nan")

    def __call__(self) -> int:
        """Train an epoch; how many images it had."""
        count = 0
        with algorithms_tried():
            for pixels, labels in on_device(self._batches, self._device):
                self._step(pixels, labels)
                count += len(labels)
        return count

    def _step(self, pixels: Tensor, labels: Tensor) -> None:
        with torch.autocast(self._device.type, self._half, enabled=self._amp):
            outputs = self._network(pixels)
            loss = self._criterion(outputs, labels)
        self._optimiser.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        # The script's meters take these three off the device in each step, and so wait for it.
        hits = outputs.topk(min(5, outputs.shape[1])).indices == labels[:, None]
        self.loss = loss.item()
        hits[:, 0].sum().item()
        hits.sum().item()


def loader_alone(batches: Batches, device: torch.device) -> Callable[[], int]:
    """Goes through all batches, brings them to the device, and says how many images they had."""
    return lambda: sum(len(labels) for _, labels in on_device(batches, device))


def on_device(batches: Batches, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches there; from pinned memory the host does not wait for them."""
    for pixels, labels in batches:
        yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
