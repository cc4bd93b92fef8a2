"""Checks of arguments that several classes share."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from adapters.checks import NOT_FINITE, not_finite

from ._advice import on_inputs

OnError = Literal["raise", "nan"]
NOT_FINITE_MAP = (
    "The map of sample(s) {} is NaN or infinite, although the inputs are finite. Are the weights finite? In float16 "
    "the model may overflow: use bfloat16 or float32."
)


class Failures:
    """What happens to samples that cannot be explained: an error for all, or NaN for theirs and one warning.

    Args:
        on_error: "raise" or "nan".

    Raises:
        ValueError: if `on_error` is neither.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"Expected `on_error` to be one of {get_args(OnError)}, got {on_error!r}.")
        self._raises = on_error == "raise"
        self._samples: dict[int, str] = {}

    def add(self, failed: Tensor, message: str) -> None:
        """Note the samples that are marked, (batch,); `message` has `{}` for their numbers.

        Raises:
            ValueError: if errors are raised and there is one, or no sample is left.
        """
        samples = samples_where(failed)
        if samples and (self._raises or len(samples) == len(failed)):
            raise ValueError(message.replace("{}", str(samples)))
        self._samples |= {one: message.replace("{}", str(samples)) for one in samples if one not in self._samples}

    def check_independent(self, predictions: int, batch: int) -> None:
        """See whether each sample has a prediction of its own, so that one that failed leaves the others as they are.

        Raises:
            ValueError: if samples failed, and others share a prediction with them.
        """
        if self._samples and predictions != batch:
            said = " ".join(dict.fromkeys(self._samples.values()))
            raise ValueError(f"The model makes {predictions} prediction(s) of {batch} samples together. {said}")

    def as_nan(self, values: Tensor, *, stacklevel: int) -> Tensor:
        """The values (batch, ...), NaN for the samples that failed, with one warning."""
        if not self._samples:
            return values
        said = " ".join(dict.fromkeys(self._samples.values()))
        warnings.warn(f"The maps of sample(s) {sorted(self._samples)} are NaN. {said}", stacklevel=stacklevel)
        failed = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        failed[list(self._samples)] = True
        return values.masked_fill(failed.view(-1, *[1] * (values.dim() - 1)), torch.nan)


def checked_inputs(given: Any, failures: Failures | None = None) -> tuple[Tensor, ...]:
    """The inputs as a tuple.

    Args:
        given: A tensor or a tuple of them.
        failures: Samples that are not finite are noted there, and replaced by the first one that is; None: an error.

    Raises:
        TypeError: if they are not tensors.
        ValueError: if there is no sample, or one that is not finite.
    """
    inputs = as_tuple(given)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError(on_inputs(given))
    for x in inputs:
        if x.dim() == 0 or x.shape[0] == 0:
            raise ValueError(f"Expected `inputs` with at least one sample, got shape {tuple(x.shape)}.")
    return tuple([_finite(x, failures or Failures("raise")) for x in inputs])


def _finite(x: Tensor, failures: Failures) -> Tensor:
    bad = not_finite(x)
    if not bool(bad.any()):
        return x
    failures.add(bad, NOT_FINITE.format(samples="{}", shape=tuple(x.shape)))
    return torch.where(bad.view(-1, *[1] * (x.dim() - 1)), x[(~bad).nonzero()[0]], x)


def samples_where(samples: Tensor) -> list[int]:
    """The numbers of the samples that are marked, for a message."""
    return [int(i) for i in samples.nonzero().flatten()]


def further_arguments(forward: Callable[..., Any], given: Any) -> tuple[Any, ...]:
    """`additional_forward_args` as a tuple.

    Raises:
        TypeError: if they are named.
    """
    if isinstance(given, Mapping) and given:
        called = forward.forward if isinstance(forward, nn.Module) else forward
        names = inspect.signature(called).parameters
        if all(name in names for name in given):
            listed = ", ".join(f"{name}=..." for name in given)
            raise TypeError(
                f"Expected `additional_forward_args` in order, as a tuple, got a dictionary of {list(given)}. Bind "
                f"named ones: functools.partial(model, {listed})."
            )
    return as_tuple(given)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One value or several as a tuple, None as none."""
    return value if isinstance(value, tuple) else () if value is None else (value,)
