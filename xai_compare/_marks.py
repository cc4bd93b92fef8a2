"""Which metrics give a number at all, found by scoring a toy."""

import warnings
from typing import Any

import torch
from torch import nn

from ._evaluation import Evaluation, last
from ._methods import methods_named
from ._metrics import metrics_named
from ._questioned import Inside, Question
from ._samples import Sample
from ._seeding import seeded_for
from ._trial import suited

_SIDE = 12
_SMALL: dict[str, dict[str, Any]] = {  # what is too large for such an image, or too slow
    "faithfulness-correlation": {"subset_size": 20, "nr_runs": 5},
    "monotonicity-nguyen": {"nr_samples": 2, "features_in_step": 12},
    "faithfulness-estimate": {"features_in_step": 12},
    "pixel-flipping": {"features_in_step": 12},
    "monotonicity-arya": {"features_in_step": 12},
    "top-k-intersection": {"k": 20},
    "relative-input-stability": {"nr_samples": 3},
    "relative-output-stability": {"nr_samples": 3},
    "relative-representation-stability": {"nr_samples": 3},
    "local-lipschitz-estimate": {"nr_samples": 3},
    "max-sensitivity": {"nr_samples": 3},
    "avg-sensitivity": {"nr_samples": 3},
    "smooth-mprt": {"nr_samples": 3},
}


def mark(name: str) -> str:
    """What to know of a metric before choosing it: that it needs masks, or why it gives no number; else nothing."""
    try:
        alone = _error(name, masked=False)
        return alone and (f"gives no number: {error}" if (error := _error(name, masked=True)) else "needs masks")
    except Exception as error:
        return f"gives no number: {type(error).__name__}: {error}"


def _error(name: str, *, masked: bool) -> str:
    """Why it gives no number for a small grey image."""
    with seeded_for(0, "toy", 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        model, image = nn.Sequential(*layers).eval(), torch.rand(1, _SIDE, _SIDE)
        mask = torch.zeros(_SIDE, _SIDE)
        mask[2:9, 3:9] = 1
        question = Question(by_label=True)
        explains = {"ixg": Inside(methods_named(["ixg"])["ixg"].explain({}, 1), question)}
        evaluate = Evaluation(model, explains, suited(metrics_named([name], _SMALL), 3), question, 3, 0, 64, 0)
        sample = Sample(0, "toy", image, (1,), mask if masked else None)
        ((*_, error, _),) = last(evaluate([sample], {"ixg": [name]})).scores
    return "" if error is None else str(error).splitlines()[0]
