"""What a model returned, and the error where it returns something else."""

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What the model returned for some tokens: the output to explain, and what its head read."""

    outputs: Tensor
    latents: Tensor


class DifferentOutputError(ValueError):
    """What was repeated is not what the model returned."""

    def __init__(self) -> None:
        super().__init__(
            "The model returns something else each time it is called with the same inputs: is something random in it, "
            "or does it keep a state from one call to the next?"
        )
