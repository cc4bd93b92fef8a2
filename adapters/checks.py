"""Checks of arguments that the packages share."""

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

NOT_FINITE = (
    "Expected finite `inputs`, got NaN or infinity in sample(s) {samples} of shape {shape}. Check the preprocessing of "
    "these samples."
)


INPUTS = {
    3: "signals (batch, channels, length)",
    4: "images (batch, channels, height, width)",
    5: "volumes (batch, channels, depth, height, width)",
}
ONE_SAMPLE = " A single sample needs a batch axis: `inputs.unsqueeze(0)`."


def integer(name: str, value: object) -> int:
    """The value as an int.

    Raises:
        TypeError: if it is not an integer.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be an int, got {value!r} of {type(value)}.")
    return int(value)


def positive_int(name: str, value: object) -> int:
    """The value as an int of at least 1.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is less than 1.
    """
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"Expected `{name}` to be at least 1, got {value}.")
    return number


def check_axes(inputs: object, axes: int) -> None:
    """See whether inputs have the axes of those that a network reads: 3 of signals, 4 of images, 5 of volumes.

    Raises:
        TypeError: if they are no tensor.
        ValueError: if they have more or fewer.
    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"Expected {INPUTS[axes]}, a tensor, got {type(inputs)}. Use torch.as_tensor for arrays.")
    if inputs.dim() != axes:
        advice = ONE_SAMPLE if inputs.dim() == axes - 1 else ""
        raise ValueError(f"Expected {INPUTS[axes]}, got shape {tuple(inputs.shape)}.{advice}")


def number(name: str, value: object) -> float:
    """The value, which must be a number.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be a number, got {value!r}.")
    return float(value)


def check_batch(inputs: Any) -> None:
    """See whether the first of a model's inputs is a tensor with samples, and all are finite.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if there is no sample, or one that is not finite.
    """
    first = inputs[0] if isinstance(inputs, tuple) and inputs else inputs
    if not isinstance(first, Tensor):
        raise TypeError(f"Expected the inputs to be a tensor (batch, ...), got {type(first)}.")
    if first.dim() < 2 or len(first) == 0:
        advice = ONE_SAMPLE if first.dim() == 1 and len(first) else ""
        raise ValueError(
            f"Expected inputs (batch, ...) with at least one sample, got shape {tuple(first.shape)}.{advice}"
        )
    if bool((bad := not_finite(first)).any()):
        raise ValueError(NOT_FINITE.format(samples=bad.nonzero().flatten().tolist(), shape=tuple(first.shape)))


def not_finite(inputs: Tensor) -> Tensor:
    """Which samples of inputs (batch, ...) hold NaN or infinity, (batch,)."""
    if not inputs.is_floating_point():
        return torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    return ~torch.isfinite(inputs).flatten(1).all(1)
