"""What a model answers for many perturbed inputs, a batch at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import positive_int
from ._evaluation_mode import evaluation_mode
from ._memo import Memo

Model = Callable[..., Any]


class Predictions:
    """Logits or probabilities of given classes, without gradients, on the model's device and in its number type.

    The model runs in evaluation mode and is left as found. A model that ends in an `nn.Softmax` is read in front of
    it, so logits are logits and no softmax is applied twice.

    Args:
        model: Maps inputs to logits (batch, classes), or to an object with `.logits`.
        batch_size: How many inputs pass it at once.
        options: Further keyword arguments of the model.
        memo: Where answers are kept that do not depend on maps. None: nowhere.
        softmax: Shall scores of logits be of probabilities instead?

    Attributes:
        batch_size: As above.
        softmax: As above, False for None.
        memo: As above.
        state: What the memo knows the model by.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int = 64,
        options: Mapping[str, Any] | None = None,
        memo: Memo | None = None,
        *,
        softmax: bool | None = None,
    ) -> None:
        if not callable(model):
            raise TypeError(f"Expected `model` to be a torch.nn.Module or a function, got {type(model)}.")
        self.model = model
        self.memo = memo or Memo(0)
        self.state = self.memo.state_of(model if memo else None, options)
        self.softmax = bool(softmax)
        self.batch_size = positive_int("batch_size", batch_size)
        self._options = options or {}
        parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
        self._like = next((p for p in parameters if p.is_floating_point()), None)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return torch.device("cpu") if self._like is None else self._like.device

    def of(self, x: Tensor, y: Tensor, *, probability: bool) -> Tensor:
        """(batch,) answers for the inputs as they are, from the memo where it has them."""

        def compute(missing: Tensor) -> Tensor:
            inputs, classes = x[missing], y[missing]
            return self.perturbed(lambda rows: inputs[rows], classes, probability=probability)

        return self.memo.rows((self.state, "as they are", probability), x, y, compute)

    def perturbed(
        self,
        make: Callable[[Tensor], Tensor],
        classes: Tensor,
        *,
        probability: bool,
        also: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Answers (count,) for inputs that are made when they are needed.

        Args:
            make: Returns the inputs of some indices, all below count.
            classes: (count,), whose answers are asked for.
            probability: Softmax probabilities, else logits.
            also: Further arguments of the model, (count, ...) each.
        """
        parts: list[Tensor] = []
        with _logits_of(self.model) as logits_of:
            for rows in torch.arange(len(classes), device=classes.device).split(self.batch_size):
                further = {name: x[rows] for name, x in (also or {}).items()}
                logits = self._logits(logits_of, make(rows), further)
                if not parts:
                    _check(logits, classes, probability)
                answers = logits.softmax(1) if probability else logits
                parts.append(answers.gather(1, classes[rows, None].to(logits.device))[:, 0].to(classes.device))
        return torch.cat(parts)

    def other_class(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch,): for each input the likeliest class that is not the given one."""
        with _logits_of(self.model) as logits_of:
            logits = torch.cat([self._logits(logits_of, inputs, {}) for inputs in x.split(self.batch_size)])
        _check(logits, y, False)
        return logits.scatter(1, y[:, None].to(logits.device), float("-inf")).argmax(1).to(y.device)

    def _logits(self, logits_of: Model, inputs: Tensor, also: dict[str, Tensor]) -> Tensor:
        if self._like is not None:
            inputs = inputs.to(self._like.device)
            inputs = inputs.to(self._like.dtype) if inputs.is_floating_point() else inputs
        logits = logits_of(inputs, **self._options, **also)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
            raise ValueError(f"Expected the model to return logits ({len(inputs)}, classes), got {got}.")
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
def _logits_of(model: Model) -> Iterator[Model]:
    """The model in evaluation mode, as a function that returns its logits."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    softmaxed: list[tuple[Tensor, Tensor]] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        output = model(*args, **kwargs)
        output = getattr(output, "logits", output)
        logits = next((before for before, after in softmaxed if after is output), output)
        softmaxed.clear()
        return logits

    hooks = [
        module.register_forward_hook(lambda _, args, output: softmaxed.append((args[0], output)))
        for module in modules
        if isinstance(module, nn.Softmax)
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            yield run
    finally:
        for hook in hooks:
            hook.remove()
