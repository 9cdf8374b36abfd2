"""Two processes that share each batch do what one does with all of it."""

from pathlib import Path

import numpy as np
import pytest
import shared_fits
import torch
from torch import nn

from stages.errors import ProcessGoneError, WinnowError
from stages.learning import parallel
from stages.learning.networks.airbench import BiasedBatchNorm
from stages.learning.parallel import SharedBatchNorm, World, joined, world


def run(folder: Path, *names: str, **variables: str) -> list[tuple[int, str]]:
    """Status and stderr of two processes that train the cases of these names together."""
    processes = shared_fits.start([shared_fits.__file__, str(folder), *names], 2, **variables)
    said = [process.communicate(timeout=900)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The weights of all cases, each trained by two processes."""
    folder = tmp_path_factory.mktemp("together")
    assert [status for status, _ in run(folder, *shared_fits.CASES)] == [0, 0]
    return folder


@pytest.mark.parametrize("name", shared_fits.CASES)
def test_two_processes_match_one_with_the_same_batches(together: Path, name: str):
    alone = shared_fits.train(name)
    tolerance = 1e-9 if shared_fits.CASES[name].exact else 1e-4
    weights = shared_fits.weights_of(alone)
    with np.load(together / f"{name}.npz") as both:
        assert list(both) == ["history", *weights]
        for key, value in weights.items():
            np.testing.assert_allclose(both[key], value, rtol=0, atol=tolerance, err_msg=key)
        figures = [list(row.values()) for row in alone.history]
        np.testing.assert_allclose(both["history"], figures, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_continued_training_of_two_ends_like_one_that_was_not_killed(together: Path, tmp_path: Path):
    kept = tmp_path / "kept"
    ended = run(tmp_path, "float32", CHECKPOINTS=str(kept), CRASH="1")
    assert ended[0][0] == 7
    assert "ProcessGoneError: another process of this training ended" in ended[1][1]
    assert len(list(kept.rglob("*.part"))) == 1
    again = run(tmp_path, "float32", CHECKPOINTS=str(kept))
    assert [status for status, _ in again] == [0, 0]
    assert "train: went on after step 5" in again[0][1]
    assert "went on" not in again[1][1]
    with np.load(together / "float32.npz") as one, np.load(tmp_path / "float32.npz") as other:
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.mark.parametrize(("total", "size"), [(32, 2), (31, 2), (7, 3), (2, 3)])
def test_shares_cover_the_batch_and_differ_by_one_row_at_most(total: int, size: int):
    shares = [range(total)[World(rank, size).rows(total)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_by_itself_a_process_has_all_rows_and_changes_no_network(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    network, rows = nn.Linear(2, 2), torch.ones(3, 2)
    with joined("cpu") as here, here.together(network) as called:
        assert here == world() == World()
        assert called is network
        assert here.gather(rows, 3) is rows
        assert here.from_main("key") == "key"
        assert here.alike(3)


@pytest.fixture
def group(tmp_path: Path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (4, 3, 5, 6)])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}]
)
def test_shared_batch_norm_is_torchs_own_in_one_process(shape: tuple[int, ...], options: dict):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    own, shared = kind(3, **options).double(), SharedBatchNorm(3, **options).double()
    found = []
    for layer in (own, shared):
        torch.manual_seed(0)
        rows = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            (layer(rows) * torch.randn(shape, dtype=torch.float64)).sum().backward()
        after = layer.eval()(rows)
        weights = [weight.grad for weight in layer.parameters()]
        found.append([rows.grad, after, *weights, *layer.state_dict().values()])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("group")
def test_batch_norm_is_put_back_with_what_it_learnt():
    network = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3)))
    before, keys = network[1][0], list(network.state_dict())
    with pytest.raises(RuntimeError, match="stop"), World(0, 2).together(network) as called:
        assert isinstance(network[1][0], SharedBatchNorm)
        assert list(network.state_dict()) == keys
        called(torch.randn(4, 2))
        raise RuntimeError("stop")
    assert network[1][0] is before
    assert before.num_batches_tracked == 1
    assert before.running_mean.abs().sum() > 0


@pytest.mark.usefixtures("group")
def test_a_scale_that_does_not_learn_is_shared_as_it_is():
    network = nn.Sequential(BiasedBatchNorm(3))
    own, learning = network[0], [name for name, _ in network.named_parameters()]
    with World(0, 2).together(network):
        assert isinstance(network[0], SharedBatchNorm)
        assert [name for name, _ in network.named_parameters()] == learning == ["0.bias"]
        assert network[0].weight is own.weight
        assert network[0].bias is own.bias
    assert network[0] is own


def test_more_processes_than_gpus_and_mps_are_users_mistakes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, said in (("cuda", "more processes than the 1 GPU"), ("mps", "cannot train on MPS")):
        monkeypatch.setattr(parallel, "choose_device", lambda _, kind=device: torch.device(kind))
        with pytest.raises(WinnowError, match=said), joined("auto"):
            pass


def test_batches_smaller_than_the_processes_are_refused(monkeypatch):
    monkeypatch.setattr("stages.learning.loop.world", lambda: World(0, 40))
    with pytest.raises(WinnowError, match="40 processes cannot share batches of 31"):
        shared_fits.train("odd_batch")


def test_a_process_that_is_gone_is_told_from_other_errors(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda *_: None)
    with pytest.raises(ProcessGoneError), joined("cpu"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="mine"), joined("cpu"):
        raise RuntimeError("mine")
