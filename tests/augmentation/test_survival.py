import numpy as np
import pytest

from stages.augmentation.survival import ALL, Survival, check_survival, unchecked, upper_bound
from stages.dataset.base import View
from stages.errors import WinnowError

FLIP, DIM = ("HorizontalFlip", {"p": 0.1}), ("RandomBrightnessContrast", {"p": 0.5})
NUDGE = ("Affine", {"translate_px": [-1, 1], "p": 1.0})


def arrows(counts=(30, 30, 30)):
    """Wedges that point to the left (0) or right (1), and bars (2) that look the same from both sides."""
    rng = np.random.default_rng(0)
    across = np.linspace(0, 1, 16)
    shapes = [np.tile(across, (16, 1)), np.tile(across[::-1], (16, 1)), np.zeros((16, 16))]
    shapes[2][5:11] = 1
    labels = np.repeat(np.arange(3), counts)
    images = np.stack([shapes[label] * 160 + rng.uniform(0, 60, (16, 16)) for label in labels])
    return View(
        images.astype(np.uint8)[..., None],
        labels.astype(np.int64),
        np.ones(len(labels), np.float32),
        np.array([f"{index:04d}" for index in range(len(labels))], object),
        ["left", "right", "bar"],
    )


class NearestMean:
    """Knows each class by its mean image; each fold by the others' images."""

    def __init__(self, real):
        self.real, self.fold = real, np.arange(len(real)) % 2

    def held_out(self):
        return self.of_copies(self.real.images, np.arange(len(self.real)))

    def of_copies(self, images, parents):
        probs = np.zeros((len(images), 3), np.float32)
        for fold in (0, 1):
            rows, seen = self.fold[parents] == fold, self.fold != fold
            for label in np.unique(self.real.labels):
                known = self.real.images[seen & (self.real.labels == label)]
                far = images[rows].astype(float) - known.mean(0)
                probs[rows, label] = np.exp(-np.square(far).mean((1, 2, 3)) / 1000)
        return probs


def check(policy, real=None, **changes):
    real = arrows() if real is None else real
    choices = {
        "copied": np.ones(3, bool),
        "min_recognised": 0.8,
        "destroying": "leave_out",
        "seed": 0,
    }
    return check_survival(real, policy, NearestMean(real), **(choices | changes))


def test_a_transform_that_destroys_its_class_is_named_and_left_out():
    verdict = check([NUDGE, FLIP, DIM])
    assert verdict.policy == [NUDGE, DIM]
    table = verdict.table.set_index("transform")
    assert table["decision"].to_dict() == {
        "Affine": "kept",
        "HorizontalFlip": "left_out",
        "RandomBrightnessContrast": "kept",
        "policy": "kept",
    }
    assert table.loc["HorizontalFlip", "survival"] == pytest.approx(1 / 3, abs=1e-4)
    assert table.loc["HorizontalFlip", "worst_survival"] == 0
    assert table.loc["HorizontalFlip", "worst_class"] in ("left", "right")
    assert table.loc["HorizontalFlip", "recognised"] == 30
    assert (table["recognised_before"] == 90).all()
    assert (table["tried"] == 90).all()
    assert verdict.share == table.loc["policy", "survival"] > 0.9
    (said,) = verdict.warnings
    assert "augment.policy.1: after HorizontalFlip" in said
    assert "recognises 33% of all classes that get copies together and 0% of class 'left'" in said
    assert said.endswith("; left out: HorizontalFlip")
    assert verdict.notes == []


def test_harmless_ones_are_kept():
    verdict = check([NUDGE, DIM])
    assert verdict.policy == [NUDGE, DIM]
    assert set(verdict.table["decision"]) == {"kept"}
    assert verdict.warnings == []


def test_it_can_warn_or_stop_instead():
    verdict = check([FLIP], destroying="warn")
    assert verdict.policy == [FLIP]
    assert verdict.table["decision"].tolist()[0] == "warned"
    assert "HorizontalFlip" in verdict.warnings[0]
    assert verdict.warnings[0].endswith("; kept all the same")
    with pytest.raises(WinnowError, match=r"augment\.policy\.1: after HorizontalFlip"):
        check([NUDGE, FLIP], destroying="stop")
    with pytest.raises(WinnowError, match=r"augment\.preset\.photos\.0: after HorizontalFlip"):
        check([FLIP], destroying="stop", key="augment.preset.photos")
    assert check([NUDGE], destroying="stop").policy == [NUDGE]


def test_the_class_that_fails_is_the_one_that_is_named():
    # of all together nine in ten survive, of the wedges none
    (said,) = check([FLIP], arrows((15, 15, 300))).warnings
    assert "recognises 0% of class 'left', and augment.min_recognised" in said
    assert "together" not in said


def test_classes_without_copies_are_not_asked():
    real, only = arrows((30, 30, 60)), np.array([False, False, True])
    verdict = check([FLIP], real, copied=only)
    assert (verdict.policy, verdict.warnings, verdict.notes) == ([FLIP], [], [])
    row = verdict.table.iloc[0]
    assert (row["tried"], row["survival"], row["worst_class"]) == (60, 1.0, "bar")
    # two classes that are copied fail together, though most images of all classes survive
    few = check([FLIP], arrows((9, 9, 300)), copied=~only)
    assert few.policy == []
    assert "0% of all classes that get copies together" in few.warnings[0]
    assert check([FLIP], arrows((9, 9, 300))).policy == [FLIP]


