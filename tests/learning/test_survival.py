"""A training that is killed and started again ends as one that nobody killed, to the bit."""

import random
import re
import signal
from pathlib import Path

import pytest
from killed_training import EPOCHS, STEPS, trained

# Between them they have all that a step leaves behind: memory of samples, averages, flips, two networks.
CHOICES = {
    "early_learning": {"loss": "early_learning", "average_weights": 0.9, "mixup": 0.3, "precision": "bf16",
                       "sampling": "balanced", "alternate_flips": True, "lookahead": 2},
    "co_teaching": {"loss": "co_teaching", "coral": 0.1, "cutmix": 1.0, "optimiser": "muon",
                    "class_weighting": "balanced", "deferred": 0.5, "precision": "fp32",
                    "norm_bias_factor": 4.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict]:
    """What a process that nobody killed gives for each of the choices."""
    return {which: trained(None, choices).result for which, choices in CHOICES.items()}


@pytest.mark.parametrize("which", CHOICES)
def test_after_sigkill_at_three_random_points_the_weights_are_the_same(
    tmp_path: Path, undisturbed: dict[str, dict], which: str
):
    points = sorted(random.Random(which).sample(range(2, EPOCHS * STEPS - 2), 3))
    for point in points:
        killed = trained(tmp_path, CHOICES[which], at_step=point, by=signal.SIGKILL)
        assert (killed.status, killed.result) == (-signal.SIGKILL, None), point
    last = trained(tmp_path, CHOICES[which])
    assert last.status == 0
    for key in ("weights", "history", "best"):
        assert last.result[key] == undisturbed[which][key], (key, points)
    done = step_in(last.result["notes"])
    assert done % STEPS == 0
    assert abs(done - points[-1]) <= STEPS  # it was on its way for a moment


def test_sigterm_keeps_the_steps_of_the_epoch_under_way(tmp_path: Path, undisturbed: dict[str, dict]):
    choices = CHOICES["early_learning"]
    ended = trained(tmp_path, choices, at_step=STEPS + 2, by=signal.SIGTERM)
    assert (ended.status, ended.result) == (-signal.SIGTERM, None)  # what a shell calls 143
    assert len(list(tmp_path.glob("*/*"))) == 1
    last = trained(tmp_path, choices)
    for key in ("weights", "history", "best"):
        assert last.result[key] == undisturbed["early_learning"][key], key
    assert step_in(last.result["notes"]) == STEPS + 2


def step_in(notes: list[str]) -> int:
    """After which step it went on."""
    (said,) = re.findall(r"went on after step (\d+) of a run that did not end", " ".join(notes))
    return int(said)
