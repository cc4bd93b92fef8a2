"""What is asked of a model in a run, and the model as Quantus' own metrics can ask it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.models import placement_of
from quantus_metrics._outputs import is_of_final, running, samples_in
from quantus_metrics._probabilities import Activation, answers
from quantus_metrics._targets import Function, number_of

from ._isolation import in_halves
from ._models import PlainLogits


@dataclass(frozen=True)
class Question:
    """What is asked of each sample.

    Attributes:
        by_label: The label, instead of the predicted class.
        functions: Functions of one sample's output in place of classes: one for all samples, or one for each.
        activation: What makes probabilities of outputs.
    """

    by_label: bool
    functions: Sequence[Function] = ()
    activation: Activation = "softmax"

    def classes(self, model: nn.Module, x: Tensor, labels: Sequence[Sequence[int]], indices: Sequence[int]) -> Any:
        """The class of each sample and the likeliest other one, (samples,) each; functions by their numbers.

        Of several labels the likeliest is explained; the other one is none of them.
        """
        if self.functions:
            one = len(self.functions) == 1
            numbers = torch.tensor([0 if one else index for index in indices], device=x.device)
            return numbers, numbers
        with running(model) as run:
            logits = answers(in_halves(lambda part: run(part).of_classes(final=False), x), None)
        if not self.by_label:
            y = logits.argmax(1)
            return y, logits.scatter(1, y[:, None], float("-inf")).argmax(1)
        bad = sorted({label for several in labels for label in several if not 0 <= label < logits.shape[1]})
        if bad:
            raise ValueError(f"Expected labels below {logits.shape[1]}, the number of the model's classes; got {bad}.")
        mine = torch.zeros_like(logits, dtype=torch.bool)
        for row, several in zip(mine, labels, strict=True):
            row[list(several)] = True
        y = logits.masked_fill(~mine, float("-inf")).argmax(1)
        mine = mine & ~mine.all(1, keepdim=True)  # where a sample has all classes, any other than the explained one
        return y, logits.masked_fill(mine, float("-inf")).scatter(1, y[:, None], float("-inf")).argmax(1)

    def targets(self, y: Tensor) -> Any:
        """What a method or a metric is given: classes, or functions."""
        return [self.functions[i] for i in y] if self.functions else y

    def shown(self, cls: Tensor) -> int:
        """The target in the tables: the class, or -1 for a function."""
        return -1 if self.functions else int(cls)


class Columns(nn.Module):
    """A model that returns, in float32, what is asked in columns: for each class, or each function.

    A module around the model, so that it can be copied, as metrics of randomisation do. Quantus' own metrics read it.
    """

    def __init__(self, model: nn.Module, functions: Sequence[Function], activation: Activation | None) -> None:
        super().__init__()
        self.model, self.functions, self.activation = model, functions, activation

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, columns)."""
        with running(self.model) as run:
            returned = run(placement_of(self.model).moved(inputs))
        if not self.functions:
            return answers(returned.of_classes(final=is_of_final(self.activation)), self.activation)
        samples = samples_in(returned, self.activation)
        return torch.stack([torch.stack([number_of(one, sample) for one in self.functions]) for sample in samples])


@dataclass(frozen=True)
class Inside:
    """An explanation function that is given the user's model itself, not what is around it: names of layers fit."""

    explain: Any
    question: Question

    def __call__(self, model: Any, inputs: Any, targets: Any, **options: Any) -> Any:
        """The maps."""
        if isinstance(model, Columns):
            targets = self.question.targets(torch.as_tensor(targets))
        return self.explain(_inside(model), inputs, targets, **options)

    def attribution(self, model: Any, inputs: Any, targets: Any) -> tuple[Any, Tensor, Any, Mapping[str, Any]]:
        """As that of `explain_func`, of the user's model."""
        found: tuple[Any, Tensor, Any, Mapping[str, Any]] = self.explain.attribution(_inside(model), inputs, targets)
        return found


def _inside(model: Any) -> Any:
    while isinstance(model, Columns | PlainLogits):
        model = model.model
    return model


def for_quantus(model: nn.Module, score: Any, question: Question, outputs: int) -> dict[str, Any]:
    """Arguments of a metric of Quantus' own: a model whose columns are asked for, if its classes are not enough."""
    softmax = inspect.signature(score.__call__).parameters.get("softmax")
    reads_probabilities = softmax is not None and softmax.default is True
    ready = question.activation == "softmax" or not reads_probabilities
    if outputs > 1 and not question.functions and ready:
        return {"model": plain(model)}
    columns = Columns(model, question.functions, question.activation if reads_probabilities else None)
    return {"model": columns.eval(), "softmax": False}


def plain(model: nn.Module) -> nn.Module:
    """A model that Quantus can run: float32 in and out."""
    return model if placement_of(model).dtype in (None, torch.float32) else PlainLogits(model).eval()
