import numpy as np
import pytest
import torch

from stages.learning.loading.batches import Batches


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
