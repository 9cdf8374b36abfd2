"""Learning-rate schedules by their names: the share of the peak rate in each step."""

from __future__ import annotations

import math
from typing import get_args

from stages.errors import WinnowError
from stages.learning.names import Schedule

_START = 0.1  # share of the peak that warm-up begins with
_DROPS = (0.6, 0.8)  # of the budget, where the schedule `step` goes down to a tenth
_TRIANGLE = (0.2, 0.07)  # share of the peak that `triangle` begins and ends with


def share_of_peak(schedule: str, step: int, total: int, warm_up: float) -> float:
    """What the peak rate is multiplied by in `step` (from 0) of `total`: 0 to 1.

    - `one_cycle` (Smith & Topin, arXiv 1708.07120): up along a line in the share `warm_up` of the budget,
      then down to nothing along half a cosine. The momentum is left as it is.
    - `triangle` (Jordan, arXiv 2404.00498): up along a line in the share `warm_up` of the budget, from a
      fifth of the peak, then down along another, to 7 % of it.
    - `cosine` (Loshchilov & Hutter, arXiv 1608.03983): half a cosine over the whole budget.
    - `step`: a tenth from 60 % of the budget on, a hundredth from 80 %.
    - `constant`.

    The last three are multiplied by the line that rises through `warm_up`, from a tenth to 1.

    Raises
    ------
    WinnowError
        For a name that is not in the catalogue; the message lists those that are.
    """
    match schedule:
        case "one_cycle":
            return _one_cycle(step, total, warm_up)
        case "triangle":
            return _triangle(step, total, warm_up)
        case "cosine":
            fall = _half_cosine(step / max(1, total))
        case "step":
            fall = 0.1 ** sum(step >= drop * total for drop in _DROPS)
        case "constant":
            fall = 1.0
        case _:
            raise WinnowError(f"unknown schedule {schedule!r}; known: {', '.join(get_args(Schedule))}")
    return fall * _rise(step, warm_up * total)


def _one_cycle(step: int, total: int, warm_up: float) -> float:
    # torch's own OneCycleLR divides by zero for some budgets of a few steps.
    peak = max(1.0, warm_up * total)
    if step < peak:
        return _rise(step, peak)
    return _half_cosine((step - peak) / max(1.0, total - peak))


def _triangle(step: int, total: int, warm_up: float) -> float:
    start, end = _TRIANGLE
    peak = int(warm_up * total)
    if step < peak:
        return start + (1 - start) * step / peak
    return 1 - (1 - end) * (step - peak) / max(1, total - peak)


def _rise(step: int, peak: float) -> float:
    return _START + (1 - _START) * step / peak if step < peak else 1.0


def _half_cosine(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
