import numpy as np

from stages.images.distances import nearest_neighbours


def test_nearest_neighbours_against_all_pairs():
    rng = np.random.default_rng(0)
    points, others = rng.integers(0, 256, (700, 5)), rng.integers(0, 256, (40, 5))
    full = np.linalg.norm(points[:, None].astype(float) - others, axis=2)
    distance, index = nearest_neighbours(points, others)
    assert np.allclose(distance, full.min(1))
    assert np.array_equal(index, full.argmin(1))
    among = np.linalg.norm(others[:, None].astype(float) - others, axis=2)
    np.fill_diagonal(among, np.inf)
    assert np.allclose(nearest_neighbours(others)[0], among.min(1))
    assert (nearest_neighbours(others, others)[0] == 0).all()
    assert np.allclose(nearest_neighbours(others, others, pairwise=True)[0], among.min(1))
    groups = np.arange(40) // 4
    among[groups[:, None] == groups] = np.inf
    for other in (None, others):
        distance, index = nearest_neighbours(others, other, pairwise=other is not None, groups=groups)
        assert np.allclose(distance, among.min(1))
        assert (groups[index] != groups).all()
