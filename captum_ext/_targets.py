"""What is explained: checking a target before any work, and reading its score from a forward pass."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adapters.recording import Prediction

from .concept_target import ConceptTarget
from .contrast_target import ContrastTarget

Function = Callable[[Tensor], Tensor]
Indices = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]]
Target = Indices | Function | list[Function] | ConceptTarget | ContrastTarget | Literal["predicted"] | None


class Score(Protocol):
    """Reads a target's scores from predictions of one or several copies of a batch."""

    def check(self, prediction: Prediction) -> None:
        """See whether the model's own prediction for the batch can be asked for this.

        Raises:
            ValueError: if it cannot.
        """
        ...

    def __call__(self, prediction: Prediction) -> Tensor:
        """(copies * predictions,) scores."""
        ...


def score_of(target: Target, batch: int, device: torch.device | None = None) -> Score:
    """How a target's scores are read from a prediction.

    Args:
        target: As in Captum: a class for all samples, one for each (a list or 1-D tensor), tuples of indices for
            outputs of more dimensions, None for outputs of one value; a function of one sample's output that returns
            a number, as in pytorch-grad-cam, or a list with one for each sample; a ConceptTarget or a
            ContrastTarget.
        batch: The number of samples.
        device: Where the outputs are expected.

    Raises:
        TypeError: if the target is none of these.
        ValueError: if its length is not the batch's, or an index cannot be a class.
    """
    if isinstance(target, ContrastTarget):
        a, b = score_of(target.a, batch, device), score_of(target.b, batch, device)
        return ContrastScore(a, b, target.probabilities)
    if isinstance(target, ConceptTarget):
        return ConceptScore(target)
    if callable(target):
        return FunctionScore(batch, [target])
    if isinstance(target, list) and target and all(callable(one) for one in target):
        _check_length(len(target), batch)
        return FunctionScore(batch, [one for one in target if callable(one)])
    if target is None:
        return OutputScore(batch, None)
    rows = _rows(target, batch)
    if any(i < 0 for row in rows for i in row):
        raise ValueError(f"Expected `target` indices of at least 0, got {target}.")
    largest = tuple(max(column) for column in zip(*rows, strict=True))
    return OutputScore(batch, torch.tensor(rows, device=device), largest)


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

    def check(self, prediction: Prediction) -> None:
        """See whether the latents have the concept's width."""
        self(prediction)

    def __call__(self, prediction: Prediction) -> Tensor:
        """(samples,) similarities."""
        return self.target.score(self._representation(prediction))

    def _representation(self, prediction: Prediction) -> Tensor:
        """What the vector is compared with: where it is not said, the one that has its width."""
        outputs, latents = prediction
        width, latent = len(self.target.vector), self.target.latent
        if isinstance(latent, nn.Module) and latents.dim() != 2:
            raise ValueError(
                f"{type(latent).__name__}, given as `latent`, returns shape {tuple(latents.shape)}, not one vector for "
                "each sample. Choose a module that does, as the pooling or what follows it."
            )
        if latent is not None:
            return outputs if latent == "output" else latents
        fitting = [x for x in (latents, outputs) if x.dim() == 2 and x.shape[1] == width]
        if len(fitting) == 2 and latents is not outputs:
            raise ValueError(
                f"The concept's vector has {width} channels, and so have what the model's head reads, of shape "
                f'{tuple(latents.shape)}, and its output: say which is meant by `latent="head"` or `latent="output"`.'
            )
        if not fitting and latents is not outputs:
            raise ValueError(
                f"The concept's vector has {width} channels, but what the model's head reads has shape "
                f"{tuple(latents.shape)}, and its output {tuple(outputs.shape)}. Make the concept with "
                "ConceptTarget.from_examples and the same model, or name the module it comes from by `latent`."
            )
        return fitting[0] if fitting else latents


@dataclass(frozen=True)
class ContrastScore:
    """The difference of two scores; of the probabilities, if they are wanted."""

    a: Score
    b: Score
    probabilities: bool = False

    def check(self, prediction: Prediction) -> None:
        """See whether the prediction can be asked for both."""
        self.a.check(prediction)
        self.b.check(prediction)

    def __call__(self, prediction: Prediction) -> Tensor:
        """(samples,) differences."""
        if self.probabilities:
            prediction = prediction._replace(outputs=prediction.outputs.softmax(-1))
        return self.a(prediction) - self.b(prediction)


def latent_of(scores: Sequence[Score]) -> bool | nn.Module:
    """Which latent the scores need: none, what the head reads, or what a module returns.

    Raises:
        ValueError: if concepts of several places are asked for at once.
    """
    parts = [part for one in scores for part in ((one.a, one.b) if isinstance(one, ContrastScore) else (one,))]
    concepts = [score.target.latent for score in parts if isinstance(score, ConceptScore)]
    modules = [one for one in concepts if isinstance(one, nn.Module)]
    if modules and any(one is not modules[0] and one != "output" for one in concepts):
        raise ValueError("Concepts of one call must be compared with one `latent`; take a call for each.")
    return modules[0] if modules else bool(concepts)


