"""Predictions of a model for many perturbed inputs, a batch at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from adapters.checks import positive_int
from adapters.models import evaluation_mode, logits_of, modules_of, only_tensor, placement_of, state_key
from adapters.models.hooks import watch_outputs

from ._prediction_cache import PredictionCache

Model = Callable[..., Any]


class Predictions:
    """Logits or probabilities of given classes, without gradients, on the model's device and in its dtype.

    The model runs in evaluation mode and is restored afterwards. Where it ends in an `nn.Softmax`, the input of that is
    read, so that logits are logits and no softmax is applied twice.

    Args:
        model: Maps inputs to logits (batch, classes), or to an object with `.logits`.
        batch_size: Batch size for perturbed inputs.
        options: Further keyword arguments of the model.
        cache: Keeps predictions that do not depend on maps. None: they are not kept.
        softmax: Whether scores defined on logits use probabilities instead.

    Attributes:
        batch_size: As above.
        softmax: As above, False for None.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int = 64,
        options: Mapping[str, Any] | None = None,
        cache: PredictionCache | None = None,
        *,
        softmax: bool | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"Expected `model` to be a torch.nn.Module or a function, got {type(model)}.")
        self.model = model
        self._cache = cache
        self.softmax = bool(softmax)
        self.batch_size = positive_int("batch_size", batch_size)
        self._options = options or {}
        self._placement = placement_of(model)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self._placement.device or torch.device("cpu")

    def of(self, x: Tensor, y: Tensor, *, probability: bool) -> Tensor:
        """(batch,) predictions for the unperturbed inputs, from the cache where possible."""

        def compute(missing: Tensor) -> Tensor:
            inputs, classes = x[missing], y[missing]
            return self.perturbed(lambda rows: inputs[rows], classes, probability=probability)

        return self.shared(("unperturbed", probability), x, y, compute)

    def shared(self, key: Any, x: Tensor, y: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Predictions (batch, ...) that do not depend on maps, from the cache where possible.

        Args:
            key: What they depend on besides the model, the inputs and the classes.
            x: The inputs.
            y: The classes.
            compute: Returns the predictions of some of them, by index.
        """
        if self._cache is None:
            return compute(torch.arange(len(y), device=y.device)).to(x.device)
        return self._cache.rows((self._state, key), x, y, compute)

    @cached_property
    def _state(self) -> Any:
        return state_key(self.model, self._options)

    def perturbed(
        self,
        make: Callable[[Tensor], Tensor],
        classes: Tensor,
        *,
        probability: bool,
        also: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predictions (count,) for inputs that are made a batch at a time.

        Args:
            make: Returns the inputs of some indices, all below count.
            classes: (count,), the class predicted for each.
            probability: Softmax probabilities, else logits.
            also: Further arguments of the model, (count, ...) each.
        """
        parts: list[Tensor] = []
        with _before_softmax(self.model) as run:
            for rows in torch.arange(len(classes), device=classes.device).split(self.batch_size):
                further = {name: x[rows] for name, x in (also or {}).items()}
                logits = self._logits(run, make(rows), further)
                if not parts:
                    _check(logits, classes, probability)
                answers = logits.softmax(1) if probability else logits
                parts.append(answers.gather(1, classes[rows, None].to(logits.device))[:, 0].to(classes.device))
        return torch.cat(parts)

    def other_class(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch,): for each input the likeliest class besides the given one."""
        with _before_softmax(self.model) as run:
            logits = torch.cat([self._logits(run, inputs, {}) for inputs in x.split(self.batch_size)])
        _check(logits, y, False)
        return logits.scatter(1, y[:, None].to(logits.device), float("-inf")).argmax(1).to(y.device)

    def _logits(self, run: Model, inputs: Tensor, also: dict[str, Tensor]) -> Tensor:
        logits = logits_of(run(self._placement.moved(inputs), **self._options, **also), len(inputs))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(logits: Tensor, classes: Tensor, probability: bool) -> None:
    if probability and logits.shape[1] == 1:
        raise ValueError(
            "Expected at least two logits: the softmax of a single one is always 1. For a model with one output z, "
            "return torch.cat([torch.zeros_like(z), z], 1)."
        )
    low, high, count = int(classes.min()), int(classes.max()), logits.shape[1]
    if not 0 <= low <= high < count:
        raise ValueError(
            f"Expected classes from 0 to {count - 1}, as the model returns {count} logits; got {low} to {high}."
        )


@contextmanager
def _before_softmax(model: Model) -> Iterator[Model]:
    """The model in evaluation mode, as a function that returns its logits."""
    softmaxed: list[tuple[Tensor, Tensor]] = []

    def run(inputs: Tensor, **kwargs: Any) -> Any:
        output = only_tensor(model(inputs, **kwargs), inputs)
        logits = next((before for before, after in softmaxed if after is output), output)
        softmaxed.clear()
        return logits

    modules = modules_of(model if isinstance(model, nn.Module) else None)
    softmaxes = [module for module in modules if isinstance(module, nn.Softmax)]
    watched = watch_outputs(softmaxes, lambda _, args, output: softmaxed.append((args[0], output)))
    with watched, evaluation_mode(model), torch.no_grad():
        yield run
