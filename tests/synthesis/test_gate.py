import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages.dataset import View
from stages.synthesis.gate import Gate, GateConfig, nearest_neighbours

CLASSES, REAL = [0, 1, 2, 3], 60


@pytest.fixture(scope="module")
def digits():
    """16×16 grey images and labels: the real ones of each class, and the held-out ones."""
    raw = load_digits(n_class=len(CLASSES))
    pixels = np.clip(raw.images * 16, 0, 255).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BILINEAR)) for i in pixels]
    )
    labels = raw.target.astype(np.int64)
    # The file goes from writer to writer: only a random choice leaves both parts alike.
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == label][:REAL] for label in CLASSES])
    return images[..., None], labels, np.isin(np.arange(len(labels)), chosen)


@pytest.fixture(scope="module")
def gate(digits):
    images, labels, real = digits
    count = int(real.sum())
    view = View(
        images[real],
        labels[real],
        np.ones(count, np.float32),
        np.array([str(i) for i in range(count)], object),
        [str(label) for label in CLASSES],
    )
    return Gate(view, GateConfig(0.5, 0.3, 0.05), seed=1, device="cpu")


@pytest.mark.parametrize("label", CLASSES)
def test_held_out_real_images_pass(gate, digits, label):
    images, labels, real = digits
    verdict = gate.judge(images[~real & (labels == label)], label)
    assert verdict.accepted.mean() > 0.6
    assert verdict.agrees.mean() > 0.9
    assert verdict.stray.mean() < 0.15


@pytest.mark.parametrize("label", CLASSES)
def test_noise_is_refused(gate, label):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    shuffled = np.stack([rng.permutation(i.ravel()).reshape(16, 16, 1) for i in gate.real.images[:100]])
    for candidates in (noise, shuffled, np.zeros_like(noise), np.full_like(noise, 255)):
        assert gate.judge(candidates, label).accepted.mean() <= 0.01


@pytest.mark.parametrize("label", CLASSES)
def test_training_images_are_refused_as_copies(gate, digits, label):
    images, labels, real = digits
    own = images[real & (labels == label)]
    verdict = gate.judge(own, label)
    assert verdict.copy.all()
    assert not verdict.accepted.any()
    assert verdict.nearest.tolist() == list(range(len(own)))
    touched = own.copy()
    touched[:, 3, 3] ^= 8
    assert gate.judge(touched, label).copy.all()


@pytest.mark.parametrize("label", CLASSES)
def test_other_classes_are_refused_as_not_recognised(gate, digits, label):
    images, labels, real = digits
    verdict = gate.judge(images[~real & (labels == (label + 1) % len(CLASSES))], label)
    assert verdict.agrees.mean() < 0.05
    assert verdict.accepted.mean() < 0.05


def test_nothing_to_judge(gate):
    assert len(gate.judge(np.zeros((0, 16, 16, 1), np.uint8), 0).accepted) == 0


def test_the_gate_is_seeded(gate):
    again = Gate(gate.real, gate.config, seed=1, device="cpu")
    candidates = gate.real.images[:20]
    assert np.array_equal(again.judge(candidates, 0).agreement, gate.judge(candidates, 0).agreement)


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
