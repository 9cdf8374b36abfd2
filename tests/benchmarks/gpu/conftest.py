"""A small CIFAR-10 with labels by people, in the shape of the real files."""

import csv
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = [f"class {number}" for number in range(10)]
TRAIN, TEST = 30, 4  # images a class


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cifar10.tar.gz`, whose classes differ in brightness, and `cifar10n_labels.csv.gz`."""
    folder = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "cifar10.tar.gz", "w:gz") as tar:
        for split, count in (("train", TRAIN), ("test", TEST)):
            for number in range(10 * count):
                low = 20 * (number % 10)
                image = rng.integers(low, low + 40, (32, 32, 3), np.uint8)
                content = io.BytesIO()
                Image.fromarray(image).save(content, "JPEG")
                member = tarfile.TarInfo(f"cifar10/{split}/{CLASSES[number % 10]}/{number // 10:04d}.jpg")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)
    with gzip.open(folder / "cifar10n_labels.csv.gz", "wt", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "clean", "aggregate", "random1", "random2", "random3", "worst"])
        for name in CLASSES:
            for number in range(TRAIN):
                noisy = [CLASSES[rng.integers(10)] if rng.random() < share else name for share in (0.1, 0.2)]
                table.writerow([f"train/{name}/{number:04d}.jpg", name, noisy[0], *[noisy[1]] * 3, noisy[1]])
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in: what measurements keep lies there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
