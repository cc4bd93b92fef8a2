"""What fails, or does not fit into memory, costs no more than itself."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adapters.models import output_tensor


def isolated(compute: Callable[[slice], list[Any]], count: int) -> tuple[list[Any], list[str | None]]:
    """Results of all rows at once; if that fails, of each row alone, so that a row that fails affects no other.

    Where memory does not suffice, of halves.

    Returns:
        For each row its result or None, and its error or None.
    """
    if count == 0:
        return [], []
    try:
        found = compute(slice(0, count))
        if len(found) != count:
            raise ValueError(f"Expected {count} results, one for each sample, got {len(found)}.")
        return found, [None] * count
    except Exception as error:
        if count == 1:
            return [None], [said(error)]
        size = (count + 1) // 2 if out_of_memory(error) else 1
    free_memory()
    results: list[Any] = []
    errors: list[str | None] = []
    for first in range(0, count, size):
        part = range(first, min(count, first + size))
        found, wrong = isolated(lambda rows, part=part: compute(_slice(part[rows])), len(part))  # type: ignore[misc]
        results += found
        errors += wrong
    return results, errors


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


def in_halves(model: Callable[[Tensor], Any], x: Tensor) -> Any:
    """What a model returns, of halves of the batch where memory does not suffice."""
    try:
        return model(x)
    except RuntimeError as error:
        if not out_of_memory(error) or len(x) == 1:
            raise
    free_memory()
    half = (len(x) + 1) // 2
    parts = [output_tensor(in_halves(model, part), given=part) for part in x.split(half)]
    return torch.cat(parts)


def out_of_memory(error: BaseException) -> bool:
    """Did a device run out of memory?"""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def free_memory() -> None:
    """Give unused memory of the accelerator back."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"[:500]
