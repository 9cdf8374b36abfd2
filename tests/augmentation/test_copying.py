import numpy as np
import pytest

from stages.augmentation import copying as augmentation
from stages.augmentation.copying import augment_copies, transformed
from stages.augmentation.transforms import validate_policy
from stages.errors import WinnowError

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


def test_the_bytes_do_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(augmentation, "_TASK", 5)
    images, labels = noise(6, 3), np.array([0, 0, 0, 1, 1, 1])
    quota = np.array([8, 15])
    one = augment_copies(images, labels, ids(6), quota, POLICY, 0, processes=1)
    two = augment_copies(images, labels, ids(6), quota, POLICY, 0, processes=2)
    assert one[0].tobytes() == two[0].tobytes()
    assert one[2] == two[2]
    # None goes over to processes where the rest takes long enough: here any time is
    monkeypatch.setattr(augmentation, "_PATIENCE", 0.0)
    assert (augment_copies(images, labels, ids(6), quota, POLICY, 0)[0] == one[0]).all()


def test_a_task_holds_its_own_originals_only():
    images = noise(50)
    task = augmentation._task(images, np.array([40, 40, 7]), ["a", "b", "c"], POLICY, 0, "key")
    assert task.originals.tobytes() == images[[7, 40]].tobytes()
    assert task.which.tolist() == [1, 1, 0]


def test_no_copies_of_nothing():
    assert transformed(noise(3), np.zeros(0, np.int64), [], POLICY, 0).shape == (0, 16, 16, 1)
    quota = np.array([0, 4])  # of a class without images
    assert len(augment_copies(noise(3), np.zeros(3, np.int64), ids(3), quota, POLICY, 0)[2]) == 0


def test_a_policy_that_does_not_fit_the_images_is_refused():
    with pytest.raises(WinnowError, match=r"augment\.policy\.0: RandomCrop turns"):
        augment_copies(
            noise(3),
            np.zeros(3, np.int64),
            ids(3),
            np.array([2]),
            [("RandomCrop", {"height": 8, "width": 8})],
            0,
        )


def test_the_library_s_advice_to_programmers_is_not_passed_on(recwarn):
    images, parents = noise(2), np.array([0, 1])
    policy = [("ToGray", {"p": 1.0}), ("ShiftScaleRotate", {"p": 1.0})]
    validate_policy(policy, (16, 16, 1))
    transformed(images, parents, ["a", "b"], policy, 0, processes=1)
    assert [str(warning.message) for warning in recwarn] == []
