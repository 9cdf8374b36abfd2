import numpy as np
import pytest

from stages.synthesis.interpolation import random_copies, smote


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_random_copies_are_drawn_from_all_with_a_seed():
    chosen = random_copies(5, 200, 0)
    assert set(chosen.tolist()) == set(range(5))
    assert np.array_equal(chosen, random_copies(5, 200, 0))
    assert not np.array_equal(chosen, random_copies(5, 200, 1))
    assert random_copies(1, 3, 0).tolist() == [0, 0, 0]
    assert len(random_copies(5, 0, 0)) == 0


@pytest.mark.parametrize("count", [2, 3, 20])
def test_smote_lies_between_two_images_of_the_class(count):
    real = images(count)
    made, parents = smote(real, 12, 0)
    assert made.shape == (12, 8, 8, 1)
    assert made.dtype == np.uint8
    assert (made >= real.min(0)).all()  # a uint8 difference that wraps would leave the range
    assert (made <= real.max(0)).all()
    flat, points = real.reshape(count, -1).astype(float), made.reshape(12, -1).astype(float)
    for point, parent in zip(points, parents, strict=True):
        gaps = np.linalg.norm(flat - point, axis=1)
        assert gaps.argmin() == parent
        others = np.delete(np.arange(count), parent)
        detour = [gaps[parent] + gaps[o] - np.linalg.norm(flat[parent] - flat[o]) for o in others]
        assert min(detour) < 5.0  # on the line to a fellow, but for rounding


def test_smote_is_seeded():
    assert np.array_equal(smote(images(6), 5, 3)[0], smote(images(6), 5, 3)[0])
    assert not np.array_equal(smote(images(6), 5, 3)[0], smote(images(6), 5, 4)[0])


def test_smote_of_a_single_image_is_an_error():
    with pytest.raises(ValueError, match="two images"):
        smote(images(1), 3, 0)
