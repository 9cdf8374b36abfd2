"""Fetching the catalogue, without a network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages import fetch as module
from stages.errors import WinnowError
from stages.fetch import fetch, main, read_torchvision
from stages.ingestion.opening import open_source
from stages.ingestion.source import Block


def blocks(path: Path, scratch: Path) -> list[Block]:
    """What ingest reads of a fetched set."""
    scratch.mkdir()
    return list(open_source(path, scratch).blocks())


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file in the IDX format of MNIST: magic number, sizes, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(params=["mnist", "fashion_mnist"])
def by_hand(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, np.ndarray]]:
    """Name, folder and arrays of a small set in torchvision's layout."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (20, 28, 28)),
        "train-labels-idx1-ubyte": np.arange(20) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (10, 28, 28)),
        "t10k-labels-idx1-ubyte": np.arange(10) % 10,
    }
    raw = tmp_path / "given" / module.TORCHVISION[request.param] / "raw"
    raw.mkdir(parents=True)
    for name, array in arrays.items():
        write_idx(raw / name, array)
    return request.param, tmp_path / "given", arrays


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    folder = fetch("digits", tmp_path)
    digits = load_digits()
    paths = sorted(folder.rglob("*"), key=lambda path: path.name)
    paths = [path for path in paths if path.is_file()]
    assert len(paths) == 1797
    for index in (0, 17, 1796):
        assert paths[index].parent.name == str(digits.target[index])
        levels = np.asarray(Image.open(paths[index])).astype(float) * 16 / 255
        assert np.abs(levels - digits.images[index]).max() < 0.05
    assert np.asarray(Image.open(paths[0])).max() <= 255
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_set_brought_by_hand_becomes_an_npz(
    by_hand: tuple[str, Path, dict[str, np.ndarray]], tmp_path: Path, no_network: None
) -> None:
    name, given, arrays = by_hand
    folder = fetch(name, tmp_path / "raw", given)
    with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
        written = dict(archive)
    assert written["images"].shape == (30, 28, 28, 1)
    assert written["images"].dtype == np.uint8
    assert written["labels"].dtype == np.int64
    assert (written["images"][20:, ..., 0] == arrays["t10k-images-idx3-ubyte"]).all()
    assert written["labels"].tolist() == [*np.arange(20) % 10, *range(10)]
    assert written["split"].tolist() == ["train"] * 20 + ["test"] * 10
    assert len(written["classes"]) == 10
    labels = [label for block in blocks(folder, tmp_path / "scratch") for label in block.labels]
    assert labels[3] == {"mnist": "3", "fashion_mnist": "Dress"}[name]
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [name]


def test_the_same_set_gives_the_same_bytes(
    by_hand: tuple[str, Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, given, _ = by_hand
    first = (fetch(name, tmp_path / "raw", given) / f"{name}.npz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert (fetch(name, tmp_path / "raw", given) / f"{name}.npz").read_bytes() == first


def test_a_download_is_unpacked_by_torchvision(
    by_hand: tuple[str, Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download itself, from a server on this machine."""
    from torchvision import datasets

    name, given, _ = by_hand
    kind = getattr(datasets, module.TORCHVISION[name])
    server, resources = tmp_path / "server", []
    server.mkdir()
    for path in (given / kind.__name__ / "raw").iterdir():
        packed = gzip.compress(path.read_bytes())
        (server / f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    monkeypatch.setattr(kind, "resources", resources)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=server)) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        monkeypatch.setattr(kind, "mirrors", [f"http://127.0.0.1:{http.server_port}/"])
        folder = fetch(name, tmp_path / "raw")
        http.shutdown()
    assert sum(len(block.payload) for block in blocks(folder, tmp_path / "scratch")) == 30
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [name]


def test_cifar_is_read_and_only_with_the_published_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        content = {"data": rng.integers(0, 256, (4, 3072)).astype(np.uint8), "labels": [0, 1, 2, 3]}
        if name == "batches.meta":
            content = {"label_names": list("abcdefghij")}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(WinnowError, match="cifar10 could not be read"):
        read_torchvision("cifar10", tmp_path, download=False)

    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in sums if "data" in name])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    arrays = read_torchvision("cifar10", tmp_path, download=False)
    assert arrays["images"].shape == (24, 32, 32, 3)
    assert arrays["split"].tolist() == ["train"] * 20 + ["test"] * 4
    assert arrays["classes"].tolist() == list("abcdefghij")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_without_a_network_one_line_says_what_to_do(
    name: str, workspace: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = workspace / "data/raw" / name
    kept.mkdir(parents=True)
    with pytest.raises(SystemExit) as caught:
        main([name])
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fetch: ")]
    assert f"{name} could not be downloaded" in line
    assert f"python -m stages.fetch {name} --from FOLDER" in line
    assert f"dvc commit --force data/raw/dvc.yaml:{name}" in line
    assert list((workspace / "data/raw").iterdir()) == [kept]


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match=r"mnist could not be read from .*train-images-idx3-ubyte"):
        fetch("mnist", tmp_path / "raw", tmp_path)


def test_digits_take_no_folder(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["digits", "--from", "."])
    assert caught.value.code == 2
    assert "leave --from out" in capsys.readouterr().err


def test_outside_the_root_nothing_is_written(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "dvc.yaml").unlink()
    with pytest.raises(SystemExit) as caught:
        main(["digits"])
    assert caught.value.code == 2
    assert "run from the root" in capsys.readouterr().err
    assert not (workspace / "data/raw").exists()


def test_the_command_line_needs_no_params(workspace: Path) -> None:
    (workspace / "params.yaml").unlink()
    main(["digits"])
    assert (workspace / "data/raw/digits/0/0000.png").is_file()
    with pytest.raises(SystemExit):
        main(["imagenet"])


def test_help_names_the_sets() -> None:
    command = [sys.executable, "-m", "stages.fetch", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "fashion_mnist" in said
    assert "--from FOLDER" in said
