"""Results of `benchmarks.long_tail` over seeds: means, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
_CONFIDENCE = 0.95
_MEASURES = ("balanced_accuracy", "worst_recall")


def paired_difference(scores: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean difference of paired scores, and the ends of its 95 % interval by Student's t over the pairs.

    The ends are nan for a single pair.
    """
    from scipy import stats

    differences = scores - others
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return mean, float("nan"), float("nan")
    reach = stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    return mean, mean - float(reach), mean + float(reach)


def table(rows: Sequence[Row], arms: Sequence[str], seeds: Sequence[int], baseline: str = "none") -> str:
    """A Markdown table of the arms in their order.

    An arm is compared with `baseline` and with the best of the others on the seeds that both have; best is
    the highest mean of balanced accuracy among the arms that have all seeds.
    """
    found = {
        arm: {int(row["seed"]): row for row in rows if row["arm"] == arm and row["seed"] in seeds}
        for arm in arms
    }
    found = {arm: by_seed for arm, by_seed in found.items() if by_seed}
    whole = [arm for arm in found if len(found[arm]) == len(set(seeds))]
    best = max(whole, key=lambda arm: _mean(found[arm], _MEASURES[0]), default=None)
    against = list(dict.fromkeys(name for name in (baseline, best) if name in found and name is not None))
    heads = ["arm", "seeds", "balanced accuracy", *(f"− {name}" for name in against)]
    heads += ["worst recall", *(f"− {name}" for name in against)]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for arm, by_seed in found.items():
        cells = [f"**{arm}**" if arm == best else arm, str(len(by_seed))]
        for measure in _MEASURES:
            cells.append(f"{_mean(by_seed, measure):.3f}")
            cells += [_difference(by_seed, found[name], measure) if name != arm else "" for name in against]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(by_seed: Mapping[int, Row], measure: str) -> float:
    return float(np.mean([row[measure] for row in by_seed.values()]))


def _difference(by_seed: Mapping[int, Row], others: Mapping[int, Row], measure: str) -> str:
    common = sorted(by_seed.keys() & others.keys())
    if not common:
        return ""
    scores, beside = (np.array([rows[seed][measure] for seed in common]) for rows in (by_seed, others))
    mean, low, high = paired_difference(scores, beside)
    return f"{mean:+.3f}" if np.isnan(low) else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
