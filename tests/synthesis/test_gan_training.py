from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from stages.errors import WinnowError
from stages.synthesis import gan_training as module
from stages.synthesis.gan_networks import supports
from stages.synthesis.gan_trainer import GANConfig, GANConfigError, GANTrainer
from stages.synthesis.gan_training import (
    PER_CLASS,
    TrainedGAN,
    choose_snapshots,
    coarse_pixels,
    score_rows,
    score_snapshots,
    snapshot_steps,
    train_gan,
)

_CHILD = """
import sys
import numpy as np
import torch
from pathlib import Path
from stages.synthesis import gan_training as gan
gan._KEEP_SHARE = 1e9
torch.set_num_threads(int(sys.argv[2]))
images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
config = gan.GANConfig(100000, 8, 8, 8, 1e-3)
choices = {"seed": 0, "device": "cpu", "description": "", "keep_in": Path(sys.argv[1])}
gan.train_gan(images, np.arange(24) % 2, config, **choices)
"""


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    MemoryError(),
]


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


def config(**changes):
    return GANConfig(
        **{"steps": 3, "batch_size": 8, "latent_dim": 8, "width": 8, "learning_rate": 1e-3} | changes
    )


def data(size=8, channels=1, count=24, classes=2):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    images = rng.integers(0, 60, (count, size, size, channels)).astype(np.uint8)
    images[labels == 1, : size // 2] += np.uint8(190)
    return images, labels.astype(np.int64)


def train(images, labels, seed=0, *, keep_in=None, on_row=None, on_samples=None, **changes):
    chosen = {"keep_in": keep_in, "on_row": on_row, "on_samples": on_samples}
    return train_gan(images, labels, config(**changes), seed=seed, device="cpu", description="", **chosen)


def same(one: TrainedGAN, other: TrainedGAN) -> bool:
    weights = [[w.tobytes() for state in gan.states for w in state] for gan in (one, other)]
    return weights[0] == weights[1] and (one.steps, one.history) == (other.steps, other.history)


class StopError(Exception):
    """What ends a training in the middle."""


@pytest.mark.parametrize("shape", [(12, 16, 1), (72, 72, 3), (16, 16, 5), (4, 4, 1), (0, 8, 1)])
def test_other_shapes_are_refused_in_one_line(shape):
    assert not supports(shape)
    with pytest.raises(WinnowError, match="8 to 64 pixels"):
        train(np.zeros((4, *shape), np.uint8), np.zeros(4, np.int64))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_seed_gives_the_same_bytes(channels):
    images, labels = data(channels=channels)
    wanted = np.array([0, 1, 1, 0, 1])
    first, second, other = train(images, labels), train(images, labels), train(images, labels, seed=1)
    made = first.generate(wanted, seed=5)
    assert made.shape == (5, 8, 8, channels)
    assert made.dtype == np.uint8
    assert np.array_equal(made, second.generate(wanted, seed=5))
    assert not np.array_equal(made, first.generate(wanted, seed=6))
    assert not np.array_equal(made, other.generate(wanted, seed=5))
    assert first.history == second.history
    assert first.generate(np.zeros(0, np.int64), seed=0).shape == (0, 8, 8, channels)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(*data())
    assert torch.equal(torch.rand(3), expected)


def test_it_learns_what_tells_the_classes_apart():
    images, labels = data(count=64)
    trained = train(images, labels, steps=150, batch_size=16, learning_rate=2e-3)
    for label in (0, 1):
        top = trained.generate(np.full(32, label), seed=0)[:, :4].mean()
        assert (top > 128) == (label == 1)
    assert {25, 50, 75, 100, 125, 150} <= {row["step"] for row in trained.history}


@pytest.mark.parametrize("batch_size", [2, 9, 100])
def test_odd_batch_sizes_and_a_single_class(batch_size):
    images, labels = data(count=6, classes=1)
    assert train(images, labels, batch_size=batch_size).generate(np.zeros(2, np.int64), seed=0).shape[0] == 2


def test_losses_that_are_no_numbers_end_in_one_line():
    with pytest.raises(GANConfigError, match=r"^learning_rate = 1e\+12: .* not numbers .*; lower it"):
        train(*data(), steps=60, learning_rate=1e12)


@pytest.mark.parametrize("value", [0, 255])
def test_constant_images_and_one_image_in_a_class(value):
    images, labels = np.full((9, 16, 16, 1), value, np.uint8), np.array([0] * 8 + [1])
    trained = train(images, labels, steps=30)
    assert all(np.isfinite(list(row.values())).all() for row in trained.history)
    assert trained.generate(np.array([0, 1, 1]), seed=0).shape == (3, 16, 16, 1)
    assert trained.notes == []


def test_wider_networks_learn_at_a_lower_rate():
    counts = np.array([4, 4])
    rates = {
        width: GANTrainer((8, 8, 1), counts, config(width=width), 0, torch.device("cpu")).rates
        for width in (8, 16, 32)
    }
    assert rates[8] == rates[16] == (1e-3, 2e-3)
    assert rates[32] == (0.5e-3, 1e-3)


# --- snapshots


def test_without_validation_the_last_snapshot_generates():
    trained = train(*data(), steps=40, snapshots=3)
    assert trained.steps == [27, 33, 40]
    assert trained.chosen.tolist() == [40, 40]
    assert trained.scores == []
    wanted = np.array([0, 1, 0])
    made = trained.generate(wanted, seed=3)
    assert np.array_equal(made, trained.generate_by(2, wanted, seed=3))
    assert not np.array_equal(made, trained.generate_by(0, wanted, seed=3))


def test_each_class_is_generated_by_the_snapshot_that_validation_chose():
    images, labels = data(count=64)
    first = train(images, labels, steps=40)
    best = {0: 0, 1: 2}  # what validation is made of: images of that snapshot
    kept = np.repeat([0, 1], 40)
    made = np.concatenate([first.generate_by(best[k], kept[kept == k], seed=9) for k in (0, 1)])
    trained = train_gan(
        images, labels, config(steps=40), seed=0, device="cpu", description="", validation=(made, kept),
        embed=lambda pictures: pictures.reshape(len(pictures), -1).astype(np.float32),
    )  # fmt: skip
    assert trained.chosen.tolist() == [trained.steps[0], trained.steps[2]]
    assert len(trained.scores) == 8
    assert set(trained.scores[0]) == {"step", "class", "score"}
    wanted = np.array([0, 1, 1])
    whole = [trained.generate_by(number, wanted, seed=1) for number in (0, 2)]
    mixed = np.stack([whole[0][0], whole[1][1], whole[1][2]])
    assert np.array_equal(trained.generate(wanted, seed=1), mixed)


def test_samples_come_at_every_tenth_and_every_snapshot_from_the_same_latents():
    seen = {}
    trained = train(*data(), steps=40, snapshots=3, on_samples=seen.__setitem__)
    assert list(seen) == [4, 8, 12, 16, 20, 24, 27, 28, 32, 33, 36, 40]
    assert {(made.shape, made.dtype) for made in seen.values()} == {((2, 8, 8, 8, 1), np.dtype(np.uint8))}
    assert not np.array_equal(seen[4], seen[40])
    repeated = train(*data(), steps=40, snapshots=3)
    assert same(trained, repeated), "looking at samples changes nothing"


# --- resumed after a kill


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_KEEP_SHARE", 1e9)  # a checkpoint whenever there could be one
    images, labels = data(channels=3)
    whole, seen = train(images, labels, steps=60), {}

    def stop(row):
        if row["step"] == 50:
            raise StopError

    before = {}
    with pytest.raises(StopError):
        train(images, labels, steps=60, keep_in=tmp_path, on_row=stop, on_samples=before.__setitem__)
    taken, rows = [], []
    step = GANTrainer.step
    monkeypatch.setattr(GANTrainer, "step", lambda self, *data: (taken.append(1), step(self, *data)))
    choices = {"keep_in": tmp_path, "on_row": rows.append, "on_samples": seen.__setitem__}
    again = train(images, labels, steps=60, **choices)
    assert 10 < len(taken) < 20
    assert same(whole, again)
    assert again.notes == []
    assert rows == whole.history
    assert list(seen) == [6, 12, 18, 24, 30, 36, 38, 42, 45, 48, 52, 54, 60]
    assert all(np.array_equal(seen[step], before[step]) for step in before)
    assert "goes on after step 48 of a run that did not end" in capsys.readouterr().err
    taken.clear()
    assert same(whole, train(images, labels, steps=60, **choices))
    assert taken == [], "what was finished is not trained again"


def test_other_inputs_and_damaged_checkpoints_start_afresh(tmp_path, monkeypatch):
    images, labels = data()
    first = train(images, labels, steps=30, keep_in=tmp_path)
    taken = []
    step = GANTrainer.step
    monkeypatch.setattr(GANTrainer, "step", lambda self, *data: (taken.append(1), step(self, *data)))
    train(images, labels, steps=30, keep_in=tmp_path, seed=1)
    assert len(taken) == 30
    (folder,) = tmp_path.iterdir()
    part = folder / "0000.part"
    part.write_bytes(part.read_bytes()[:-20])
    other = train(images, labels, steps=30, keep_in=tmp_path, seed=1)
    assert len(taken) == 60
    assert not same(first, other)


def test_after_sigkill_what_was_kept_is_whole(tmp_path, monkeypatch):
    threads = str(torch.get_num_threads())  # part of what the checkpoint's key says
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path), threads], env=environment)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("*/*.part")) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    started = []

    def stop(self, *_):
        started.append(self.steps)
        raise StopError

    monkeypatch.setattr(GANTrainer, "step", stop)
    with pytest.raises(StopError):
        train(images, np.arange(24) % 2, steps=100000, batch_size=8, latent_dim=8, keep_in=tmp_path)
    assert started[0] >= 25


