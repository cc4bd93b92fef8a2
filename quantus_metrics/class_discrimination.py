"""Class discrimination: does the map of a class fit that class better than the map of another one?"""

import inspect
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from quantus.functions.explanation_func import explain
from quantus.helpers.enums import EvaluationCategory, ScoreDirection
from torch import Tensor

from ._metric import Array, Options, TensorMetric
from ._outputs import Model
from ._prediction_cache import MEMORY, PredictionCache
from ._predictions import Predictions
from ._scores import Scores
from ._targets import Targets
from .box_sensitivity import BoxSensitivity
from .fidelity import Fidelity


def class_discrimination(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    wrong_a: Tensor,
    *,
    metric: BoxSensitivity | Fidelity | None = None,
    batch_size: int = 64,
) -> Tensor:
    """A score of the maps of the evaluated class minus that of the maps of another class.

        score(f_y, maps of y) - score(f_y, maps of the wrong class)

    both of the same class's logit. Source: CDAM, equations 7 and 8. Higher is better; exactly 0 for a map that does not
    depend on the class; NaN for a model with one output, which has no other class.

    Args:
        model: Maps inputs to logits.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] height, width), its maps.
        wrong_a: Maps of another class, of the same shape.
        metric: The score. None: `BoxSensitivity()`.
        batch_size: Batch size for perturbed images.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor.
        ValueError: if shapes do not match, or something is not finite.

    Example:
        >>> import torch
        >>> from quantus_metrics import class_discrimination
        >>> model = lambda x: torch.stack([x[..., :8].sum((1, 2, 3)), x[..., 8:].sum((1, 2, 3))], 1)
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> left = torch.zeros(1, 16, 16).index_fill(2, torch.arange(8), 1.0) * (image[0] - image.mean())
        >>> right = (1 - left.ne(0).float()) * (image[0] - image.mean())
        >>> class_discrimination(model, image, torch.tensor([0]), left, right) > 0.5
        tensor([True])
    """
    score = ClassDiscrimination(metric)
    return score.of_tensors(model, x, y, a, wrong_a, batch_size=batch_size, cache=PredictionCache(MEMORY))


