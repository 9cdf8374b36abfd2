import numpy as np
import pytest

from stages.synthesis.gan.snapshots import (
    PER_CLASS,
    choose_snapshots,
    coarse_pixels,
    kernel_distance,
    score_rows,
    score_snapshots,
    snapshot_steps,
)


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [
        (800, 4, [500, 600, 700, 800]),
        (800, 1, [800]),
        (3, 4, [2, 3]),
        (1, 5, [1]),
        (7, 2, [5, 7]),
    ],
)
def test_snapshots_are_spread_over_the_second_half_and_end_with_the_last_step(steps, count, expected):
    assert snapshot_steps(steps, count) == expected


def test_the_distance_is_nought_on_average_for_one_distribution_and_grows_with_the_difference():
    rng = np.random.default_rng(0)

    def sample(shift=0.0, scale=1.0):
        return (rng.normal(size=(60, 8)) * scale + shift).astype(np.float32)

    same = [kernel_distance(sample(), sample()) for _ in range(40)]
    assert abs(np.mean(same)) < 0.1 * kernel_distance(sample(), sample(1.0))
    assert min(same) < 0 < max(same)
    assert max(same) < kernel_distance(sample(), sample(0.5)) < kernel_distance(sample(), sample(1.0))
    assert kernel_distance(sample(), sample(scale=0.2)) > max(same)


@pytest.mark.parametrize("shape", [(32, 32, 3), (12, 20, 1), (8, 8, 2), (5, 9, 4)])
def test_coarse_pixels_are_the_means_of_areas(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    coarse = coarse_pixels(images)
    tall, wide = min(8, shape[0]), min(8, shape[1])
    assert coarse.shape == (3, tall * wide * shape[2])
    assert coarse.dtype == np.float32
    first = images[0, : -(-shape[0] // 8) if shape[0] < 16 else shape[0] // 8, : shape[1] // 8 or 1]
    if shape[0] % 8 == 0 and shape[1] % 8 == 0:
        np.testing.assert_allclose(coarse[0, : shape[2]], first.mean((0, 1)) / 255, rtol=1e-5)
    flat = np.full((1, *shape), 51, np.uint8)
    np.testing.assert_allclose(coarse_pixels(flat), 0.2, rtol=1e-6)


def pictures(level, count):
    rng = np.random.default_rng(count)
    return np.clip(rng.normal(level, 20, (count, 8, 8, 1)), 0, 255).astype(np.uint8)


def test_each_class_takes_the_snapshot_nearest_to_its_validation_images():
    levels = {(0, 0): 60, (0, 1): 190, (1, 0): 120, (1, 1): 130, (0, 2): 60, (1, 2): 60}

    def made_by(snapshot, labels):
        return np.concatenate([pictures(levels[snapshot, k], PER_CLASS) for k in np.unique(labels)])

    images = np.concatenate([pictures(60, 30), pictures(130, 25), pictures(60, 7)])
    labels = np.repeat([0, 1, 2], [30, 25, 7])
    scores = score_snapshots(made_by, 2, 4, (images, labels))
    assert scores.shape == (2, 4)
    assert np.isnan(scores[:, 2:]).all(), "too few validation images, and none"
    assert scores[0, 0] < scores[1, 0]
    assert scores[1, 1] < scores[0, 1]
    assert choose_snapshots(scores)[:2].tolist() == [0, 1]
    rows = score_rows(scores, [50, 100])
    assert [(row["step"], row["class"]) for row in rows] == [(50, 0), (50, 1), (100, 0), (100, 1)]


def test_classes_without_scores_follow_the_average_or_take_the_last():
    nan = np.nan
    assert choose_snapshots(np.array([[1.0, 5.0, nan], [2.0, 1.0, nan], [4.0, 4.0, nan]])).tolist() == [
        0,
        1,
        1,
    ]
    assert choose_snapshots(np.full((3, 2), nan)).tolist() == [2, 2]


def test_one_colour_on_validation_is_no_division_by_nought():
    images = np.full((10, 8, 8, 1), 7, np.uint8)
    scores = score_snapshots(
        lambda snapshot, labels: np.full((len(labels), 8, 8, 1), 7 + snapshot, np.uint8),
        2,
        1,
        (images, np.zeros(10, np.int64)),
    )
    assert scores[0, 0] == pytest.approx(0)
    assert scores[1, 0] > 0
