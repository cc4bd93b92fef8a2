"""Means over seeds with their intervals, as tables show them."""

import math
from collections.abc import Sequence

from scipy.stats import t


def with_interval(values: Sequence[float], decimals: int = 3) -> str:
    """The mean and half of its 95 % interval, by Student's t over the seeds, as "0.912 ± 0.031"."""
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return f"{mean:.{decimals}f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"
