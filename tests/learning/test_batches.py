from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.learning import batches as module
from stages.learning.batches import Batch, Batches, Feed, open_images
from stages.learning.recipe import Recipe

CPU = torch.device("cpu")
COUNT, SIDE = 40, 8

# Image n is all of the number n: what a batch holds can be told from its pixels.
IMAGES = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, SIDE, SIDE, 1)).copy()

LABELS = np.arange(COUNT) % 2
MIXES = [{"mixup": 1.0, "shift": 1}, {"mixup": 0.5, "cutmix": 1.0}, {"cutout": 3, "flip": True, "shift": 2}]


def test_balanced_sampling_draws_rare_classes_as_often():
    labels = np.repeat([0, 1], [95, 5])
    drawn = Batches(labels, 50, "balanced", torch.Generator().manual_seed(0))
    drawn = np.concatenate([labels[next(drawn).numpy()] for _ in range(20)])
    assert 0.45 < (drawn == 1).mean() < 0.55


def test_shuffled_batches_visit_every_sample_once_an_epoch():
    drawn = Batches(np.zeros(10, np.int64), 4, "shuffle", torch.Generator().manual_seed(0))
    seen = torch.cat([next(drawn) for _ in range(5)])
    assert torch.bincount(seen).tolist() == [2] * 10


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_the_place_in_the_shuffle_comes_back(sampling: str):
    labels = np.repeat([0, 1], [7, 4])

    def fresh() -> tuple[torch.Generator, Batches]:
        generator = torch.Generator().manual_seed(3)
        return generator, Batches(labels, 4, sampling, generator)

    generator, drawn = fresh()
    for _ in range(4):
        next(drawn)
    state, random = drawn.state_dict(), generator.get_state()
    expected = [next(drawn).tolist() for _ in range(6)]
    generator, again = fresh()
    again.load_state_dict(state)
    generator.set_state(random)
    assert [next(again).tolist() for _ in range(6)] == expected


def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (50, 6, 5, 1), np.uint8)
    np.save(tmp_path / "images.npy", grey)
    return {
        "in memory": grey,
        "mapped": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "a piece of what is mapped": np.load(tmp_path / "images.npy", mmap_mode="r")[10:, ::-1],
        "read-only": np.frombuffer(grey.tobytes(), np.uint8).reshape(grey.shape),
        "features": rng.normal(size=(50, 16)).astype(np.float32),
    }


@pytest.mark.parametrize(
    "which", ["in memory", "mapped", "a piece of what is mapped", "read-only", "features"]
)
@pytest.mark.parametrize("resident", [True, False, None])
def test_the_same_batches_wherever_the_images_lie(tmp_path: Path, which: str, resident: bool | None):
    array = arrays(tmp_path)[which]
    rng = np.random.default_rng(1)
    batches = [torch.from_numpy(rng.integers(0, len(array), 8)) for _ in range(5)]
    images = open_images(array, CPU, resident=resident)
    assert len(images) == len(array)
    for number, index in enumerate(batches):
        batch = images.gather(index)
        if number < 4:
            images.prefetch(batches[number + 1])
        assert batch.dtype == torch.from_numpy(np.array(array[:1])).dtype
        assert np.array_equal(batch.numpy(), array[index.numpy()])


def test_what_was_made_ready_in_vain_does_no_harm(tmp_path: Path):
    array = arrays(tmp_path)["mapped"]
    images = open_images(array, CPU, resident=False)
    images.prefetch(torch.tensor([1, 2, 3]))
    images.prefetch(torch.tensor([4, 5, 6]))
    assert np.array_equal(images.gather(torch.tensor([7, 8])).numpy(), array[7:9])
    images.prefetch(torch.tensor([0]))
    assert np.array_equal(images.gather(torch.tensor([0])).numpy(), array[:1])


def test_an_index_that_is_not_there_is_an_error_in_either_case(tmp_path: Path):
    array = arrays(tmp_path)["mapped"]
    for resident in (True, False):
        images = open_images(array, CPU, resident=resident)
        images.prefetch(torch.tensor([50]))
        with pytest.raises(IndexError):
            images.gather(torch.tensor([50]))


def test_they_are_held_where_they_take_a_small_share_of_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = arrays(tmp_path)
    monkeypatch.setattr(module, "free_memory", lambda device: 3 * found["mapped"].nbytes)
    assert isinstance(open_images(found["mapped"], CPU), module._Resident)
    monkeypatch.setattr(module, "free_memory", lambda device: 2 * found["mapped"].nbytes)
    assert isinstance(open_images(found["mapped"], CPU), module._Streamed)
    assert isinstance(open_images(found["mapped"][::-1], CPU), module._Streamed)
    # What is in a CPU's memory anyway takes nothing.
    assert isinstance(open_images(found["in memory"], CPU), module._Resident)


def test_images_in_memory_are_not_copied(tmp_path: Path):
    array = arrays(tmp_path)["in memory"]
    images = open_images(array, CPU)
    array[3] = 77
    assert (images.gather(torch.tensor([3])) == 77).all()


