"""Scores of several targets as what coalitions of tokens are worth."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters.recording import Prediction

from ._targets import Score


def reader(scores: Sequence[Score]) -> Callable[[Prediction], Tensor]:
    """From a prediction to all scores, (targets, copies * batch), in float32 or wider."""

    def read(prediction: Prediction) -> Tensor:
        found = torch.stack([score(prediction) for score in scores])
        return found.to(torch.promote_types(found.dtype, torch.float32))

    return read
