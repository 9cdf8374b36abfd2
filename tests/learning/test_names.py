"""The names that the schema knows are those that something is built for."""

from typing import get_args

import pytest

from stages.learning import losses, optimisers
from stages.learning.names import LOSSES, Loss, Optimiser, Schedule
from stages.learning.recipe import LossOptions


@pytest.mark.parametrize(
    ("names", "built"),
    [
        (Loss, losses._BUILDERS),
        (Optimiser, optimisers._OPTIMISERS),
        (Schedule, optimisers._SCHEDULES),
    ],
)
def test_every_name_is_built_and_the_other_way_round(names: object, built: dict[str, object]):
    assert list(get_args(names)) == list(built)


def test_constants_of_losses_are_options():
    constants = [constant for traits in LOSSES.values() for constant in traits.constants]
    assert {*constants, "effective_beta"} == set(LossOptions.__dataclass_fields__)
    assert len(constants) == len(set(constants))
