"""Checks of arguments that several classes share."""

from typing import Any

import torch
from torch import Tensor


def checked_inputs(given: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple.

    Raises:
        TypeError: if they are not tensors.
        ValueError: if there is no sample, or one that is not finite.
    """
    inputs = as_tuple(given)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError(f"Expected `inputs` to be a tensor or a tuple of tensors, got {[type(x) for x in inputs]}.")
    for x in inputs:
        if x.dim() == 0 or x.shape[0] == 0:
            raise ValueError(f"Expected `inputs` with at least one sample, got shape {tuple(x.shape)}.")
        if x.is_floating_point() and not bool((finite := torch.isfinite(x).flatten(1).all(1)).all()):
            raise ValueError(
                f"Expected finite `inputs`, got NaN or infinity in sample(s) {samples_where(~finite)} of shape "
                f"{tuple(x.shape)}. Check the preprocessing of these samples."
            )
    return inputs


def samples_where(samples: Tensor) -> list[int]:
    """The numbers of the samples that are marked, for a message."""
    return [int(i) for i in samples.nonzero().flatten()]


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value or several as a tuple, None as none."""
    return value if isinstance(value, tuple) else () if value is None else (value,)
