import numpy as np
import pytest
import torch

from stages.learning.recipe import Recipe
from stages.learning.training.feed import Batch, Feed

COUNT, SIDE = 40, 8
# Image n is all of the number n: what a batch holds can be told from its pixels.
IMAGES = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, SIDE, SIDE, 1)).copy()
LABELS = np.arange(COUNT) % 2


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


def test_a_preview_draws_nothing():
    looked_at, other = feed(mixup=0.2, shift=1), feed(mixup=0.2, shift=1)
    assert looked_at.preview().shape == (16, 1, SIDE, SIDE)
    for _ in range(3):
        assert torch.equal(looked_at.next().pixels, other.next().pixels)


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


MIXES = [{"mixup": 1.0, "shift": 1}, {"mixup": 0.5, "cutmix": 1.0}, {"cutout": 3, "flip": True, "shift": 2}]


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
    assert torch.equal(first.preview(), second.preview())
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
