import warnings

import numpy as np
import pytest

from stages.dataset.base import View
from stages.synthesis.interpolation import interpolate

METHODS = ["random", "smote", "borderline_smote", "adasyn", "smote_enn", "smote_tomek"]


def view(images, labels, classes=None):
    labels = np.asarray(labels, np.int64)
    classes = classes or [f"class {i}" for i in range(labels.max() + 1)]
    names = np.array([f"{i:016x}" for i in range(len(labels))], object)
    return View(np.asarray(images, np.uint8), labels, np.ones(len(labels), np.float32), names, classes)


def noise(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)
    return view(images, labels)


def greys(values, labels):
    """Images of one grey each: their distance is that of their values."""
    return view(np.tile(np.asarray(values)[:, None, None, None], (1, 8, 8, 1)), labels)


def quota(*values):
    return np.array(values, np.int64)


def same(first, second):
    return np.array_equal(first.images, second.images) and np.array_equal(first.parents, second.parents)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_images_of_the_class_from_a_seed(method):
    real = noise([30, 12])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = interpolate(real, quota(0, 10), method, seed=0)
    assert made.images.dtype == np.uint8
    assert made.images.shape[1:] == (8, 8, 1)
    assert len(made.images) + made.cleaned[1] == 10
    assert set(made.labels.tolist()) <= {1}
    assert len(made.methods) == len(made.parents) == len(made.images)
    assert (real.labels[made.parents] == 1).all()
    own = real.images[real.labels == 1]
    assert (made.images >= own.min(0)).all()  # a uint8 difference that wraps would leave the range
    assert (made.images <= own.max(0)).all()
    assert same(made, interpolate(real, quota(0, 10), method, seed=0))


@pytest.mark.parametrize("method", ["random", "smote"])
def test_another_seed_makes_other_images(method):
    real = noise([9, 6])
    seeds = [interpolate(real, quota(0, 5), method, seed=seed) for seed in (3, 4)]
    assert not same(*seeds)


@pytest.mark.parametrize("method", ["random", "smote"])
def test_a_class_does_not_depend_on_the_others(method):
    real = noise([9, 6, 5])
    both = interpolate(real, quota(0, 5, 4), method, seed=0)
    one = interpolate(real, quota(0, 5, 0), method, seed=0)
    assert np.array_equal(both.images[both.labels == 1], one.images)


def test_random_copies_are_drawn_from_all_and_name_what_they_copy():
    real = noise([9, 5])
    made = interpolate(real, quota(0, 200), "random", seed=0)
    assert np.array_equal(made.images, real.images[made.parents])
    assert set(made.parents.tolist()) == set(range(9, 14))
    assert made.methods == ["random"] * 200
    assert made.notes == {}


@pytest.mark.parametrize("count", [2, 3, 20])
def test_smote_lies_between_two_images_of_the_class(count):
    real = noise([30, count])
    made = interpolate(real, quota(0, 12), "smote", seed=0)
    flat = real.images[30:].reshape(count, -1).astype(float)
    for image, parent in zip(made.images, made.parents - 30, strict=True):
        gaps = np.linalg.norm(flat - image.reshape(-1), axis=1)
        assert gaps.argmin() == parent
        others = np.delete(np.arange(count), parent)
        detour = [gaps[parent] + gaps[o] - np.linalg.norm(flat[parent] - flat[o]) for o in others]
        assert min(detour) < 5.0  # on the line to a fellow, but for rounding
    expected = {} if count == 20 else {1: [f"{count} images: {count - 1} of 5 neighbours"]}
    assert made.notes == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_class_of_one_image_gets_copies_of_it_and_says_so(method):
    real = noise([12, 1])
    made = interpolate(real, quota(0, 3), method, seed=0)
    assert np.array_equal(made.images, real.images[[12] * 3])
    assert made.methods == ["random"] * 3
    assert made.notes == ({} if method == "random" else {1: [made.notes[1][0]]})
    assert method == "random" or "single image" in made.notes[1][0]


@pytest.mark.parametrize("method", METHODS)
def test_no_quota_no_images_and_a_class_without_images_gets_none(method):
    real = view(noise([9, 6]).images, [0] * 9 + [2] * 6, ["a", "b", "c"])
    made = interpolate(real, quota(0, 5, 0), method, seed=0)
    assert made.images.shape == (0, 8, 8, 1)
    assert made.parents.dtype == np.int64
    assert made.methods == []


