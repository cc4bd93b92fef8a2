"""A model that answers questions, as one of the models of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from captum_ext._answer_attribution import AnswerAttribution

from .._compared import Checked
from .._cost import in_forwards
from .._evaluation import Step
from .._lineup import Entry
from .._methods import Method, Noise
from .._models import Subject, moved, python_function, weights_hash
from .._progress import progress
from .._samples import Sample
from .._seeding import seeded_for
from .._settings import Settings
from .data import AskedSample, Questions
from .evaluation import QuestionEvaluation, small_picture
from .language_model import loaded
from .measures import Measure
from .prompt import Prompt, probability, prompt_of


@dataclass(frozen=True)
class QuestionCandidate:
    """A model of a run; see `Candidate`, which images have in its place."""

    name: str
    subject: Subject
    questions: Questions
    settings: Settings
    count: int
    evaluate: QuestionEvaluation

    @property
    def metrics(self) -> Mapping[str, Measure]:
        """The metrics."""
        return self.evaluate.metrics

    def identity(self) -> dict[str, Any]:
        """What the numbers of this model depend on."""
        return {"weights": weights_hash(self.evaluate.model), "samples": self.questions.fingerprint()}

    def facts(self) -> dict[str, Any]:
        """What the run says of it."""
        return {
            "title": self.subject.name,
            "data": self.questions.description,
            "classes": {},
            "labels": [],
            "normalised": {},
        }

    def check(self, methods: Mapping[str, Method], metrics: Mapping[str, Measure], *, may_miss: bool) -> Checked:
        """Try methods and metrics on the first question that can be read; see `Candidate.check`."""
        if not methods and not metrics:
            return Checked()
        prompt = self._first()
        forwards: dict[str, float] = {}
        unfit: dict[str, str] = {}
        for name in progress(methods, desc="checking methods", unit="method"):
            try:
                forwards[name] = self._cost(name, prompt)
            except Exception as error:
                unfit[name] = self._advice(str(error))
        if unfit and not may_miss:
            reasons = "\n".join(f"- {name}: {reason}" for name, reason in unfit.items())
            raise ValueError(
                f"{len(unfit)} of {len(methods)} methods do not fit this {type(self.evaluate.model).__name__} and its "
                f"questions; leave them out, or set the options that they ask for:\n{reasons}"
            )
        fitting = next((name for name in self.evaluate.methods if name not in unfit), None)
        if fitting is not None:
            self._check_metrics(fitting, metrics, prompt)
        return Checked(forwards, unfit)

    def _cost(self, name: str, prompt: Prompt) -> float:
        with seeded_for(self.evaluate.seed, "check", 0):
            return in_forwards(
                lambda: self.evaluate.relevance(name, prompt),
                lambda: probability(prompt.model, prompt.inputs, prompt.answer),
            )

    def _check_metrics(self, method: str, metrics: Mapping[str, Measure], prompt: Prompt) -> None:
        found = self.evaluate.relevance(method, prompt)
        refused = []
        for name, metric in metrics.items():
            try:
                metric.score(prompt, found, 1)
            except (TypeError, ValueError) as error:
                refused.append(f"- {name}: {error}")
        if refused:
            raise ValueError(
                f"{len(refused)} of {len(metrics)} metrics give no number for the first question, "
                f"{prompt.sample.name!r}; leave them out:\n" + "\n".join(refused)
            )

    def _advice(self, said: str) -> str:
        return said.replace("pass `images=False`", "leave out the metrics of patches")

    def _first(self) -> Prompt:
        said = ""
        for found in (_read(self.questions, index) for index in range(self.count)):
            if isinstance(found, AskedSample):
                try:
                    return prompt_of(self.evaluate.model, self.evaluate.processor, found)
                except Exception as error:
                    found = found.index, found.name, f"{type(error).__name__}: {error}"
            said = said or f"{found[1]}: {found[2]}"
        raise ValueError(f"None of the {self.count} questions can be asked. The first one: {said}")

    def work(self, start: int, cells: Mapping[str, list[str]]) -> Iterator[Step]:
        """The work on a batch of questions."""
        end = min(start + self.settings.at_once, self.count)
        rows = [_read(self.questions, index) for index in range(start, end)]
        skipped = [one for one in rows if not isinstance(one, AskedSample)]
        for step in self.evaluate([one for one in rows if isinstance(one, AskedSample)], cells):
            step.batch.skipped += skipped
            skipped = []
            yield step

    def read(self, index: int) -> Sample | tuple[int, str, str]:
        """The image of a question, for the gallery; index, name and reason where there is none."""
        found = _read(self.questions, index)
        if not isinstance(found, AskedSample):
            return found
        if found.picture is None:
            return index, found.name, "it has no image to show"
        return Sample(index, found.name, small_picture(found.picture), asked=found.asked)


@dataclass(frozen=True)
class QuestionPreparation:
    """What makes the candidates of a run on questions, one at a time."""

    settings: Settings
    entries: Mapping[str, Entry]
    processor: Any
    questions: Questions
    methods: Mapping[str, Method]
    metrics: Mapping[str, Measure]
    device: str

    def __call__(self, name: str) -> QuestionCandidate:
        """A model on its device with the questions.

        Raises:
            ValueError: if it cannot be loaded, or its processor is not known.
        """
        settings, entry = self.settings, self.entries[name]
        count = min(len(self.questions), settings.limit or len(self.questions))
        model, processor = self._loaded(entry, any(map(self.questions.has_image, range(count))))
        title = entry.title if isinstance(entry.model, str) or entry.is_named else type(model).__name__
        model = moved(model, self.device, settings.dtype).eval() if isinstance(entry.model, nn.Module) else model
        evaluate = QuestionEvaluation(
            model, processor, self.methods, self.metrics, settings.options, settings.seed, settings.gallery
        )
        return QuestionCandidate(name, Subject(model, title), self.questions, settings, count, evaluate)

    def _loaded(self, entry: Entry, with_image: bool) -> tuple[nn.Module, Any]:
        if isinstance(entry.model, nn.Module):
            if self.processor is None:
                raise ValueError(
                    f"Expected `processor`, the processor or tokenizer of the {type(entry.model).__name__}, which asks "
                    "it the questions."
                )
            return entry.model, self.processor
        kind, _, rest = entry.model.partition(":")
        if kind == "transformers":
            return loaded(rest, with_image, self.device, self.settings.dtype or "auto")
        if kind == "python":
            made = python_function(rest)(**self.settings.options.get("model", {}))
            if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
                return moved(made[0], self.device, self.settings.dtype).eval(), made[1]
            raise ValueError(f"Expected {entry.model} to return (model, processor), got {type(made)}.")
        raise ValueError(
            f"Expected a model that answers questions, transformers:NAME or python:MODULE:FUNCTION; got {entry.model!r}"
        )


def fitting_methods(found: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that explain answers.

    Raises:
        ValueError: if others are wanted.
    """
    others = [name for name, method in found.items() if not explains_answers(method)]
    if others:
        raise ValueError(
            f"Expected methods that explain answers to questions (classes with `attribute_answer`, such as cdam, "
            "smooth-cdam, integrated-cdam, token-ablation, relevance, attention, rollout, and random), got "
            f"{', '.join(others)}."
        )
    return dict(found)


def explains_answers(method: Method) -> bool:
    """Has a method `attribute_answer`? Of a user's function that is seen when it is called."""
    make = method.make
    if isinstance(make, type):
        return issubclass(make, AnswerAttribution | Noise) or hasattr(make, "attribute_answer")
    return not method.group


def _read(questions: Questions, index: int) -> AskedSample | tuple[int, str, str]:
    try:
        return questions.read(index)
    except Exception as error:
        return index, questions.name(index), f"{type(error).__name__}: {error}"[:500]
