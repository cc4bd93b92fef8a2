"""What is explained: checking a target before any work, and reading its score from a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.recording import Prediction

from .concept_target import ConceptTarget

Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | ConceptTarget | None
Score = Callable[[Prediction], Tensor]


def score_of(target: Target, batch: int, device: torch.device | None = None) -> Score:
    """The function that reads a target's scores (copies * batch,) from a prediction.

    Args:
        target: As in Captum: a class for all samples, one for each (a list or 1-D tensor), tuples of indices for
            outputs of more dimensions, None for outputs of one value; or a ConceptTarget.
        batch: The number of samples.
        device: Where the outputs are expected.

    Raises:
        TypeError: if the target is none of these.
        ValueError: if its length is not the batch's, or an index cannot be a class.
    """
    if isinstance(target, ConceptTarget):
        return ConceptScore(target)
    if target is None:
        return OutputScore(None)
    rows = _rows(target, batch)
    if any(i < 0 for row in rows for i in row):
        raise ValueError(f"Expected `target` indices of at least 0, got {target}.")
    largest = tuple(max(column) for column in zip(*rows, strict=True))
    return OutputScore(torch.tensor(rows, device=device), largest)


def scores_of(targets: Sequence[Target] | Tensor, batch: int, device: torch.device | None = None) -> list[Score]:
    """The score functions of several targets.

    Raises:
        TypeError: if `targets` is not a list, tuple or tensor of targets.
        ValueError: if it is empty.
    """
    if not isinstance(targets, list | tuple | Tensor | np.ndarray) or getattr(targets, "ndim", 1) == 0:
        raise TypeError(f"Expected `targets` to be a list of targets, got {type(targets)}.")
    if len(targets) == 0:
        raise ValueError("Expected at least one target in `targets`, got none.")
    return [score_of(target, batch, device) for target in targets]


@dataclass(frozen=True)
class ConceptScore:
    """The similarity of each sample's latent to a concept."""

    target: ConceptTarget

    def __call__(self, prediction: Prediction) -> Tensor:
        """(samples,) similarities."""
        return self.target.score(prediction.latents)


@dataclass(frozen=True)
class OutputScore:
    """The output at an index per sample, (batch, axes); None for outputs of one value a sample.

    Checked by the largest index of each axis, which needs no look at a tensor.
    """

    index: Tensor | None
    largest: tuple[int, ...] = ()

    def __call__(self, prediction: Prediction) -> Tensor:
        """(samples,) outputs."""
        outputs = prediction.outputs
        if self.index is None:
            return _only_value(outputs)
        self._check(outputs)
        copies = outputs.shape[0] // self.index.shape[0]
        index = self.index.to(outputs.device).repeat(copies, 1)
        return outputs[torch.arange(outputs.shape[0], device=outputs.device), *index.unbind(1)]

    def _check(self, outputs: Tensor) -> None:
        shape = tuple(outputs.shape)
        if self.index is None or outputs.dim() < 2 or self.index.shape[1] != outputs.dim() - 1:
            axes = 0 if self.index is None else self.index.shape[1]
            raise ValueError(
                f"`target` gives {axes} index(es) a sample, but the model's output has shape {shape}: "
                + (
                    "leave `target` None."
                    if len(shape) < 2
                    else f"give {len(shape) - 1}, as a tuple for more than one."
                )
            )
        if any(index >= size for index, size in zip(self.largest, shape[1:], strict=True)):
            raise ValueError(
                f"`target` {list(self.largest)} is out of range: the model's output has shape {shape}, the "
                "first axis being the batch."
            )


def _only_value(outputs: Tensor) -> Tensor:
    if outputs.dim() == 0 or outputs[0].numel() != 1:
        raise ValueError(
            f"The model's output has shape {tuple(outputs.shape)}, so `target` must say which value to explain; got "
            "None, which is for outputs of one value a sample."
        )
    return outputs.flatten()


def _rows(target: Any, batch: int) -> list[tuple[int, ...]]:
    """One tuple of indices per sample."""
    if isinstance(target, Tensor | np.ndarray):
        target = _listed(torch.as_tensor(target))
    if _is_index(target):
        return [(int(target),)] * batch
    if isinstance(target, tuple) and target and all(map(_is_index, target)):
        return [tuple(map(int, target))] * batch
    if not isinstance(target, list):
        raise TypeError(
            f"Expected `target` to be an int, a list or 1-D tensor of ints, tuples of ints, a ConceptTarget or None, "
            f"got {target!r}."
        )
    if len(target) != batch:
        raise ValueError(f"Expected one `target` per sample, {batch} for this batch, got {len(target)}.")
    rows = [row if isinstance(row, tuple) else (row,) for row in target]
    if not all(_is_index(i) for row in rows for i in row) or len({len(row) for row in rows}) != 1:
        raise TypeError(f"Expected the list `target` to hold ints, or tuples of ints of one length, got {target!r}.")
    return [tuple(map(int, row)) for row in rows]


def _listed(target: Tensor) -> Any:
    if target.is_floating_point() or target.is_complex() or target.dtype is torch.bool:
        raise TypeError(f"Expected a `target` tensor of integers, got one of {target.dtype}.")
    if target.numel() == 1:
        return target.item()
    if target.dim() != 1:
        raise ValueError(f"Expected a `target` tensor with one class per sample, got shape {tuple(target.shape)}.")
    return target.tolist()


def _is_index(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