class ClassDiscrimination(TensorMetric):
    """Class discrimination: `score(maps of y) - score(maps of a wrong class)`, both of the logit of y.

    Source: CDAM, equations 7 and 8. Higher is better; exactly 0 for a map that does not depend on the class. Undefined
    where one of the two scores is, and NaN for a model with one output, as it has no other class. The wrong class's
    maps are given as `wrong_a_batch`, or made by `explain_func`; its class as `wrong_y_batch`, else it is the likeliest
    other class.

    Args:
        metric: `BoxSensitivity()`, the default, or `Fidelity()`. The predictions of boxes are shared with it, and its
            `activation` is used.
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.ClassDiscrimination(quantus.Fidelity(steps=20)).metric.name
        'Fidelity'
    """

    name = "Class Discrimination"
    evaluation_category = EvaluationCategory.RANDOMISATION

    def __init__(self, metric: BoxSensitivity | Fidelity | None = None, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.metric = BoxSensitivity(activation=self.activation) if metric is None else metric
        if not isinstance(self.metric, BoxSensitivity | Fidelity):
            raise TypeError(f"Expected `metric` to be a BoxSensitivity or a Fidelity, got {type(metric)}.")
        if options.get("activation", self.metric.activation) != self.metric.activation:
            raise ValueError(
                f"Expected the `activation` of `metric`, {self.metric.activation!r}, got {self.activation!r}: pass it "
                "to `metric` only."
            )
        self.activation = self.metric.activation
        if self.metric.score_direction is not ScoreDirection.HIGHER or self.metric.abs or self.metric.normalise:
            raise ValueError(
                "Expected a `metric` of raw maps for which higher is better: no order 'MIF'; pass `abs` and "
                "`normalise` to ClassDiscrimination instead."
            )
        self._cache = self.metric._cache  # predictions that the score has made already, or will need  # noqa: SLF001
        self._wrong_a: Array | None = None
        self._wrong_y: Array | None = None

    def __call__(
        self, *args: Any, wrong_a_batch: Array | None = None, wrong_y_batch: Array | None = None, **kwargs: Any
    ) -> Any:
        """Score explanations, as every Quantus metric does.

        Args:
            *args: `model, x_batch, y_batch, a_batch` and the other arguments of `TensorMetric`. `explain_func` makes
                the maps of the wrong class too, if they are not given; `custom_batch` is the same as `wrong_a_batch`.
            wrong_a_batch: Maps of another class for each sample.
            wrong_y_batch: (samples,), those classes.
            **kwargs: Arguments of `TensorMetric` by name.

        Returns:
            The scores, a list of floats; with `return_aggregate` a list of the one aggregate.
        """
        given = inspect.signature(super().__call__).bind(*args, **kwargs).arguments
        explain_func = given.get("explain_func")
        wrong_a_batch = given.get("custom_batch") if wrong_a_batch is None else wrong_a_batch
        others = given.get("a_batch") is not None and explain_func is explain  # quantus.evaluate's, besides given maps
        if wrong_a_batch is None and (others or not callable(explain_func)):
            raise TypeError(
                "Expected the wrong class's maps in `wrong_a_batch`, or an `explain_func` that made the given maps, to "
                "make them; got neither. For quantus.evaluate pass functions, as by explain_func, instead of arrays."
            )
        self._wrong_a = None if wrong_a_batch is None else np.asarray(wrong_a_batch)
        self._wrong_y = None if wrong_y_batch is None else np.asarray(wrong_y_batch)
        count = len(given["x_batch"])
        for name, value in (("wrong_a_batch", self._wrong_a), ("wrong_y_batch", self._wrong_y)):
            if value is not None and len(value) != count:
                raise ValueError(f"Expected {count} samples in `{name}`, got shape {value.shape}.")
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._wrong_a = self._wrong_y = None

    def evaluate_batch(
        self, model: Any, x_batch: Array, y_batch: Array, a_batch: Array, s_batch: Array | None = None, **kwargs: Any
    ) -> list[float]:
        """The scores of one batch, channels first, with the wrong class's maps as `wrong_a_batch`."""
        wrong = kwargs.get("wrong_a_batch", kwargs.get("custom_batch"))
        if wrong is None:
            raise TypeError("Expected the wrong class's maps in `wrong_a_batch`, got none.")
        self._wrong_a = np.asarray(wrong)
        try:
            return super().evaluate_batch(model, x_batch, y_batch, a_batch, s_batch, **kwargs)
        finally:
            self._wrong_a = None

    def scores(
        self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor, wrong_a: Tensor | None = None
    ) -> Scores:
        """See `class_discrimination`."""
        if wrong_a is None:
            raise ValueError("Expected the maps of the class and of another one, got one map.")
        right, wrong = (self.metric.scores(predictions, x, y, maps) for maps in (a, wrong_a))
        difference = right.values - wrong.values
        if predictions.has_one_output(x):
            difference = torch.full_like(difference, float("nan"))
        curves = {
            f"{name}, maps of {of}": curve
            for of, one in (("the class", right), ("another", wrong))
            for name, curve in one.curves.items()
        }
        undefined = right.undefined | wrong.undefined | difference.isnan()
        return Scores(difference, undefined, curves, right.axis)

    def passes(self, shape: Sequence[int]) -> int:
        """The forward passes of the score."""
        return self.metric.passes(shape)

    def _compared(self, predictions: Predictions, x: Tensor, y: Tensor, *a: Tensor) -> Scores:
        return self.scores(predictions, x, y, *a)

    def _maps(
        self, model: Any, predictions: Predictions, x: Array, y: Array, a: Array | None, batch: slice
    ) -> tuple[Array, ...]:
        right = super()._maps(model, predictions, x, y, a, batch)
        if self._wrong_a is not None:
            return *right, self._wrong_a[batch]
        if self._wrong_y is not None:
            other = self._wrong_y[batch]
        else:
            inputs, classes = (torch.as_tensor(np.array(value)).to(predictions.device) for value in (x, y))
            other = predictions.other_class(inputs, classes.long()).cpu().numpy()
        return *right, self._explained(model, predictions, x, other)