def test_only_classes_that_get_copies_condemn_by_themselves():
    real = arrows((20, 20, 300))  # the flip costs 40 of 300 drawn: not too much in all
    everywhere = check([FLIP], real)
    assert everywhere.policy == []
    few = arrows((12, 12, 300))
    assert check([FLIP], few, copied=np.array([True, False, False])).policy == []
    assert check([FLIP], few, copied=np.array([False, False, True])).policy == [FLIP]


def test_one_inside_a_combination_is_found():
    inner = [{"name": name, "args": {}} for name in ("HorizontalFlip", "RandomGamma")]
    verdict = check([("OneOf", {"transforms": inner, "p": 1.0})])
    assert verdict.policy == [("OneOf", {"transforms": inner[1:], "p": 1.0})]
    assert verdict.table["key"].tolist()[0] == "augment.policy.0.args.transforms.0"


def test_what_only_destroys_together_loses_its_worst_part():
    # 4 of 16 pixels the wedges bear, 8 they do not
    moves = [("Affine", {"translate_px": {"x": 4, "y": 0}, "fill": 110, "p": 1.0})] * 2
    alone = check(moves[:1])
    assert alone.policy == moves[:1]
    both = check(moves)
    assert len(both.policy) == 1
    assert sorted(both.table["decision"]) == ["kept", "kept", "left_out"]
    assert "after all of it" in both.warnings[0]
    assert both.warnings[0].endswith("; left out: Affine")
    with pytest.raises(
        WinnowError, match=r"augment\.policy: after all of it.*worst by themselves: Affine \(\d+%\)"
    ):
        check(moves, destroying="stop")


def test_too_few_images_condemn_nothing_and_it_says_so():
    verdict = check([FLIP], arrows((2, 2, 2)))
    assert verdict.policy == [FLIP]
    assert verdict.table["decision"].tolist() == ["kept", "kept"]
    (said,) = verdict.warnings
    assert "could not be checked: of 6 images" in said
    assert "too few to say" in said
    with pytest.raises(WinnowError, match=r"too few to say; set augment\.min_recognised to 0"):
        check([FLIP], arrows((2, 2, 2)), destroying="stop")
    verdict = check([DIM], arrows((4, 30, 30)))
    assert "left" in verdict.notes[0]
    assert "right" not in verdict.notes[0]


def test_nothing_recognised_is_no_verdict():
    real = arrows((5, 5, 5))
    judge = NearestMean(real)
    judge.held_out = lambda: np.eye(3, dtype=np.float32)[(real.labels + 1) % 3]
    verdict = check_survival(
        real, [FLIP], judge, copied=np.ones(3, bool), min_recognised=0.8, destroying="warn", seed=0
    )
    assert verdict.policy == [FLIP]
    assert verdict.share is None
    assert "too few to say" in verdict.warnings[0]


def test_neither_order_nor_repetition_changes_the_verdict():
    real, policy = arrows((40, 20, 10)), [NUDGE, FLIP, DIM]
    order = np.random.default_rng(1).permutation(len(real))
    shuffled = View(
        real.images[order], real.labels[order], real.weights[order], real.sample_ids[order], real.classes
    )
    first, again = check(policy, real), check(policy, real)
    assert first.table.equals(again.table)
    assert check(policy, shuffled).table["decision"].equals(first.table["decision"])


def test_chance_does_not_condemn():
    rng = np.random.default_rng(0)
    condemned = 0
    for _ in range(300):
        before = np.full(10, 15)
        condemned += bool(Survival(before, rng.binomial(before, 0.82)).destroyed(0.8))
    assert condemned <= 300 * 0.05
    assert ALL in Survival(np.full(10, 15), np.full(10, 6)).destroyed(0.8)
    assert Survival(np.array([200, 20, 0]), np.array([200, 2, 0])).destroyed(0.8) == [1]


def test_the_bound_is_the_exact_one():
    assert upper_bound(0, 10, 0.05) == pytest.approx(1 - 0.05 ** (1 / 10))
    assert upper_bound(10, 10, 0.05) == 1
    assert upper_bound(0, 0, 0.05) == 1
    assert upper_bound(70, 100, 0.05) == pytest.approx(0.775, abs=0.003)


def test_the_table_of_an_unchecked_policy_has_columns_and_no_rows():
    assert unchecked([DIM], destroying="stop").warnings == []  # nothing was to be checked
    with pytest.raises(WinnowError, match=r"could not be checked: why; set augment\.min_recognised to 0"):
        unchecked([DIM], "why", "stop")
    verdict = unchecked([DIM], "why")
    assert verdict.warnings == ["whether labels survive could not be checked: why; every transform is kept"]
    assert (verdict.policy, verdict.notes, verdict.share) == ([DIM], [], None)
    assert list(verdict.table.columns) == list(check([DIM]).table.columns)
    assert len(verdict.table) == 0
