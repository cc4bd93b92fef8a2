"""One of the models that a run compares, with its data and how it is evaluated."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from adapters.models import OutputChoice, evaluation_mode, output_tensor, placement_of
from quantus_metrics._outputs import Returned

from ._compared import Checked
from ._data import Request, as_samples
from ._evaluation import Evaluation, Step
from ._input_layout import input_layout
from ._lineup import Entry
from ._methods import Method
from ._metrics import Metric
from ._models import PlainLogits, Subject, moved, weights_hash
from ._pictures import Pictures
from ._questioned import Inside, Question
from ._samples import Sample, Samples
from ._settings import Settings
from ._trial import check_metrics, costs_of_methods, suited, tell_of_outputs


@dataclass(frozen=True)
class Candidate:
    """A model of a run.

    Attributes:
        name: The model's name in the tables.
        subject: The model.
        samples: What is explained, preprocessed for it.
        settings: Of the run.
        count: How many of the samples.
        outputs: How many outputs the model has; 0 where functions are explained.
        shape: Of all samples.
        evaluate: How batches are evaluated.
    """

    name: str
    subject: Subject
    samples: Samples
    settings: Settings
    count: int
    outputs: int
    shape: torch.Size
    evaluate: Evaluation

    @property
    def classes(self) -> int:
        """How many classes a label may be; one logit answers for two."""
        return 0 if self.evaluate.question.functions else max(2, self.outputs)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics, told how many classes the model has."""
        return self.evaluate.metrics

    def identity(self) -> dict[str, Any]:
        """What the numbers of this model depend on."""
        return {"weights": weights_hash(self.subject.model), "samples": self.samples.fingerprint()}

    def facts(self) -> dict[str, Any]:
        """What the run says of it."""
        subject, numbers = self.subject, dict(self.samples.classes.numbers)
        known = subject.mean is not None and subject.std is not None
        return {
            "title": f"{subject.name} with RANDOM WEIGHTS" if subject.weights == "random" else subject.name,
            "data": self.samples.description,
            "classes": {} if self.samples.classes.misfit(self.classes) else numbers,
            "labels": list(subject.labels),
            "normalised": {"mean": list(subject.mean or ()), "std": list(subject.std or ())} if known else {},
        }

    def check(self, methods: Mapping[str, Method], metrics: Mapping[str, Metric], *, may_miss: bool) -> Checked:
        """Try methods and metrics.

        Args:
            methods: Those to try.
            metrics: Those to try.
            may_miss: Is a method that does not fit this model left out? Else it is an error.

        Raises:
            ValueError: if a method does not fit or a metric gives no number; the message says why.
        """
        if not methods and not metrics:
            return Checked()
        first = _first(map(self.read, range(self.count)))
        tell_of_outputs(self.evaluate, first)
        forwards, unfit = costs_of_methods(self.evaluate, methods, first)
        if unfit and not may_miss:
            raise ValueError(
                f"{len(unfit)} of {len(methods)} methods do not fit this {type(self.evaluate.model).__name__}; leave "
                "them out, or set the options that they ask for:\n" + listed(unfit)
            )
        explains = {name: explain for name, explain in self.evaluate.explains.items() if name not in unfit}
        cost = (math.nan,) * 3
        if explains:
            fitting = replace(self.evaluate, explains=explains)
            readable = (one for one in map(self.read, range(self.count)) if isinstance(one, Sample))
            cost = check_metrics(fitting, metrics, islice(readable, 2))
        maps = 2 if any(metric.compares_classes for metric in metrics.values()) else 1
        return Checked(forwards, unfit, maps, *cost)

    def work(self, start: int, cells: Mapping[str, list[str]]) -> Iterator[Step]:
        """The work on a batch of samples."""
        size = self.settings.at_once
        found = [self.read(index) for index in range(start, min(start + size, self.count))]
        for step in self.evaluate([one for one in found if isinstance(one, Sample)], cells):
            step.batch.skipped = [one for one in found if not isinstance(one, Sample)]
            yield step

    def read(self, index: int) -> Sample | tuple[int, str, str]:
        """A sample, or index, name and error of one that is skipped."""
        found = _read(self.samples, index, by_label=self.evaluate.question.by_label)
        if not isinstance(found, Sample):
            return found
        problem = self._unexpected(found)
        return (index, found.name, problem) if problem else found

    def _unexpected(self, sample: Sample) -> str:
        """Why a sample does not fit the first one or the model, or nothing."""
        if sample.image.shape != self.shape:
            shapes = f"{tuple(sample.image.shape)}, the first one's {tuple(self.shape)}"
            return f"its shape is {shapes}: let the transform resize"
        if not self.evaluate.question.by_label:
            return ""
        if sample.hot not in (0, self.classes):
            return f"its label is {sample.hot} zeros and ones, but the model has {self.classes} classes"
        if any(not 0 <= label < self.classes for label in sample.labels):
            return f"its label is {', '.join(map(str, sample.labels))}, but the model has {self.classes} classes"
        return ""


