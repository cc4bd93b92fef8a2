"""Before the work: every method explains one sample, every metric scores one."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.models import output_tensor, placement_of
from quantus_metrics._predictions import Predictions
from quantus_metrics._user_line import tell

from ._cost import in_forwards
from ._evaluation import Batch, Evaluation
from ._isolation import in_halves
from ._method import Explain, Method
from ._metrics import Metric
from ._progress import progress
from ._samples import Sample
from ._seeding import seeded_for

_TIMED = 8  # samples in the pass that is timed
_TIMES = 5  # that it is at most
_MISFITS = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)


def tell_of_outputs(evaluate: Evaluation, first: Sample) -> None:
    """Warn of outputs that are probabilities already, which no metric says by itself."""
    if not any(metric.ours for metric in evaluate.metrics.values()):
        return
    question = evaluate.question
    x = placement_of(evaluate.model).moved(first.image[None])
    y, _ = evaluate.classes([first], x)
    predictions = Predictions(evaluate.model, activation=question.activation, functions=question.functions)
    predictions.of(x, y, probability=True)
    for said in sorted(predictions.noticed):
        tell(said)


def cost_of(explain: Explain, method: Method, model: nn.Module, x: Tensor, targets: Any, seed: int) -> float:
    """What an explanation costs, in forward passes; raises what the method raises."""
    with seeded_for(seed, "check", 0):
        if method.needs_warm_up:
            explain(model, x, targets)  # work that is done once is not counted
        return in_forwards(lambda: explain(model, x, targets), lambda: model(x))


def costs_of_methods(
    evaluate: Evaluation, methods: Mapping[str, Method], first: Sample
) -> tuple[dict[str, float], dict[str, str]]:
    """Explain one sample by each method.

    Returns:
        What that costs in forward passes, and why other methods do not fit the model.
    """
    x = placement_of(evaluate.model).moved(first.image[None])
    y, _ = evaluate.classes([first], x)
    targets = evaluate.question.targets(y)
    forwards: dict[str, float] = {}
    unfit: dict[str, str] = {}
    for name, method in progress(methods.items(), desc="checking methods", unit="method"):
        try:
            forwards[name] = cost_of(evaluate.explains[name], method, evaluate.model, x, targets, evaluate.seed)
        except (AssertionError, TypeError, ValueError, NotImplementedError) as error:  # Captum asserts
            unfit[name] = str(error)
        except Exception as error:  # perhaps of this sample only; if not, every cell records it
            tell(f"{name} failed on the first sample: {type(error).__name__}: {error}")
            forwards[name] = float("nan")
    return forwards, unfit


def check_metrics(
    evaluate: Evaluation, metrics: Mapping[str, Metric], samples: Iterable[Sample]
) -> tuple[float, float, float]:
    """Score maps of the first method by each of these metrics, on one sample or, where that fails, on each of these.

    Returns:
        What scoring a map by all of them costs in forward passes, what it costs for the next method's map of the same
        sample, and how many seconds a pass takes for each sample of a batch; NaN where a metric fails.

    Raises:
        ValueError: if metrics fail on all of them; the message says why for each.
    """
    method, *others = evaluate.explains
    failing, said = dict(metrics), {}
    for sample in samples:
        trial = replace(evaluate, metrics=failing, gallery=0)
        bar = progress(total=1 + len(failing), desc="checking metrics", unit="metric")
        with warnings.catch_warnings(), bar:
            warnings.simplefilter("ignore")  # the run says them
            passes, batch = _tried(trial, sample, method, bar.update)
            further = _tried(trial, sample, others[0])[0] if others else math.nan
        if any(error for *_, error, _ in batch.explanations):
            continue
        said = {metric: error for _, _, _, metric, _, error, _ in batch.scores if error is not None}
        whole = len(failing) == len(metrics)
        failing = {name: metric for name, metric in failing.items() if name in said}
        if not failing:
            return (passes, further, _seconds(trial, sample)) if whole else (math.nan,) * 3
    misfits = tuple(kind.__name__ for kind in _MISFITS)
    refused = [f"- {name}: {error}" for name, error in said.items() if error.split(":")[0] in misfits]
    for name, error in said.items():
        if error.split(":")[0] not in misfits:
            tell(f"{name} failed on the first sample: {error}")
    if refused:
        raise ValueError(
            f"{len(refused)} of {len(metrics)} metrics give no number for this "
            f"{type(evaluate.model).__name__} and these data; leave them out, or set the options that they ask for:\n"
            + "\n".join(refused)
        )
    return (math.nan,) * 3


def _tried(
    trial: Evaluation, sample: Sample, method: str, step: Callable[[], object] = lambda: None
) -> tuple[float, Batch]:
    """What scoring a map costs in forward passes, and the results."""
    steps = trial([sample], {method: list(trial.metrics)})
    next(steps)  # before the map is made
    batch = next(steps).batch  # of all steps the same
    step()

    def score() -> None:
        for _ in steps:
            step()

    x = placement_of(trial.model).moved(sample.image[None])
    return in_forwards(score, lambda: trial.model(x)), batch


def _seconds(trial: Evaluation, sample: Sample) -> float:
    """What a forward pass takes for each sample of a batch."""
    count = min(trial.forward_batch, _TIMED)
    x = placement_of(trial.model).moved(sample.image[None]).expand(count, *sample.image.shape)
    taken: list[float] = []
    while len(taken) < _TIMES and sum(taken) < 1:  # a pass may wait for memory, or for other work
        start = time.perf_counter()
        with torch.no_grad():
            output_tensor(in_halves(trial.model, x), given=x).sum().item()
        taken.append(time.perf_counter() - start)
    return min(taken) / len(x)


def suited(metrics: Mapping[str, Metric], columns: int) -> dict[str, Metric]:
    """The metrics, told how many classes there are where they ask for it."""
    return {name: _suited(metric, columns) for name, metric in metrics.items()}


def _suited(metric: Metric, columns: int) -> Metric:
    if metric.given or not getattr(metric.score, "num_classes", 0) > columns > 0:
        return metric
    score = copy.copy(metric.score)
    vars(score)["num_classes"] = columns
    return replace(metric, score=score)
