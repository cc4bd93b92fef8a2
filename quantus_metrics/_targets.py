"""What is asked of a model: classes, or functions of one sample's output."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Any], Tensor]
Targets = Tensor | Sequence[int] | Function | Sequence[Function]


def functions_in(targets: Any, count: int) -> tuple[list[Function], Any]:
    """The functions among targets, each once, and which one is asked of each sample; for classes none, and these.

    Args:
        targets: Classes; or a function for all samples, or a list with one for each.
        count: The number of samples.

    Raises:
        TypeError: if there are functions and something else.
        ValueError: if there is not one for each sample.
    """
    if isinstance(targets, np.ndarray) and targets.dtype == object:
        targets = targets.item() if targets.ndim == 0 else list(targets)
    if callable(targets) and not isinstance(targets, Tensor):
        return [targets], torch.zeros(count, dtype=torch.long)
    if not isinstance(targets, list | tuple) or not any(callable(one) for one in targets):
        return [], targets
    wrong = next((one for one in targets if not callable(one)), None)
    if wrong is not None:
        raise TypeError(f"Expected a class for each sample or a function for each, got functions and {wrong!r}.")
    if len(targets) != count:
        raise ValueError(f"Expected one function for each of {count} samples, or one for all, got {len(targets)}.")
    functions = {id(one): one for one in targets}
    places = list(functions)
    return list(functions.values()), torch.tensor([places.index(id(one)) for one in targets])


def number_of(function: Function, output: Any) -> Tensor:
    """What a function makes of one sample's output: a tensor without axes.

    Raises:
        ValueError: if it is no number.
    """
    found = function(output.clone() if isinstance(output, Tensor) else output)  # which the function may change
    if isinstance(found, Tensor) and found.numel() == 1:
        return found.reshape(())
    of = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else str(type(output))
    got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else str(type(found))
    raise ValueError(
        f"Expected the target function to return one number, a tensor, for the output of one sample, of {of}; got "
        f"{got}. Select or sum: `lambda output: output[3].mean()`."
    )
