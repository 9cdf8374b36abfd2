import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from stages.dataset.base import View
from stages.dataset.delta import ClassTarget, quotas, target_sizes
from stages.errors import WinnowError
from stages.learning import judge as judge_module
from stages.synthesis import gan_training as gan_module
from stages.synthesis import gate as gate_module
from stages.synthesis.gan_trainer import GANConfig
from stages.synthesis.gate import GateConfig
from stages.synthesis.oversample import (
    CANDIDATES_PER_IMAGE,
    MIN_CANDIDATES,
    Beside,
    OversamplingConfig,
    oversample,
)

GAN = GANConfig(steps=2, batch_size=8, latent_dim=4, width=8, learning_rate=1e-3, snapshots=1)
GATE = GateConfig(
    min_agreement=0.5,
    copy_quantile=0.05,
    min_accepted=0.3,
    min_density=0.5,
    min_coverage=0.5,
    min_diversity=0.5,
    max_kid=0.2,
)


def view(counts, size=8, seed=0):
    """Noise on a grey of each class, so that a judge can tell the classes apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    greys = 40 + 60 * labels[:, None, None, None]
    images = (greys + rng.integers(0, 40, (len(labels), size, size, 1))).astype(np.uint8)
    names = np.array([f"{i:016x}" for i in range(len(labels))], object)
    classes = [f"class {i}" for i in range(len(counts))]
    return View(images, labels, np.ones(len(labels), np.float32), names, classes)


def make(real, method, *, fallback="random", min_real=10, to="majority", max_factor=5.0, seed=0, **keywords):
    target = ClassTarget(to, max_factor)
    return oversample(
        real,
        quotas(real.class_counts, target),
        target_sizes(real.class_counts, target),
        OversamplingConfig(method, fallback, min_real, GAN, GATE),
        seed=seed,
        device="cpu",
        **keywords,
    )


class StandInGate:
    """Refuses what `refuse` says of each class; remembers how it was made."""

    refuse = staticmethod(lambda candidates, label: {})
    failed = ()
    unclear = ()  # classes that the judge does not tell from others
    made: dict = {}  # noqa: RUF012

    def __init__(self, real, config, **keywords):
        type(self).made = keywords

    def can_check(self, label):
        return label not in self.unclear

    def judge(self, candidates, label):
        count = len(candidates)
        refused = {name: np.zeros(count, bool) for name in ("agreement", "stray")}
        refused |= self.refuse(candidates, label)
        kid = SimpleNamespace(value=0.9, real=0.1, limit=0.5, passed=not self.failed)
        return SimpleNamespace(
            refused=refused,
            accepted=~np.any(list(refused.values()), axis=0),
            nearest=np.arange(count) % 3,
            nearness=np.linspace(0.5, 1.5, count),
            measures={"kid": kid},
            failed=self.failed,
        )


@pytest.fixture
def gate(monkeypatch):
    """A gate that finds nothing wrong, and no judge, so that what is tested is the rest."""

    class Open(StandInGate):
        pass

    judge = SimpleNamespace(embed=lambda images, k: images.reshape(len(images), -1).astype(np.float32))
    monkeypatch.setattr(gate_module, "Gate", Open)
    monkeypatch.setattr(judge_module, "train_judge", lambda *args, **kwargs: judge)
    return Open


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was trained")

    monkeypatch.setattr(gan_module, "train_gan", refuse)
    monkeypatch.setattr(judge_module, "train_judge", refuse)


def decisions(made):
    return {name: (entry.method, entry.decision, entry.added) for name, entry in made.quality.items()}


# --- the simple samplers -----------------------------------------------------------------------


def test_random_copies_bring_every_class_up(no_training):
    real = view([9, 4, 1])
    made = make(real, "random", max_factor=20.0)
    assert np.bincount(made.labels).tolist() == [0, 5, 8]
    assert made.methods == ["random"] * 13
    assert np.array_equal(made.images, real.images[made.parents])
    assert np.array_equal(real.labels[made.parents], made.labels)
    assert decisions(made)["class 0"] == ("none", "not_needed", 0)
    assert decisions(made)["class 2"] == ("random", "accepted", 8)
    assert made.gan is None


def test_a_class_of_one_image_gets_copies_and_says_so(no_training):
    made = make(view([9, 6, 1]), "smote")
    assert decisions(made) == {
        "class 0": ("none", "not_needed", 0),
        "class 1": ("smote", "accepted", 3),
        "class 2": ("random", "accepted", 5),
    }
    assert "single image" in made.quality["class 2"].reason
    assert made.methods == ["smote"] * 3 + ["random"] * 5


def test_a_method_that_stands_in_for_one_that_was_chosen_is_no_fallback(no_training):
    made = make(view([40, 12]), "adasyn")  # classes far apart: nothing for ADASYN
    assert decisions(made)["class 1"] == ("smote", "accepted", 28)
    assert "so SMOTE" in made.quality["class 1"].reason


def test_none_makes_nothing(no_training):
    made = make(view([9, 4]), "none")
    assert made.images.shape == (0, 8, 8, 1)
    assert {entry.decision for entry in made.quality.values()} == {"off"}


def test_a_class_without_images_gets_none(no_training):
    made = make(view([9, 0, 4]), "smote")
    assert decisions(made)["class 1"] == ("none", "not_needed", 0)
    assert "no real images" in made.quality["class 1"].reason


def test_cleaning_is_counted_and_shrinks_the_quota(no_training):
    real = view([40, 12])
    real.images[40:] = real.images[:12] + 1  # the same places as class 0
    made = make(real, "smote_enn")
    entry = made.quality["class 1"]
    assert entry.decision == "reduced"
    assert entry.cleaned["made"] == 28 - entry.added > 0
    assert entry.cleaned["real"] > 0
    assert "cleaning removed" in entry.reason
    assert made.quality["class 0"].cleaned["made"] == 0
    assert make(real, "smote").quality["class 1"].cleaned is None


def test_neighbours_are_looked_for_in_the_embedding(no_training):
    real = view([12, 6])
    embeddings = np.random.default_rng(0).normal(size=(18, 4)).astype(np.float32)
    first = make(real, "borderline_smote", beside=Beside(embeddings))
    second = make(real, "borderline_smote")
    assert len(first.images) == len(second.images) == 6
    assert not np.array_equal(first.images, second.images)


# --- the GAN -----------------------------------------------------------------------------------


def test_only_classes_with_enough_images_come_from_the_gan(gate, tmp_path):
    real, other = view([30, 10, 9]), view([9, 9, 9], seed=1)
    beside = Beside(validation=other, held_out={"val": other.images})
    made = make(real, "gan", min_real=10, beside=beside, keep_in=tmp_path)
    assert decisions(made) == {
        "class 0": ("none", "not_needed", 0),
        "class 1": ("gan", "accepted", 20),
        "class 2": ("random", "fallback", 21),
    }
    entry = made.quality["class 1"]
    assert entry.candidates == CANDIDATES_PER_IMAGE * 20
    assert entry.snapshot == 2
    assert set(entry.nearness) == {"min", "median", "real_min"}
    assert entry.nearness["min"] == 0.5
    assert "9 real images; the GAN is not tried under 10" in made.quality["class 2"].reason
    assert made.quality["class 2"].candidates == 0
    assert np.array_equal(real.labels[made.parents], made.labels)
    assert made.gan.trained_on == ["class 0", "class 1"]
    assert made.gan.to_json() == {
        "trained_on": ["class 0", "class 1"],
        "steps": 2,
        "steps_asked": 2,
        "batch_size": 8,
        "notes": [],
    }
    assert [(row["step"], row["class"]) for row in made.gan.scores] == [(2, "class 0"), (2, "class 1")]
    assert all(row["chosen"] for row in made.gan.scores)
    assert made.gan.progress[2].shape[0] == 2
    assert made.gan.history
    assert set(gate.made["held_out"]) == {"val"}
    assert list(tmp_path.iterdir())  # checkpoints


def test_a_few_images_to_add_are_judged_by_more_candidates(gate):
    made = make(view([12, 10]), "gan")
    assert made.quality["class 1"].candidates == MIN_CANDIDATES
    assert made.quality["class 1"].added == 2


def test_the_same_seed_gives_the_same_images(gate):
    real = view([20, 12])
    first, second, other = make(real, "gan"), make(real, "gan"), make(real, "gan", seed=1)
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, other.images)


def test_no_gan_is_trained_where_no_class_is_eligible(no_training):
    made = make(view([9, 4]), "gan", min_real=10)
    assert decisions(made)["class 1"] == ("random", "fallback", 5)
    assert made.gan is None


def test_a_single_real_image_is_one_image_in_words(no_training):
    made = make(view([9, 1]), "gan", min_real=10)
    assert made.quality["class 1"].reason.startswith("1 real image; the GAN is not tried under 10")


def test_no_gan_is_trained_where_the_eligible_classes_need_nothing(no_training):
    made = make(view([20, 20, 3]), "gan", min_real=10)
    assert decisions(made)["class 2"] == ("random", "fallback", 15)
    assert made.gan is None


def test_no_gan_is_trained_where_the_judge_tells_no_class_from_others(gate, monkeypatch):
    monkeypatch.setattr(gate, "unclear", (0, 1))
    monkeypatch.setattr(gan_module, "train_gan", lambda *args, **kwargs: pytest.fail("trained"))
    made = make(view([12, 14, 20]), "gan", min_real=10)
    assert decisions(made)["class 1"] == ("random", "fallback", 6)
    assert "no label can be checked; the GAN is not tried" in made.quality["class 0"].reason
    assert made.gan is None


def test_one_unclear_class_keeps_no_other_from_its_gan(gate, monkeypatch):
    monkeypatch.setattr(gate, "unclear", (0,))
    made = make(view([12, 14, 20]), "gan", min_real=10)
    assert decisions(made)["class 0"] == ("random", "fallback", 8)
    assert decisions(made)["class 1"] == ("gan", "accepted", 6)


def test_a_single_eligible_class_may_have_its_gan(gate):
    made = make(view([12, 3]), "gan", to=20)
    assert decisions(made)["class 0"] == ("gan", "accepted", 8)


@pytest.mark.parametrize("fallback", ["random", "smote", "adasyn", "none"])
def test_a_class_that_is_all_refused_gets_the_fallback(gate, fallback):
    gate.refuse = staticmethod(lambda candidates, label: {"stray": np.ones(len(candidates), bool)})
    real = view([40, 12])
    made = make(real, "gan", fallback=fallback)
    entry = made.quality["class 1"]
    assert entry.decision == "fallback"
    assert "0 of 112 candidates passed" in entry.reason
    assert "112 of 112 are unlike any real image" in entry.reason
    by = "smote" if fallback == "adasyn" else fallback  # classes far apart: nothing for ADASYN
    assert entry.method == by
    assert ("so SMOTE" in entry.reason) == (fallback == "adasyn")
    assert entry.added == len(made.images) == (0 if fallback == "none" else 28)
    assert entry.nearness is None
    assert made.gan is not None  # it was tried
    some = [refused for refused in made.refused if refused.label == 1]
    assert [(refused.check, len(refused.images)) for refused in some] == [("stray", 8)]
    assert (real.labels[some[0].parents] == 1).all()


def test_a_class_that_fails_a_measure_gets_the_fallback_whatever_passed(gate):
    gate.failed = ("kid",)
    made = make(view([40, 12]), "gan")
    entry = made.quality["class 1"]
    assert (entry.method, entry.decision, entry.accepted) == ("random", "fallback", 112)
    assert "kid 0.90, of real images 0.10; at most 0.50" in entry.reason
    assert [(refused.check, len(refused.images)) for refused in made.refused] == [("kid", 8)]


def test_the_quota_shrinks_to_what_passed(gate):
    # A quarter of the candidates would be enough; the gate lets a fifth pass, and so much is asked for.
    gate.refuse = staticmethod(lambda candidates, label: {"stray": np.arange(len(candidates)) % 5 > 0})
    real = view([50, 20])
    target = ClassTarget("majority", 5.0)
    strict = dataclasses.replace(GATE, min_accepted=0.2)
    made = oversample(
        real,
        quotas(real.class_counts, target),
        target_sizes(real.class_counts, target),
        OversamplingConfig("gan", "random", 10, GAN, strict),
        seed=0,
        device="cpu",
    )
    entry = made.quality["class 1"]
    assert (entry.requested, entry.candidates, entry.accepted, entry.added) == (30, 120, 24, 24)
    assert (entry.method, entry.decision) == ("gan", "reduced")
    assert "fewer than the 30 asked for" in entry.reason


def test_images_that_no_gan_makes_are_an_error_before_anything_is_trained(no_training):
    with pytest.raises(WinnowError, match="12×12"):
        make(view([20, 12], size=12), "gan")


def test_what_an_untrained_gan_makes_is_refused_by_the_real_gate(monkeypatch):
    monkeypatch.setattr(judge_module, "_STEPS", (60, 60))
    real = view([40, 30])
    made = make(
        real, "gan", beside=Beside(validation=view([4, 4], seed=1), held_out={"val": real.images[:0]})
    )
    entry = made.quality["class 1"]
    assert (entry.method, entry.decision, entry.added) == ("random", "fallback", 10)
    assert entry.refused["stray"] + entry.refused["agreement"] > 0
    assert np.array_equal(made.images, real.images[made.parents])
    assert made.gan is not None


def test_constant_images_leave_the_real_gate_with_a_decision_and_plain_numbers(monkeypatch):
    monkeypatch.setattr(judge_module, "_STEPS", (20, 20))
    real = view([24, 14])
    real.images[:] = (real.labels * 90 + 50)[:, None, None, None]
    made = make(real, "gan", beside=Beside(held_out={"test": real.images[:3]}))
    assert made.quality["class 1"].decision == "fallback"
    assert made.quality["class 1"].added == 10
    json.dumps(made.quality["class 1"].to_json(), allow_nan=False)
