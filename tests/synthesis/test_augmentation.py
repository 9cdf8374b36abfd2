import numpy as np
import pytest

from stages.errors import WinnowError
from stages.synthesis.augmentation import augment_copies, validate_policy

POLICY = [
    ("Affine", {"rotate": [-12, 12], "scale": [0.9, 1.1], "translate_percent": {"x": [-0.1, 0.1]}, "p": 1.0}),
    ("RandomBrightnessContrast", {"brightness_limit": 0.15, "p": 0.5}),
]


def noise(count, channels=1, size=16):
    return np.random.default_rng(3).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def ids(count):
    return [f"{(index * 7919) % 1000:04d}" for index in range(count)]


def by_id(result):
    copies, _, names = result
    return {name: copy.tobytes() for name, copy in zip(names, copies, strict=True)}


@pytest.mark.parametrize(
    ("transform", "args", "words"),
    [
        ("Afine", {}, ["augment.policy.1.name = 'Afine'", "did you mean Affine"]),
        ("affine", {}, ["did you mean Affine"]),
        ("Lambda", {}, ["no such transform"]),
        ("Compose", {}, ["no such transform"]),
        ("Affine", {"rotat": [-5, 5]}, ["augment.policy.1.args.rotat", "did you mean rotate"]),
        ("Affine", {"strict": False}, ["augment.policy.1.args.strict"]),
        ("Affine", {"p": 3}, ["augment.policy.1.args of Affine", "p = 3", "less than or equal to 1"]),
        ("Affine", {"rotate": "far"}, ["rotate = 'far'"]),
        ("RandomCrop", {}, ["height: Field required"]),
        ("MedianBlur", {"blur": 3}, ["augment.policy.1.args.blur"]),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_key(transform, args, words):
    with pytest.raises(WinnowError) as error:
        validate_policy([POLICY[0], (transform, args)])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_right_policy_passes():
    validate_policy(POLICY)
    validate_policy(POLICY, (16, 16, 1))
    validate_policy([])


@pytest.mark.parametrize(
    ("transform", "args", "shape"),
    [
        ("RandomCrop", {"height": 8, "width": 8}, (16, 16, 1)),
        ("Normalize", {}, (16, 16, 3)),
        ("ToRGB", {}, (16, 16, 1)),
        ("ISONoise", {"p": 0.01}, (16, 16, 1)),
    ],
)
def test_a_transform_that_does_not_keep_these_images_is_refused(transform, args, shape):
    with pytest.raises(WinnowError, match=f"augment.policy.0: {transform}"):
        validate_policy([(transform, args)], shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_made_for_the_classes_that_need_them(channels):
    images, labels = noise(9, channels), np.array([0, 0, 0, 0, 0, 1, 1, 1, 2])
    copies, parents, names = augment_copies(images, labels, ids(9), np.array([0, 4, 3]), POLICY, 0)
    assert copies.shape == (7, 16, 16, channels)
    assert copies.dtype == np.uint8
    assert labels[parents].tolist() == [1] * 4 + [2] * 3
    assert len(set(names)) == 7
    # the images of a class take turns
    assert np.bincount(parents, minlength=9)[5:8].max() - np.bincount(parents, minlength=9)[5:8].min() <= 1
    assert not any((copy == images[parent]).all() for copy, parent in zip(copies, parents, strict=True))
    assert len({copy.tobytes() for copy in copies}) == 7


def test_copies_depend_on_neither_order_nor_the_other_samples():
    images, labels, names = noise(12), np.arange(12) % 3, ids(12)
    quota = np.array([5, 9, 2])
    whole = by_id(augment_copies(images, labels, names, quota, POLICY, 1))
    order = np.random.default_rng(0).permutation(12)
    shuffled = augment_copies(images[order], labels[order], [names[i] for i in order], quota, POLICY, 1)
    assert by_id(shuffled) == whole
    alone = labels == 1
    part = augment_copies(
        images[alone], labels[alone], [n for n, a in zip(names, alone, strict=True) if a], quota, POLICY, 1
    )
    assert by_id(part).items() <= whole.items()
    assert len(part[2]) == 9


def test_another_seed_gives_other_pixels_and_the_same_ids():
    images, labels = noise(4), np.zeros(4, np.int64)
    first = augment_copies(images, labels, ids(4), np.array([6]), POLICY, 0)
    second = augment_copies(images, labels, ids(4), np.array([6]), POLICY, 1)
    assert first[2] == second[2]
    assert (first[0] != second[0]).any()