@dataclass(frozen=True)
class Preparation:
    """What makes the candidates of a run, one at a time.

    Attributes:
        settings: Of the run.
        entries: The models that can be loaded.
        data: What was given as data.
        options: Arguments of the function that makes the data.
        labels: The names of the classes; empty: each model's own.
        transform: Preprocesses a picture for all models; None: each model's own.
        output: Which tensor of what a model returns the logits are; None: by name.
        question: What is asked of each sample.
        methods: The methods.
        metrics: The metrics.
        device: Where models run.
    """

    settings: Settings
    entries: Mapping[str, Entry]
    data: Any
    options: Mapping[str, Any]
    labels: Sequence[str]
    transform: Callable[..., Tensor] | None
    output: OutputChoice
    question: Question
    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    device: str

    def __call__(self, name: str) -> Candidate:
        """A model on its device with its data.

        Raises:
            ValueError: if it cannot be loaded, the data's labels cannot be classes of it, no sample can be read, or it
                cannot run on the first one.
        """
        subject, settings, question = self._subject(name), self.settings, self.question
        samples = self._samples(subject)
        with evaluation_mode(subject.model):
            count = min(len(samples), settings.limit or len(samples))
            first = _first(_read(samples, index, by_label=question.by_label) for index in range(count))
            model, outputs = _plain(moved(subject.model, self.device, settings.dtype), subject, first, question)
        if question.by_label:
            samples.check_labels(max(2, outputs))
        metrics = suited(self.metrics, len(question.functions) or max(2, outputs))
        evaluate = Evaluation(
            model,
            {method: self._explain(method) for method in self.methods},
            metrics,
            question,
            outputs,
            settings.seed,
            settings.forward_batch,
            settings.gallery,
            settings.save_maps,
        )
        return Candidate(name, subject, samples, settings, count, outputs, first.image.shape, evaluate)

    def _subject(self, name: str) -> Subject:
        subject = self.entries[name].load(self.settings, name)
        if self.transform is not None:  # which need not normalise as the model's own does
            subject = replace(subject, transform=self.transform, mean=None, std=None)
        return replace(subject, labels=self.labels or subject.labels, output=self.output)

    def _samples(self, subject: Subject) -> Samples:
        settings, functions = self.settings, self.question.functions
        pictures = Pictures(subject.transform, input_layout(subject.model))
        request = Request(pictures, subject.labels, settings.split, settings.limit, settings.seed, self.options)
        samples = as_samples(self.data, request)
        if len(functions) not in (0, 1, len(samples)):
            raise ValueError(f"Expected one function for each of {len(samples)} samples, or one, got {len(functions)}.")
        if self.question.by_label:
            samples.check_labels()
        elif samples.advice:
            warnings.warn(samples.advice, stacklevel=3)
        return samples

    def _explain(self, name: str) -> Inside:
        options = self.settings.options.get(name, {})
        explain = self.methods[name].explain(options, self.settings.at_once, self.output)
        return Inside(explain, self.question)


def _plain(model: nn.Module, subject: Subject, first: Sample, question: Question) -> tuple[nn.Module, int]:
    """The model, as one that returns logits as a tensor, and how many these are; 0 where functions are explained."""
    try:
        with torch.no_grad():
            output = model(placement_of(model).moved(first.image[None]))
    except Exception as error:
        raise ValueError(
            f"The {type(model).__name__} cannot run on sample {first.name}, of shape {tuple(first.image.shape)}: "
            f"{type(error).__name__}: {error} (its first convolution takes {input_layout(model)})"
        ) from error
    if question.functions and subject.output is None:
        return model, 0
    chosen = output_tensor(output, subject.output, first.image[None])
    outputs = 0 if question.functions else Returned(chosen, first.image[None]).of_classes(final=True).shape[1]
    return model if chosen is output else PlainLogits(model, subject.output).eval(), outputs


def _first(found: Iterable[Sample | tuple[int, str, str]]) -> Sample:
    """The first sample that can be used."""
    said, count = "", 0
    for one in found:
        if isinstance(one, Sample):
            return one
        said, count = said or f" The first one: {one[1]}: {one[2]}", count + 1
    raise ValueError(f"None of the {count} samples can be used.{said}")


def _read(samples: Samples, index: int, *, by_label: bool) -> Sample | tuple[int, str, str]:
    """A sample, or index, name and error of one that cannot be used."""
    try:
        sample = samples.read(index)
    except Exception as error:
        return index, samples.name(index), f"{type(error).__name__}: {error}"[:500]
    return (index, sample.name, sample.unlabelled) if by_label and not sample.labels else sample


def listed(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, a line each."""
    return "\n".join(f"- {name}: {reason}" for name, reason in reasons.items())
