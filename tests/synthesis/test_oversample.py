import numpy as np
import pytest

from stages.dataset import View
from stages.errors import WinnowError
from stages.synthesis import gan as gan_module
from stages.synthesis import gate as gate_module
from stages.synthesis.gan import GANConfig
from stages.synthesis.gate import GateConfig, Verdict
from stages.synthesis.oversample import CANDIDATES_PER_IMAGE, ClassQuality, decide, oversample
from stages.synthesis.targets import quotas

CONFIG = GANConfig(steps=2, batch_size=8, latent_dim=4, width=8, learning_rate=1e-3)
OPEN = GateConfig(min_agreement=0.0, min_accepted=0.0, copy_quantile=0.0)


def view(counts, size=8):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.integers(0, 256, (len(labels), size, size, 1), dtype=np.uint8)
    names = np.array([f"{i:016x}" for i in range(len(labels))], object)
    return View(
        images, labels, np.ones(len(labels), np.float32), names, [f"class {i}" for i in range(len(counts))]
    )


def make(real, method, *, min_real=10, gate=OPEN, target=None, max_factor=5.0, seed=0):
    target = int(real.class_counts.max()) if target is None else target
    quota = quotas(real.class_counts, target, max_factor)
    return oversample(
        real,
        quota,
        target=target,
        method=method,
        min_real_per_class=min_real,
        gan=CONFIG,
        gate=gate,
        seed=seed,
        device="cpu",
    )


@pytest.fixture
def open_gate(monkeypatch):
    """A gate that finds nothing wrong, so that what is tested is the rest."""

    def judge(self, candidates, label):
        count = len(candidates)
        no = np.zeros(count, bool)
        return Verdict(np.full(count, 0.9), ~no, no, no, np.arange(count) % 3)

    monkeypatch.setattr(gate_module.Gate, "judge", judge)
    monkeypatch.setattr(gate_module, "_classifier", lambda *args: None)


@pytest.fixture
def no_gan(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a GAN was trained")

    monkeypatch.setattr(gan_module, "train_gan", refuse)


def test_random_copies_bring_every_class_up():
    real = view([9, 4, 1])
    made = make(real, "random", max_factor=20.0)
    assert np.bincount(made.labels).tolist() == [0, 5, 8]
    assert made.methods == ["random"] * 13
    assert np.array_equal(made.images, real.images[made.parents])
    assert np.array_equal(real.labels[made.parents], made.labels)
    assert made.quality["class 0"].decision == "not_needed"
    assert made.quality["class 2"].added == 8


def test_smote_falls_back_for_a_class_of_one():
    made = make(view([9, 4, 1]), "smote")
    assert made.quality["class 1"].method == "smote"
    assert made.quality["class 1"].decision == "accepted"
    assert made.quality["class 2"].method == "random"
    assert made.quality["class 2"].decision == "fallback"
    assert "single image" in made.quality["class 2"].reason
    assert made.methods == ["smote"] * 5 + ["random"] * 5


def test_none_makes_nothing():
    made = make(view([9, 4]), "none")
    assert len(made.images) == 0
    assert {entry.decision for entry in made.quality.values()} == {"off"}


def test_a_class_without_images_gets_none():
    made = make(view([9, 0, 4]), "smote")
    assert made.quality["class 1"].added == 0
    assert made.quality["class 1"].decision == "not_needed"
    assert "no real images" in made.quality["class 1"].reason


def test_only_classes_with_enough_images_come_from_the_gan(open_gate):
    real = view([20, 10, 9])
    made = make(real, "gan", min_real=10)
    kinds = {name: (entry.method, entry.decision) for name, entry in made.quality.items()}
    assert kinds == {
        "class 0": ("none", "not_needed"),
        "class 1": ("gan", "accepted"),
        "class 2": ("random", "fallback"),
    }
    assert made.quality["class 1"].candidates == CANDIDATES_PER_IMAGE * 10
    assert made.quality["class 1"].added == 10
    assert "9 real images; the GAN is not tried under 10" in made.quality["class 2"].reason
    assert made.quality["class 2"].candidates == 0
    assert made.quality["class 2"].added == 11
    assert np.array_equal(real.labels[made.parents], made.labels)
    assert made.history


def test_the_same_seed_gives_the_same_images(open_gate):
    real = view([20, 12])
    first, second, other = make(real, "gan"), make(real, "gan"), make(real, "gan", seed=1)
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, other.images)


def test_no_gan_is_trained_where_no_class_is_eligible(no_gan):
    made = make(view([9, 4]), "gan", min_real=10)
    assert made.quality["class 1"].decision == "fallback"
    assert made.history == []


def test_no_gan_is_trained_where_the_eligible_classes_need_nothing(no_gan):
    made = make(view([20, 20, 3]), "gan", min_real=10)
    assert made.quality["class 2"].method == "random"
    assert made.history == []


def test_a_single_eligible_class_may_have_its_gan(open_gate):
    made = make(view([12, 3]), "gan", target=20)
    assert made.quality["class 0"].method == "gan"
    assert made.quality["class 0"].added == 8


def test_what_an_untrained_gan_makes_is_refused_and_said():
    real = view([30, 20])
    real.images[real.labels == 0, :, :4] = 0
    real.images[real.labels == 1, :, 4:] = 0
    made = make(real, "gan", gate=GateConfig(0.9, 0.3, 0.05))
    entry = made.quality["class 1"]
    assert (entry.method, entry.decision, entry.added) == ("random", "fallback", 10)
    assert "0 of 40 candidates passed the gate" in entry.reason
    assert np.array_equal(made.images, real.images[made.parents])
    assert made.history  # it was tried


def test_images_that_no_gan_makes_are_an_error_before_anything_is_trained(no_gan):
    with pytest.raises(WinnowError, match="12×12"):
        make(view([20, 12], size=12), "gan")


def verdict(count, *, passing, copies=0, strays=0):
    index = np.arange(count)
    agrees = index < passing + copies + strays
    copy = (index >= passing) & (index < passing + copies)
    stray = (index >= passing + copies) & (index < passing + copies + strays)
    return Verdict(np.where(agrees, 0.8, 0.1), agrees, copy, stray, np.zeros(count, np.int64))


@pytest.mark.parametrize(
    ("found", "decision", "method", "words"),
    [
        (verdict(40, passing=20), "accepted", "gan", "20 of 40"),
        (verdict(40, passing=12), "accepted", "gan", "12 of 40"),
        (verdict(40, passing=11), "fallback", "random", "does not recognise"),
        (verdict(40, passing=2, copies=38), "fallback", "random", "near-copies"),
        (verdict(40, passing=2, strays=38), "fallback", "random", "unlike any real image"),
    ],
)
def test_the_share_that_passes_decides(found, decision, method, words):
    quality = ClassQuality(real=50, target=60, requested=10)
    assert decide(quality, found, 0.3) == (decision != "fallback")
    assert (quality.decision, quality.method) == (decision, method)
    assert words in quality.reason
    assert quality.candidates == 40
    assert quality.accepted == found.accepted.sum()


def test_the_quota_shrinks_where_too_few_pass():
    quality = ClassQuality(real=50, target=70, requested=20)
    assert decide(quality, verdict(40, passing=15), 0.3)
    assert quality.decision == "reduced"
    assert "fewer than the 20 asked for" in quality.reason


def test_nothing_accepted_is_a_fallback_however_low_the_bar():
    quality = ClassQuality(real=50, target=60, requested=10)
    assert not decide(quality, verdict(40, passing=0), 0.0)
