"""What a comparison will take, said before the work."""

import math
from collections.abc import Sized

from ._compared import Checked
from ._report import duration


def estimate(checked: Checked, samples: int, methods: Sized, metrics: Sized) -> str:
    """How many scores, and about how many forward passes and how much time, from one trial of each method and metric.

    Empty if not all were tried, as in a run that goes on.
    """
    costs = [cost for cost in checked.forwards.values() if math.isfinite(cost)]
    if len(costs) < len(methods) - len(checked.unfit) or not costs or not math.isfinite(checked.passes):
        return ""
    scoring = checked.passes + (len(costs) - 1) * checked.further if len(costs) > 1 else checked.passes
    passes = samples * (checked.maps * sum(costs) + scoring)
    seconds = passes * checked.seconds
    scores = samples * len(costs) * len(metrics)
    return (
        f"{scores:,} scores ({samples} samples, {len(costs)} methods, {len(metrics)} metrics), about {passes:,.0f} "
        f"forward passes: roughly {duration(seconds)}, judged by one sample."
    )