@pytest.mark.parametrize("method", METHODS)
def test_constant_images_and_a_single_class_are_no_trouble(method):
    constant = view(np.full((8, 8, 8, 1), 7), [0] * 5 + [1] * 3)
    made = interpolate(constant, quota(0, 4), method, seed=0)
    assert (made.images == 7).all()
    alone = interpolate(view(noise([6]).images, [0] * 6), quota(4), method, seed=0)
    assert len(alone.images) == 4
    assert alone.cleaned.tolist() == [0]


def test_borderline_smote_starts_from_images_at_the_border():
    # Class 1 has two groups: one next to class 0, and one far from it.
    near, far = list(range(100, 130, 3)), list(range(201, 241))
    real = greys([*near, *(v + 1 for v in near), *far], [0] * 10 + [1] * 50)
    made = interpolate(real, quota(0, 30), "borderline_smote", seed=0)
    assert made.methods == ["borderline_smote"] * 30
    assert (made.images < 200).all()


@pytest.mark.parametrize("method", ["borderline_smote", "adasyn"])
def test_where_no_image_is_in_danger_smote_stands_in_with_a_reason(method):
    real = greys([*range(20), *range(200, 220)], [0] * 20 + [1] * 20)
    made = interpolate(real, quota(0, 6), method, seed=0)
    assert made.methods == ["smote"] * 6
    assert len(made.notes[1]) == 1
    assert made.notes[1][0].startswith("no image ")
    assert made.notes[1][0].endswith("so SMOTE")
    assert same(made, interpolate(real, quota(0, 6), "smote", seed=0))


def test_adasyn_makes_most_where_other_classes_are_near():
    real = greys([*range(0, 40, 2), *range(41, 61, 4), *range(150, 190, 2)], [0] * 20 + [1] * 25)
    made = interpolate(real, quota(0, 40), "adasyn", seed=0)
    assert set(made.methods) == {"adasyn"}
    assert (made.images < 150).all()
    assert len(made.images) <= 40


def test_adasyn_of_less_than_an_image_each_is_smote():
    made = interpolate(noise([40, 40]), quota(0, 2), "adasyn", seed=0)
    assert made.methods == ["smote"] * 2
    assert "rounded to none" in made.notes[1][0]


@pytest.mark.parametrize("method", ["smote_enn", "smote_tomek"])
def test_cleaning_removes_made_images_only_and_counts_both(method):
    # Class 1 lies on both sides of class 0: what is interpolated across is among the others.
    real = greys([*range(100, 140, 2), 60, 61, 181, 182], [0] * 20 + [1] * 4)
    real.images[19] = 60  # a real image of class 0 amid class 1
    made = interpolate(real, quota(0, 60), method, seed=0)
    assert made.cleaned[1] > 0
    assert made.cleaned[0] == 0
    assert len(made.images) == 60 - made.cleaned[1]
    assert made.methods == [method] * len(made.images)
    assert f"cleaning removed {made.cleaned[1]} of 60 made images" in made.notes[1]
    assert made.doubtful[0] > 0
    smote = interpolate(real, quota(0, 60), "smote", seed=0)
    kept = {image.tobytes() for image in made.images}
    assert kept < {image.tobytes() for image in smote.images}


def test_neighbours_in_the_embedding_mix_the_pixels_of_the_same_pairs():
    real = noise([4, 12])
    # Two groups by grey, 4 to 9 and 10 to 15; in the embedding the even ones and the odd ones.
    real.images[4:10] //= 4
    real.images[10:] = real.images[10:] // 4 + 150
    embeddings = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    embeddings[4::2] += 100
    made = interpolate(real, quota(0, 40), "smote", seed=0, embeddings=embeddings)
    flat = real.images[4:].reshape(12, -1).astype(float)
    crossed = 0
    for image in made.images:
        gaps = np.linalg.norm(flat - image.reshape(-1), axis=1)
        detours = gaps[:, None] + gaps - np.linalg.norm(flat[:, None] - flat, axis=2)
        np.fill_diagonal(detours, np.inf)
        first, second = np.unravel_index(detours.argmin(), detours.shape)
        assert detours.min() < 5.0
        assert (first - second) % 2 == 0  # of one group in the embedding
        crossed += (first < 6) != (second < 6)
    assert crossed > 5  # and of different ones in the pixels
    assert not same(made, interpolate(real, quota(0, 40), "smote", seed=0))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_embeddings_also_constant_ones(method):
    real = noise([20, 8])
    made = interpolate(real, quota(0, 6), method, seed=0, embeddings=np.ones((28, 2), np.float32))
    assert len(made.images) + made.cleaned[1] == 6
    assert (real.labels[made.parents] == 1).all()
    if method == "random":
        assert np.array_equal(made.images, real.images[made.parents])
