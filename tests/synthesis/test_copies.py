import numpy as np
import pytest

from stages.synthesis.copies import (
    SAME,
    Likeness,
    Usual,
    distance_to,
    distance_to_earlier,
    liker_than_real,
    mirrored,
    outline,
    poses,
    shape,
)


def _pictures(seed, count, side=32, channels=3):
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    return coarse.repeat(side // 8, 1).repeat(side // 8, 2)


def test_as_many_real_images_are_called_copies_as_asked_for():
    rng = np.random.default_rng(0)
    real, unseen = rng.uniform(50, 150, (2, 2, 400))
    usual = Usual(list(real), 0.05)
    assert usual.share == pytest.approx(0.05, abs=0.005)
    assert (usual.score(list(unseen)) <= usual.limit).mean() == pytest.approx(0.05, abs=0.03)


def test_a_copy_is_one_even_where_most_real_images_are_copies():
    usual = Usual([np.zeros(20)], 0.05)
    assert usual.limit == SAME
    assert usual.share == 1.0
    assert usual.score([np.array([0.0, 5.0])]).tolist() == [0.0, 5.0]


def test_mirrored_images_are_near_but_nobody_is_near_to_himself():
    images = _pictures(0, 6)
    forms = [shape(images), shape(mirrored(images))]
    assert (distance_to(forms, shape(mirrored(images))[:3])[:3] < 1e-5).all()
    assert (distance_to(forms) > 0.5).all()
    twins = np.concatenate([images, mirrored(images[:1])])
    assert np.flatnonzero(distance_to([shape(twins), shape(mirrored(twins))]) < 1e-5).tolist() == [0, 6]


def test_poses_are_turned_either_way_and_keep_size_and_type():
    images = np.zeros((3, 17, 33, 2), np.uint8)
    images[:, :, 16] = 200  # a line from top to bottom
    found = poses(images)
    assert len(found) == 6
    assert all((one.shape, one.dtype) == (images.shape, np.uint8) for one in found)
    tops = [int(one[0, 0, :, 0].argmax()) for one in found]
    assert sorted(tops) == [15, 15, 16, 16, 17, 17]
    assert (poses(np.full((1, 8, 8, 1), 90, np.uint8))[2] == 90).all()  # no black corners


def test_only_earlier_images_are_repeated():
    points = np.arange(600.0)[:, None] * 10
    points[550], points[3] = points[7] + 1, points[2] + 2
    distance = distance_to_earlier(points)
    assert distance[0] == np.inf
    assert distance[[3, 550]] == pytest.approx([2.0, 1.0])
    assert (np.delete(distance, [0, 3, 4, 550, 551]) == 10.0).all()


def test_forms_ignore_what_copies_change():
    images = _pictures(1, 5)
    brighter = (images * 0.7 + 40).astype(np.uint8)
    assert np.abs(shape(images) - shape(brighter)).max() < 0.01
    assert np.abs(outline(images) - outline(brighter)).max() < 0.02
    moved = np.roll(images, 2, axis=2)
    assert np.linalg.norm(outline(images) - outline(moved), axis=1).max() < 1e-4
    assert np.linalg.norm(shape(images) - shape(moved), axis=1).min() > 0.3
    for flat in (np.zeros_like(images), images[:0]):
        assert np.isfinite(shape(flat)).all()
        assert np.isfinite(outline(flat)).all()


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (8, 1)])
def test_near_duplicates_are_found_by_hash(side, channels):
    images = _pictures(2, 40, side, channels)
    likeness = Likeness(images)
    first = np.arange(40) < 20
    assert not likeness.among(np.arange(40), first).any()
    noise = np.random.default_rng(0).normal(0, 3, images.shape)
    found = likeness.of(np.clip(images + noise, 0, 255).astype(np.uint8), first)
    assert (found[:20] > 0.85).all()
    assert not found[20:].any()
    assert liker_than_real(np.zeros(20, np.float32), found, 0.05).tolist() == first.tolist()


def test_images_that_are_all_alike_condemn_nobody():
    usual = np.full(20, 0.97, np.float32)
    assert liker_than_real(usual, np.array([0.9, 0.97, 1.0], np.float32), 0.05).tolist() == [
        False,
        False,
        True,
    ]


def test_a_hash_of_one_colour_is_like_nothing():
    assert (
        not Likeness(np.full((3, 16, 16, 1), 9, np.uint8))
        .of(np.full((2, 16, 16, 1), 9, np.uint8), np.ones(3, bool))
        .any()
    )