def test_the_thread_ends_with_the_images(tmp_path: Path):
    before = set(threading.enumerate())
    images = open_images(arrays(tmp_path)["mapped"], CPU, resident=False)
    images.prefetch(torch.tensor([1]))
    images.gather(torch.tensor([1]))
    (reader,) = set(threading.enumerate()) - before
    assert reader.is_alive()
    del images
    gc.collect()
    reader.join(300)
    assert not reader.is_alive()


def feed(unlabeled: np.ndarray | None = None, group: int | None = None, **choices: object) -> Feed:
    return Feed(
        IMAGES, LABELS, Recipe(1, 4, 16, 0.1, **choices), seed=0, device=torch.device("cpu"),
        normalise=lambda images: images.permute(0, 3, 1, 2).float(), unlabeled=unlabeled, group=group,
    )  # fmt: skip


def own_share(batch: Batch) -> torch.Tensor:
    """The share of its own number in each image's mean."""
    own, other = batch.index.float(), batch.partner.float()
    return (batch.pixels.mean((1, 2, 3)) - other) / (own - other)


@pytest.mark.parametrize(
    "choices",
    [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0},
     {"mixup": 1.0, "shift": 2, "flip": True, "cutout": 3}],
)  # fmt: skip
def test_mixed_images_are_of_the_samples_and_in_the_shares_that_the_loss_is_told(choices: dict):
    batches = feed(**choices)
    for _ in range(4):
        batch = batches.next()
        mixed = batch.index != batch.partner
        assert mixed.sum() > 8
        torch.testing.assert_close(own_share(batch)[mixed], batch.share[mixed], rtol=1e-4, atol=1e-4)
        alone = ~mixed
        torch.testing.assert_close(batch.pixels.mean((1, 2, 3))[alone], batch.index[alone].float())


def test_unmixed_images_are_those_of_the_index_and_each_comes_once_a_pass():
    batches = feed(shift=1, flip=True)
    drawn = [batches.next() for _ in range(5)]
    for batch in drawn:
        assert batch.partner is None
        assert (batch.pixels == batch.index[:, None, None, None]).all()
    assert torch.cat([batch.index for batch in drawn])[: 2 * COUNT].bincount().tolist() == [2] * COUNT


def test_unlabelled_images_come_beside_as_many_and_change_no_order():
    """Seven of them: each comes at least twice in a batch of 16."""
    unlabeled = np.full((7, SIDE, SIDE, 1), 200, np.uint8) + np.arange(7, dtype=np.uint8)[:, None, None, None]
    batch = feed(unlabeled).next()
    assert batch.unlabeled.shape == batch.pixels.shape
    counts = batch.unlabeled[:, 0, 0, 0].long().bincount(minlength=207)[200:]
    assert counts.sum() == 16
    assert set(counts.tolist()) == {2, 3}
    assert torch.equal(batch.index, feed().next().index)


@pytest.mark.parametrize("choices", [{"mixup": 0.2, "shift": 1}, {"sampling": "balanced", "cutout": 2}])
def test_restored_it_goes_on_alike(choices: dict):
    first, second = feed(**choices), feed(**choices)
    for _ in range(2):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        one, other = first.next(), second.next()
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.pixels, other.pixels)


@pytest.mark.parametrize(
    "choices", [*MIXES, {"flip": True, "alternate_flips": True}, {"sampling": "balanced"}]
)
@pytest.mark.parametrize("unlabeled", [False, True])
def test_batches_made_together_are_those_made_one_by_one(choices: dict, unlabeled: bool):
    others = IMAGES[:7] + 200 if unlabeled else None
    single, grouped = feed(others, **choices), feed(others, group=3, **choices)
    for _ in range(8):
        one, other = single.next(), grouped.next()
        for name in ("pixels", "index", "partner", "share", "unlabeled"):
            its = getattr(one, name)
            assert (its is None) == (getattr(other, name) is None)
            assert its is None or torch.equal(its, getattr(other, name))


@pytest.mark.parametrize("used", range(7))
def test_restored_within_a_group_it_goes_on_alike(used: int):
    first, second = (feed(group=3, shift=1, mixup=0.2, flip=True, alternate_flips=True) for _ in range(2))
    for _ in range(used):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        one, other = first.next(), second.next()
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.pixels, other.pixels)


def test_alternating_flips_are_every_other_time_from_a_random_start():
    """Images brighter on the right than on the left say which way round they are."""
    images = IMAGES + np.arange(SIDE, dtype=np.uint8)[None, None, :, None]
    batches = Feed(
        images, LABELS, Recipe(1, 4, COUNT, 0.1, flip=True, alternate_flips=True), seed=0,
        device=torch.device("cpu"), normalise=lambda images: images.permute(0, 3, 1, 2).float(),
    )  # fmt: skip
    turned = []
    for _ in range(4):
        batch = batches.next()
        flipped = batch.pixels[:, 0, 0, 0] > batch.pixels[:, 0, 0, -1]
        turned.append(flipped[batch.index.argsort()])
    assert 5 < turned[0].sum() < COUNT - 5
    assert torch.equal(turned[1], ~turned[0])
    assert torch.equal(turned[2], turned[0])
    assert torch.equal(turned[3], turned[1])
