import numpy as np
import pytest

from stages.errors import WinnowError
from stages.noise import nearest
from stages.noise.nearest import nearest_neighbours, neighbours_of


def _clustered(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 16))
    return (centres[rng.integers(0, 20, count)] + 0.3 * rng.normal(size=(count, 16))).astype(np.float32)


def test_neighbours_are_the_nearest_by_cosine_with_itself_left_out():
    vectors = _clustered(200)
    graph = nearest_neighbours(vectors, 5)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    distance = 1.0 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    assert neighbours_of(graph, 5).tolist() == np.argsort(distance, axis=1)[:, :5].tolist()
    np.testing.assert_allclose(graph.data.reshape(200, 5), np.sort(distance, axis=1)[:, :5], atol=1e-12)


def test_length_does_not_count_and_twins_are_at_no_distance():
    vectors = _clustered(50)
    vectors[1] = 3.0 * vectors[0]
    graph = nearest_neighbours(vectors, 3)
    assert neighbours_of(graph, 1)[:2, 0].tolist() == [1, 0]
    assert graph.data[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (4, 3)])
def test_there_are_no_more_neighbours_than_others(count: int, most: int):
    graph = nearest_neighbours(_clustered(count), 10)
    assert neighbours_of(graph, 5).shape == (count, most)


def test_the_search_by_cells_finds_nearly_all_and_never_the_sample_itself(monkeypatch):
    vectors = np.concatenate([_clustered(3000), np.tile(_clustered(1), (30, 1))])
    exact = neighbours_of(nearest_neighbours(vectors, 10), 10)
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 1000)
    monkeypatch.setattr(nearest, "_CELL", 100)
    graph = nearest_neighbours(vectors, 10, seed=3)
    found = neighbours_of(graph, 10)
    assert (found != np.arange(len(vectors))[:, None]).all()
    assert all(len(set(row)) == 10 for row in found.tolist())
    shared = [len(set(a) & set(b)) for a, b in zip(found[:3000].tolist(), exact[:3000].tolist(), strict=True)]
    assert np.mean(shared) > 9
    assert (np.diff(graph.data.reshape(-1, 10)) >= 0).all()
    assert (found == neighbours_of(nearest_neighbours(vectors, 10, seed=3), 10)).all()


def test_cells_smaller_than_the_neighbours_asked_for_take_in_others(monkeypatch):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 10)
    monkeypatch.setattr(nearest, "_CELL", 1)
    monkeypatch.setattr(nearest, "_PROBES", 1)
    found = neighbours_of(nearest_neighbours(_clustered(60), 20), 20)
    assert all(len(set(row)) == 20 for row in found.tolist())


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(wrong: float):
    vectors = _clustered(10)
    vectors[3, 2] = wrong
    with pytest.raises(WinnowError, match="NaN or infinity"):
        nearest_neighbours(vectors, 3)


def test_vectors_must_be_a_matrix():
    with pytest.raises(WinnowError, match="N×D"):
        nearest_neighbours(np.zeros(5, np.float32), 3)