# --- what goes wrong


def fail(monkeypatch, at, error):
    """Let the step of that number raise, or leave NaN where the error is None; each once."""
    step, left = GANTrainer.step, [at]

    def failing(self, *data):
        if left and self.steps + 1 == left[0]:
            left.pop()
            if error is not None:
                raise error
            with torch.no_grad():
                next(self.generator.parameters()).fill_(float("nan"))
        step(self, *data)

    monkeypatch.setattr(GANTrainer, "step", failing)


@pytest.mark.parametrize(("at", "steps"), [(47, [40]), (85, [62, 75, 80])])
def test_not_a_number_stops_and_goes_back_to_the_last_good_state(monkeypatch, capsys, at, steps):
    fail(monkeypatch, at, None)
    trained = train(*data(), steps=100)
    assert trained.steps == steps
    assert trained.chosen.tolist() == [steps[-1]] * 2
    assert trained.history[-1]["step"] == steps[-1]  # all that was found to be numbers
    assert all(np.isfinite(list(row.values())).all() for row in trained.history)
    (note,) = trained.notes
    assert "not numbers" in note
    assert f"went back to step {steps[-1]}" in note
    assert note in capsys.readouterr().err
    assert trained.generate(np.array([0, 1]), seed=0).std() > 0


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "mps", "python"])
def test_too_little_memory_halves_the_batch_and_says_so(monkeypatch, capsys, error):
    fail(monkeypatch, 3, error)
    trained = train(*data(), steps=6, batch_size=40)
    assert trained.batch_size == 16
    (note,) = trained.notes
    assert "too small for 40 images a step: from step 3 on it takes 16" in note
    assert note in capsys.readouterr().err
    assert trained.history[-1]["step"] == 6


def test_too_little_memory_for_the_smallest_batch_is_an_error(monkeypatch):
    fail(monkeypatch, 3, MemoryError())
    with pytest.raises(GANConfigError, match=r"^width = 8: .* even with 8 images a step; lower it"):
        train(*data(), batch_size=8)


def test_other_errors_of_a_step_are_not_taken_for_it(monkeypatch):
    fail(monkeypatch, 2, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(*data())
