"""The peer is a file of somebody else's: what it needs is written for it, what is wrong with it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cifar_images import Cifar
from benchmarks.gpu.peer import FOLDER, load_peer, peer_at_work, peer_name, write_peer_data
from stages.errors import WinnowError

STAND_IN = """
import torch
torch.backends.cudnn.benchmark = True
hyp = {"aug": {"flip": True}}
class CifarLoader:
    pass
def main(run):
    tried_out = torch.backends.cudnn.benchmark
    return tried_out, torch.load("cifar10/test.pt", map_location="cpu")["labels"]
"""


@pytest.fixture
def cifar() -> Cifar:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (600, 32, 32, 3), np.uint8)
    labels = np.repeat(np.arange(10), 60)
    return Cifar(images, labels, images[::2], labels[::2], [f"class {number}" for number in range(10)])


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "airbench94.py"
    path.write_text(STAND_IN, "utf-8")
    return path


def test_the_peer_is_loaded_without_a_trace_in_this_process(stand_in: Path) -> None:
    before = torch.backends.cudnn.benchmark
    assert load_peer(stand_in).hyp == {"aug": {"flip": True}}
    assert torch.backends.cudnn.benchmark == before


def test_its_name_says_which_file_it_was(stand_in: Path) -> None:
    name = peer_name(stand_in)
    assert name.startswith("airbench94.py")
    stand_in.write_text(STAND_IN + "\n", "utf-8")
    assert peer_name(stand_in) != name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.py", None),
        ("airbench94.txt", STAND_IN),
        ("airbench94.py", "def main(run) return"),
        ("airbench94.py", "import no_such_module_anywhere"),
        ("airbench94.py", "hyp = {}"),
    ],
)
def test_another_file_is_refused_and_says_where_the_right_one_is(
    tmp_path: Path, name: str, content: str | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(WinnowError, match=r"cifar10-airbench"):
        load_peer(path)


def test_its_data_are_the_same_images_in_mixed_order(cifar: Cifar, tmp_path: Path) -> None:
    write_peer_data(cifar, tmp_path / "new" / FOLDER)
    train = torch.load(tmp_path / "new" / FOLDER / "train.pt", weights_only=True)
    assert train["images"].dtype == torch.uint8
    assert train["labels"].dtype == torch.int64
    assert train["classes"] == cifar.classes
    own = {image.tobytes(): label for image, label in zip(cifar.images, cifar.labels, strict=True)}
    written = zip(train["images"].numpy(), train["labels"].tolist(), strict=True)
    assert {image.tobytes(): label for image, label in written} == own
    # whitening goes by the first ones: they must not be of one class
    assert len(set(train["labels"][:100].tolist())) == 10


def test_at_work_it_finds_its_data_and_leaves_nothing(
    cifar: Cifar, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.backends.cudnn.benchmark
    with peer_at_work(cifar):
        place = Path.cwd()
        peer = load_peer(stand_in)
        for _ in range(2):
            tried_out, labels = peer.main(0)
            assert tried_out
            assert sorted(labels.tolist()) == sorted(cifar.test_labels.tolist())
            assert torch.backends.cudnn.benchmark == before  # it is for the peer alone
    assert Path.cwd() == tmp_path
    assert not place.exists()