@dataclass(frozen=True)
class FunctionScore:
    """What the user's function makes of each sample's output; one function for all, or one for each."""

    batch: int
    functions: list[Function]

    def check(self, prediction: Prediction) -> None:
        """See whether there is a number for each prediction."""
        outputs = _with_batch(prediction.outputs, self.batch)
        _check_count(outputs, self.batch, len(self.functions))
        for function, output in zip(itertools.cycle(self.functions), outputs, strict=False):
            found = function(output.clone())  # which the function may change
            if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
                got = f"shape {tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else str(type(found))
                raise ValueError(
                    f"Expected the function in `target` to return one number, a tensor, for the output of one sample, "
                    f"of shape {tuple(output.shape)}; got {got}. Select or sum: `lambda output: output[3]`."
                )

    def __call__(self, prediction: Prediction) -> Tensor:
        """(samples,) numbers."""
        outputs = _with_batch(prediction.outputs, self.batch)
        pairs = zip(itertools.cycle(self.functions), outputs, strict=False)
        return torch.stack([function(output.clone()).reshape(()) for function, output in pairs])


@dataclass(frozen=True)
class OutputScore:
    """The output at an index, (1 or predictions, axes); None for outputs of one value.

    Checked by the largest index of each axis, which needs no look at a tensor.
    """

    batch: int
    index: Tensor | None
    largest: tuple[int, ...] = ()

    def check(self, prediction: Prediction) -> None:
        """See whether the outputs have these indices."""
        outputs = _with_batch(prediction.outputs, self.batch, len(self.largest))
        _check_count(outputs, self.batch, 1 if self.index is None else len(self.index))
        shape, axes = tuple(outputs.shape), len(self.largest)
        if self.index is None:
            if outputs[0].numel() != 1:
                raise ValueError(
                    f"The model's output has shape {shape}, so `target` must say which value to explain; got None, "
                    "which is for outputs of one value a sample."
                )
        elif axes != len(shape) - 1:
            raise ValueError(
                f"`target` gives {axes} index(es) a sample, but the model's output has shape {shape}: "
                + (
                    "leave `target` None."
                    if len(shape) < 2
                    else f"give {len(shape) - 1}, as a tuple for more than one."
                )
            )
        elif any(index >= size for index, size in zip(self.largest, shape[1:], strict=True)):
            raise ValueError(
                f"`target` {list(self.largest)} is out of range: the model's output has shape {shape}, the first axis "
                "being the batch."
            )

    def __call__(self, prediction: Prediction) -> Tensor:
        """(samples,) outputs."""
        outputs = _with_batch(prediction.outputs, self.batch, len(self.largest))
        if self.index is None:
            return outputs.flatten()
        count = outputs.shape[0]
        index = self.index.to(outputs.device).repeat(count // self.index.shape[0], 1)
        return outputs[torch.arange(count, device=outputs.device), *index.unbind(1)]


def _with_batch(outputs: Tensor, batch: int, axes: int = -1) -> Tensor:
    """Outputs with a batch axis, which `squeeze` takes from a batch of one."""
    return outputs[None] if outputs.dim() == 0 or (batch == 1 and outputs.dim() == axes) else outputs


def _check_count(outputs: Tensor, batch: int, rows: int) -> None:
    """As many predictions as samples, or one for a bag of them; as many targets as predictions, or one for all."""
    count = outputs.shape[0]
    if count == 0 or batch % count:
        raise ValueError(
            f"The model's output has shape {tuple(outputs.shape)}, which is not one prediction for each of the {batch} "
            "samples, nor one for several. Give `output` a function that makes the samples the first axis, as "
            f"`output=lambda y: y.unflatten(0, ({batch}, -1))`, or `y.logits` where y is a ModelOutput."
        )
    if rows not in (1, count):
        raise ValueError(f"Expected one `target` per prediction, {count} for this batch, got {rows}.")


def _check_length(count: int, batch: int) -> None:
    if count == 0 or batch % count:  # fewer: perhaps there are as many predictions, each for several samples
        raise ValueError(f"Expected one `target` per sample, {batch} for this batch, got {count}.")


def _rows(target: Any, batch: int) -> list[tuple[int, ...]]:
    """One tuple of indices for all, or one for each sample."""
    if isinstance(target, Tensor | np.ndarray):
        target = _listed(torch.as_tensor(target))
    if _is_index(target):
        return [(int(target),)]
    if isinstance(target, tuple) and target and all(map(_is_index, target)):
        return [tuple(map(int, target))]
    if not isinstance(target, list):
        raise TypeError(
            "Expected `target` to be an int, a list or 1-D tensor of ints, tuples of ints, a function of one sample's "
            f"output, a ConceptTarget or None, got {target!r}."
        )
    _check_length(len(target), batch)
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
