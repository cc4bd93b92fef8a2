"""The base class of the scores, a Quantus metric."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypedDict, Unpack, cast

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from quantus.functions.normalise_func import normalise_by_max
from quantus.helpers import warn
from quantus.helpers.enums import DataType, EvaluationCategory, ModelType, ScoreDirection
from quantus.helpers.model.model_interface import ModelInterface
from quantus.metrics.base import Metric
from torch import Tensor
from tqdm.auto import tqdm

from adapters.checks import positive_int
from adapters.models import channels_first

from ._checks import check_shapes, checked, not_finite
from ._prediction_cache import MEMORY, PredictionCache
from ._predictions import Predictions
from ._probabilities import Activation, checked_activation
from ._scores import Scores
from ._targets import Function, Targets, functions_in
from ._user_line import tell

Array = npt.NDArray[Any]


class Options(TypedDict, total=False):
    """Constructor arguments of every Quantus metric; the defaults are in parentheses.

    Attributes:
        abs: Take the maps' absolute values (False).
        normalise: Normalise each map, before `abs`, by `normalise_func` (False). Scores are defined on raw maps, and
            scale them to [0, 1] themselves where needed. Unlike in Quantus, each map is normalised independently.
        normalise_func: Takes and returns maps (1, ...) (`quantus.normalise_by_max`).
        normalise_func_kwargs: Its further arguments (None).
        return_aggregate: Return one value for all samples (False).
        aggregate_func: Aggregates the list of scores (`numpy.mean`).
        default_plot_func: The function that `plot` calls (None: plot the score's curves).
        disable_warnings: Do not warn about undefined samples (False).
        display_progressbar: Show a progress bar over samples (False).
        activation: What makes probabilities of the model's outputs ("softmax"): "softmax"; "sigmoid", where classes do
            not exclude each other; "identity", where the outputs are probabilities or no classes; or a function of the
            outputs (batch, classes).
    """

    abs: bool
    normalise: bool
    normalise_func: Callable[..., Array] | None
    normalise_func_kwargs: dict[str, Any] | None
    return_aggregate: bool
    aggregate_func: Callable[..., Any] | None
    default_plot_func: Callable[..., Any] | None
    disable_warnings: bool
    display_progressbar: bool
    activation: Activation


class TensorMetric(Metric[list[float]]):
    """Base of the scores: Quantus' arguments around a function of tensors.

    Attributes:
        evaluation_scores: The scores of the last call, one for each sample; after an error those that were finished.
        undefined: The samples of the last call whose score is a convention, as the definition divides zero by zero.
        curves: By name the curves that the last call's scores summarise, each (samples, points).
        axis: The label of the curves' horizontal axis, and the values of the points.
    """

    name: ClassVar[str]
    model_applicability: ClassVar[set[ModelType]] = {ModelType.TORCH}
    runs_model: ClassVar[bool] = True  # one of the map alone takes None as the model, as Quantus' own do
    data_applicability: ClassVar[set[DataType]] = {DataType.IMAGE}
    score_direction = ScoreDirection.HIGHER
    evaluation_category: ClassVar[EvaluationCategory] = EvaluationCategory.FAITHFULNESS

    def __init__(self, **options: Unpack[Options]) -> None:
        self.activation = checked_activation(options.pop("activation", "softmax"))
        defaults: Options = {
            "abs": False,
            "normalise": False,
            "normalise_func": normalise_by_max,
            "normalise_func_kwargs": None,
            "return_aggregate": False,
            "aggregate_func": np.mean,
            "default_plot_func": None,
            "disable_warnings": False,
            "display_progressbar": False,
        }
        super().__init__(**(defaults | options))  # type: ignore[arg-type] # None is accepted
        self.undefined: list[int] = []
        self.curves: dict[str, Array] = {}
        self.axis: tuple[str, Sequence[float]] = ("", ())
        self._cache = PredictionCache(MEMORY)

    @abstractmethod
    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """The scores of checked inputs (batch, ...), classes or functions' numbers (batch,) and maps (batch, ...)."""

    def passes(self, shape: Sequence[int]) -> int:
        """Approximate number of forward passes for one input (channels, height, width)."""
        return 1

    def __call__(
        self,
        model: Any,
        x_batch: Array,
        y_batch: Array,
        a_batch: Array | None = None,
        s_batch: Array | None = None,
        channel_first: bool | None = None,
        explain_func: Callable[..., Array] | None = None,
        explain_func_kwargs: dict[str, Any] | None = None,
        model_predict_kwargs: dict[str, Any] | None = None,
        softmax: bool | None = None,
        device: str | None = None,
        batch_size: int = 64,
        custom_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Score explanations, as every Quantus metric does.

        Args:
            model: A torch.nn.Module that returns logits; it runs where its weights are, in evaluation mode.
            x_batch: (samples, channels, height, width); signals (samples, channels, length) or volumes (samples,
                channels, depth, height, width); or token ids (samples, tokens).
            y_batch: (samples,), the classes that are evaluated; or a function of one sample's output that returns a
                number, as for pytorch-grad-cam, or a list with one for each sample.
            a_batch: Maps of the inputs' size, with or without channels. None: `explain_func` makes them.
            s_batch: Not used.
            channel_first: False: the inputs have channels last; None: first.
            explain_func: Called with `model`, `inputs`, `targets` and `explain_func_kwargs`, a batch at a time.
            explain_func_kwargs: Its further arguments.
            model_predict_kwargs: Further arguments of the model.
            softmax: True: scores of logits measure probabilities instead. What is defined by probabilities stays so.
            device: Passed to `explain_func`.
            batch_size: Batch size for perturbed inputs.
            custom_batch: Not used.
            kwargs: None are known.

        Returns:
            The scores, a list of floats; with `return_aggregate` a list of the one aggregate.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if shapes do not match, or a sample is not finite. The samples before it are scored, in
                `evaluation_scores`.
        """
        warn.deprecation_warnings(kwargs)
        warn.check_kwargs(kwargs)  # type: ignore[no-untyped-call]
        positive_int("batch_size", batch_size)
        if a_batch is None and not callable(explain_func):
            raise TypeError("Expected maps in `a_batch` or an `explain_func` to make them, got neither.")
        self.evaluation_scores, self.undefined, self.curves = [], [], {}
        self.explain_func = cast(Callable[..., Array], explain_func)
        self.explain_func_kwargs = dict(explain_func_kwargs or {})
        if device is not None:
            self.explain_func_kwargs.setdefault("device", device)
        x_batch = channels_first(np.asarray(x_batch), channel_first)
        functions, y_batch = functions_in(y_batch, len(x_batch))
        y_batch = np.asarray(y_batch)
        if a_batch is not None:
            a_batch = np.asarray(a_batch)
            check_shapes(x_batch.shape, y_batch.shape, a_batch.shape, texts=self._reads_texts)
        predictions = self._predictions(
            model, functions, batch_size, options=model_predict_kwargs, cache=self._cache, softmax=softmax
        )
        with tqdm(total=len(x_batch), desc=self.name, unit="sample", disable=not self.display_progressbar) as bar:
            for start in range(0, len(x_batch), batch_size):
                batch = slice(start, start + batch_size)
                x, y = x_batch[batch], y_batch[batch]
                maps = self._maps(model, predictions, x, y, None if a_batch is None else a_batch[batch], batch)
                self._evaluate(predictions, start, x, y, maps, bar)
        self._finish(predictions, len(x_batch))
        return self.evaluation_scores

    def evaluate_batch(
        self, model: Any, x_batch: Array, y_batch: Array, a_batch: Array, s_batch: Array | None = None, **kwargs: Any
    ) -> list[float]:
        """The scores of one batch, channels first; as `__call__`, but nothing is recorded."""
        functions, y_batch = functions_in(y_batch, len(x_batch))
        predictions = self._predictions(model, functions, kwargs.get("batch_size", 64), cache=self._cache)
        maps = self._maps(model, predictions, x_batch, y_batch, a_batch, slice(None))
        maps = tuple(self._prepared(a) for a in maps)
        scores: list[float] = self._scored(predictions, x_batch, y_batch, *maps).values.tolist()
        return scores

    def of_tensors(
        self,
        model: Any,
        x: Tensor,
        y: Targets,
        *a: Tensor,
        batch_size: int,
        softmax: bool = False,
        cache: PredictionCache | None = None,
    ) -> Tensor:
        """The scores (batch,) of tensors, one tensor of maps for each that the score compares."""
        functions, classes = functions_in(y, len(x) if isinstance(x, Tensor) else 0)
        predictions = self._predictions(model, functions, batch_size, softmax=softmax, cache=cache)
        given = [checked(x, classes, maps, texts=self._reads_texts) for maps in a]
        values = self._compared(predictions, *given[0][:2], *(maps for _, _, maps in given)).values
        for said in sorted(predictions.noticed):
            tell(said)
        return values

    def plot(
        self,
        plot_func: Callable[..., Any] | None = None,
        show: bool = True,
        path_to_save: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Plot the last call's curves, or call a plotting function; save the figure, then show it.

        Raises:
            ValueError: if there is nothing to plot.
        """
        draw = plot_func or self.default_plot_func
        if draw is None and not self.curves:
            raise ValueError(f"There is no curve to plot: {self.name} has none, or nothing was scored yet.")
        drawn = draw(*args, **kwargs) if draw is not None else self._draw()
        figure = drawn if isinstance(drawn, Figure) else plt.gcf()
        if path_to_save:
            figure.savefig(path_to_save, dpi=200)
        if show:
            plt.show()

    def interpret_scores(self) -> None:
        """Print what the scores mean."""
        print(inspect.getdoc(type(self)))  # noqa: T201 # Quantus' contract

    def _draw(self) -> Figure:
        label, points = self.axis
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        for name, curve in self.curves.items():
            mean, error = curve.mean(0), curve.std(0) / len(curve) ** 0.5
            axes.plot(points, mean, label=name)
            axes.fill_between(points, mean - error, mean + error, alpha=0.2)
        axes.set(
            xlabel=label, title=f"{self.name}: mean of {len(next(iter(self.curves.values())))} samples, standard error"
        )
        axes.legend()
        return figure

    @property
    def _reads_texts(self) -> bool:
        return DataType.TEXT in self.data_applicability

    def _maps(
        self, model: Any, predictions: Predictions, x: Array, y: Array, a: Array | None, batch: slice
    ) -> tuple[Array, ...]:
        """All maps that the score compares, given or made."""
        return (self._explained(model, predictions, x, y) if a is None else a,)

    def _predictions(self, model: Any, functions: list[Function], batch_size: int, **options: Any) -> Predictions:
        runnable = _no_model if model is None and not self.runs_model else _module(model)
        return Predictions(runnable, batch_size, functions=functions, activation=self.activation, **options)

    def _explained(self, model: Any, predictions: Predictions, x: Array, y: Array) -> Array:
        targets = [predictions.functions[i] for i in y] if predictions.functions else y
        maps = np.asarray(
            self.explain_func(model=_module(model), inputs=x, targets=targets, **self.explain_func_kwargs)
        )
        check_shapes(x.shape, y.shape, maps.shape, texts=self._reads_texts)
        return maps

    def _evaluate(
        self, predictions: Predictions, start: int, x: Array, y: Array, maps: tuple[Array, ...], bar: Any
    ) -> None:
        """Score some samples, up to the first one that is not finite, a few at a time, to keep finished scores."""
        maps = tuple(self._prepared(a) for a in maps)
        given = [("inputs", x), *(("maps", a) for a in maps)]
        bad = [(name, samples) for name, value in given if (samples := not_finite(torch.as_tensor(np.array(value))))]
        bad.sort(key=lambda one: one[1][0])
        stop = bad[0][1][0] if bad else len(x)
        step = max(1, predictions.batch_size // self.passes(x.shape[1:]))
        for first in range(0, stop, step):
            rows = slice(first, min(first + step, stop))
            scores = self._scored(predictions, x[rows], y[rows], *(a[rows] for a in maps))
            self.evaluation_scores += scores.values.tolist()
            self.undefined += [start + first + int(i) for i in scores.undefined.nonzero().flatten()]
            self.axis = scores.axis
            for name, curve in scores.curves.items():
                before = [self.curves[name]] if name in self.curves else []
                self.curves[name] = np.concatenate([*before, curve.cpu().numpy()])
            bar.update(rows.stop - rows.start)
        for name, samples in bad:
            raise ValueError(
                f"Expected finite {name}, got NaN or infinity in sample(s) {[start + i for i in samples]}. The "
                f"{start + stop} samples before the first one are scored: see `evaluation_scores`."
            )

    def _scored(self, predictions: Predictions, x: Array, y: Array, *maps: Array) -> Scores:
        inputs, classes = (torch.as_tensor(np.array(value)).to(predictions.device) for value in (x, y))
        tensors = (torch.as_tensor(a).to(predictions.device) for a in maps)
        given = [checked(inputs, classes, a, texts=self._reads_texts) for a in tensors]
        scores = self._compared(predictions, *given[0][:2], *(a for _, _, a in given))
        return replace(scores, undefined=scores.undefined | ~scores.values.isfinite())

    def _compared(self, predictions: Predictions, x: Tensor, y: Tensor, *a: Tensor) -> Scores:
        return self.scores(predictions, x, y, a[0])

    def _prepared(self, maps: Array) -> Array:
        maps = np.array(maps)
        if self.normalise:
            maps = np.concatenate([cast(Callable[..., Array], self.normalise_func)(one[None]) for one in maps])
        return np.abs(maps) if self.abs else maps

    def _finish(self, predictions: Predictions, count: int) -> None:
        said = sorted(predictions.noticed)
        if self.undefined:
            said.append(
                f"{self.name} is not defined for {len(self.undefined)} of {count} samples, whose score is a "
                "convention: see `undefined`, and the class's documentation."
            )
        if not self._disable_warnings:  # the property is true almost everywhere
            for one in said:
                tell(one)
        if self.return_aggregate:
            self.evaluation_scores = [self.aggregate_func(self.evaluation_scores)]
        self.all_evaluation_scores.extend(self.evaluation_scores)


def _no_model(inputs: Tensor) -> Tensor:
    raise TypeError(f"Expected a model for inputs of shape {tuple(inputs.shape)}, got None.")


def _module(model: Any) -> Any:
    """The model that Quantus may have wrapped."""
    return model.get_model() if isinstance(model, ModelInterface) else model  # type: ignore[no-untyped-call]
