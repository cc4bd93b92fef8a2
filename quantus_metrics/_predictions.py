"""Predictions of a model for many perturbed inputs, a batch at a time."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.checks import positive_int
from adapters.models import placement_of, state_key
from adapters.models.state_key import Identity

from ._outputs import Model, Returned, ends_in_sigmoid, is_list_of_samples, is_of_final, running, samples_in
from ._prediction_cache import PredictionCache
from ._probabilities import Activation, answers, are_probabilities, checked_activation, probabilities
from ._targets import Function, number_of

_TWICE = (
    "The model's outputs are probabilities already, from 0 to 1{sum} and {name} is applied to them once "
    'more. If that is not what you mean, pass activation="identity".'
)
_SIGMOID = (
    "The model ends in a sigmoid, but its probabilities are read by softmax, as if its classes excluded each other. If "
    'they do not, pass activation="sigmoid".'
)


class Predictions:
    """What is asked of a model, logits or probabilities, without gradients, on its device and in its dtype.

    The model runs in evaluation mode and is restored afterwards. Where it ends in an `nn.Softmax` or `nn.Sigmoid`, the
    input of that is read as the logits, so that nothing is applied twice.

    Args:
        model: Maps inputs to logits (batch, classes), or to an object with `.logits`; to any output for functions.
        batch_size: Batch size for perturbed inputs.
        options: Further keyword arguments of the model.
        cache: Keeps predictions that do not depend on maps. None: they are not kept.
        softmax: Whether scores defined on logits use probabilities instead.
        activation: What makes probabilities of outputs.
        functions: What is asked of one sample's output, where that is no class; classes are then their numbers.

    Attributes:
        batch_size: As above.
        softmax: As above, False for None.
        functions: As above.
        noticed: What the user should be told about the model's outputs.
    """

    def __init__(
        self,
        model: Model,
        batch_size: int = 64,
        options: Mapping[str, Any] | None = None,
        cache: PredictionCache | None = None,
        *,
        softmax: bool | None = None,
        activation: Activation = "softmax",
        functions: Sequence[Function] = (),
    ) -> None:
        if not callable(model):
            raise TypeError(f"Expected `model` to be a torch.nn.Module or a function, got {type(model)}.")
        self.model = model
        self._cache = cache
        self.softmax = bool(softmax)
        self.batch_size = positive_int("batch_size", batch_size)
        self.functions = list(functions)
        self.noticed: set[str] = set()
        self._activation = checked_activation(activation)
        self._options = options or {}
        self._placement = placement_of(model)
        self._outputs: int | None = None

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
            key: What they depend on besides the model, the activation, the inputs and what is asked.
            x: The inputs.
            y: The classes, or the functions' numbers.
            compute: Returns the predictions of some of them, by index.
        """
        if self._cache is None:
            return compute(torch.arange(len(y), device=y.device)).to(x.device)
        asked = [Identity(self.functions[i]) for i in y] if self.functions else y.tolist()
        return self._cache.rows((self._state, key), x, asked, lambda missing: compute(missing.to(y.device)))

    @cached_property
    def _state(self) -> Any:
        activation = Identity(self._activation) if callable(self._activation) else self._activation
        return state_key(self.model, self._options), activation

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
            classes: (count,), the class predicted for each, or the function's number.
            probability: Probabilities, else logits.
            also: Further arguments of the model, (count, ...) each.
        """
        parts: list[Tensor] = []
        with running(self.model) as run:
            for rows in torch.arange(len(classes), device=classes.device).split(self.batch_size):
                further = {name: x[rows] for name, x in (also or {}).items()}
                again = partial(run, self._placement.moved(make(rows)), **self._options, **further)
                returned = again()
                if probability and not parts:
                    self._notice(returned, again)
                asked = self._of_functions if self.functions else self._of_classes
                parts.append(asked(returned, classes[rows], self._activation if probability else None))
        return torch.cat(parts)

    def other_class(self, x: Tensor, y: Tensor) -> Tensor:
        """(batch,): for each input the likeliest class besides the given one.

        Raises:
            TypeError: if functions are asked for.
        """
        if self.functions:
            raise TypeError(
                "Expected classes in `y_batch`, as a function of the output has no likeliest other one; got functions. "
                "Pass the maps that are compared as `wrong_a_batch`."
            )
        with running(self.model) as run:
            returned = [run(self._placement.moved(inputs), **self._options) for inputs in x.split(self.batch_size)]
        outputs = torch.cat([one.of_classes(final=False) for one in returned])
        logits = answers(outputs, None)
        _check(logits, y, outputs.shape[1] == 1)
        return logits.scatter(1, y[:, None].to(logits.device), float("-inf")).argmax(1).to(y.device)

    def has_one_output(self, x: Tensor) -> bool:
        """Does the model have a single output, so that there is no other class? What was seen is remembered."""
        if self.functions:
            return False

        def compute(missing: Tensor) -> Tensor:
            if self._outputs is None:
                with running(self.model) as run:
                    self._outputs = run(self._placement.moved(x[:1]), **self._options).of_classes(final=False).shape[1]
            return torch.full((len(missing),), self._outputs)

        return bool(self.shared("outputs", x[:1], torch.zeros(1, dtype=torch.long), compute)[0] == 1)

    def outputs(self, run: Callable[..., Returned], x: Tensor, *, probability: bool) -> Tensor:
        """What classes or functions are asked of, (batch, ...), by a model that is running."""
        returned = run(self._placement.moved(x), **self._options)
        final = probability and is_of_final(self._activation)
        found = returned.outputs(final=final) if self.functions else returned.of_classes(final=final)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def asked(self, outputs: Tensor, numbers: Tensor, *, probability: bool) -> Tensor:
        """(count,): what is asked of such outputs, by class or by the function's number."""
        activation = self._activation if probability else None
        if self.functions:
            outputs = outputs if activation is None else probabilities(outputs, activation)
            pairs = zip(numbers, outputs, strict=True)
            return torch.stack([number_of(self.functions[i], output) for i, output in pairs])
        found = answers(outputs, activation)
        _check(found, numbers, outputs.shape[1] == 1)
        return found.gather(1, numbers[:, None].to(found.device))[:, 0]

    def _of_classes(self, returned: Returned, classes: Tensor, activation: Activation | None) -> Tensor:
        outputs = returned.of_classes(final=is_of_final(activation))
        self._outputs = outputs.shape[1]
        found = answers(outputs, activation)
        _check(found, classes, self._outputs == 1)
        return found.gather(1, classes[:, None].to(found.device))[:, 0].to(classes.device)

    def _of_functions(self, returned: Returned, numbers: Tensor, activation: Activation | None) -> Tensor:
        outputs = samples_in(returned, activation)
        if len(outputs) != len(numbers):
            raise ValueError(
                f"Expected the model to return an output for each of {len(numbers)} inputs, got {len(outputs)}."
            )
        found = [number_of(self.functions[i], output) for i, output in zip(numbers, outputs, strict=True)]
        return torch.stack(found).to(numbers.device)

    def _notice(self, returned: Returned, again: Callable[[], Returned]) -> None:
        """See whether the outputs are what the activation is made for."""
        if is_of_final(self._activation) or is_list_of_samples(returned.value):
            return
        if isinstance(returned.last, nn.Sigmoid):
            if self._activation == "softmax" and returned.outputs(final=True).shape[1] > 1:
                self.noticed.add(_SIGMOID)
            return
        outputs = returned.outputs(final=False)
        if are_probabilities(outputs):
            self.noticed.add(_TWICE.format(name=self._activation, sum=", with a sum of 1,"))
        elif bool(((outputs >= 0) & (outputs <= 1)).all()) and ends_in_sigmoid(again):
            self.noticed.add(_TWICE.format(name=self._activation, sum=", made by a sigmoid,"))


def _check(found: Tensor, classes: Tensor, one: bool) -> None:
    low, high, count = int(classes.min()), int(classes.max()), found.shape[1]
    if not 0 <= low <= high < count:
        returns = "a single logit, of which 1 is the class and 0 the other" if one else f"{count} logits"
        raise ValueError(
            f"Expected classes from 0 to {count - 1}, as the model returns {returns}; got {low} to {high}."
        )
