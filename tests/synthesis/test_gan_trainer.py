import numpy as np
import pytest
from test_graph import ROOT, imported

from stages.learning import resume
from stages.synthesis.gan_trainer import CODE, GANConfig, GANProgress, gan_key

# Messages, tables, and what only calls the training: no weight follows from their code.
NO_WEIGHTS = {
    "stages/__init__.py",
    "stages/dataset/__init__.py",
    "stages/dataset/base.py",
    "stages/errors.py",
    "stages/dataset/files.py",
    "stages/dataset/ids.py",
    "stages/learning/__init__.py",
    "stages/synthesis/__init__.py",
    "stages/synthesis/sampler.py",
}


def test_all_code_that_trains_makes_checkpoints_stale():
    seen, queue = set(), {"stages/synthesis/gan_training.py"}
    while queue:
        path = queue.pop()
        seen.add(path)
        queue |= set() if path in NO_WEIGHTS else imported(path) - seen
    watched = {path.relative_to(ROOT).as_posix() for path in resume.code_files(CODE)}
    assert seen - NO_WEIGHTS <= watched
    for name in CODE:
        assert any(path == f"stages/{name}" or path.startswith(f"stages/{name}/") for path in seen), name


def test_a_record_comes_back_as_it_was():
    weights = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.float32)]
    record = GANProgress(
        [{"step": 25.0, "penalty": 0.1}],
        ["said – once"],
        {50: weights, 100: [w + 1 for w in weights]},
        (100, weights),
        {10: np.ones((2, 8, 4, 4, 1), np.uint8)},
    )
    back = GANProgress.load(record.state())
    assert (back.history, back.notes) == (record.history, record.notes)
    assert list(back.snapshots) == [50, 100]
    for one, other in [*zip(back.snapshots[100], record.snapshots[100], strict=True)]:
        assert np.array_equal(one, other)
    assert back.good is not None
    assert back.good[0] == 100
    assert np.array_equal(back.good[1][0], weights[0])
    assert np.array_equal(back.samples[10], record.samples[10])
    assert GANProgress.load(GANProgress().state()).good is None


@pytest.mark.parametrize("change", ["pixel", "label", "choice", "seed", "bf16", "nothing"])
def test_whatever_the_training_follows_from_changes_the_digest(change, monkeypatch):
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1])
    config = GANConfig(10, 8, 8, 8, 1e-3)
    before = gan_key(images, labels, config, seed=0, device="cpu")
    seed = 0
    if change == "pixel":
        images[0, 0, 0] = 1
    elif change == "label":
        labels = labels[::-1].copy()
    elif change == "choice":
        config = GANConfig(10, 8, 8, 8, 2e-3)
    elif change == "seed":
        seed = 1
    elif change == "bf16":
        now = resume.computes_in_bf16
        monkeypatch.setattr(resume, "computes_in_bf16", lambda device: not now(device))
    after = gan_key(images, labels, config, seed=seed, device="cpu")
    assert (after == before) == (change == "nothing")
