"""The comparison of methods on questions and their answers."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .._comparison import Comparison
from .._lineup import Entry
from .._methods import methods_named
from .._preliminaries import check_options, workers_for
from .._questioned import Question
from .._runner import Run
from .._settings import METHODS, METRICS, Settings
from .candidate import QuestionPreparation, fitting_methods
from .data import Questions
from .measures import MEASURES, measures_named

_AT_ONCE = 4  # questions that are saved together; each is asked alone
QUESTION_METHODS = (
    "cdam",
    "smooth-cdam",
    "integrated-cdam",
    "token-ablation",
    "attention",
    "rollout",
    "relevance",
    "random",
)


def compare_answers(
    settings: Settings,
    entries: Mapping[str, Entry],
    processor: Any,
    questions: Questions,
    methods: Iterable[str] | Mapping[str, Any],
    metrics: Iterable[str] | Mapping[str, Any],
    out: str | Path,
    command: str,
) -> Comparison:
    """Explain the answers to questions by several methods, measure every explanation, and report; see `compare`."""
    wanted = settings.methods if not isinstance(methods, Mapping) else methods
    if wanted == METHODS:
        settings = replace(settings, methods=QUESTION_METHODS)
        wanted = QUESTION_METHODS
    chosen = fitting_methods(methods_named(wanted))
    measures = settings.metrics if not isinstance(metrics, Mapping) else metrics
    if measures == METRICS:
        pictured = any(map(questions.has_image, range(min(len(questions), settings.limit or len(questions)))))
        measures = tuple(name for name in MEASURES if name.endswith(("deletion", "insertion")))
        measures = measures if pictured else tuple(name for name in measures if not MEASURES[name].reads_image)
        settings = replace(settings, metrics=measures)
    settings = replace(settings, targets="answer", batch_size=min(settings.at_once, _AT_ONCE))
    if settings.save_maps:
        raise ValueError("Maps of answers are not kept: `save_maps` is for images. `xai-discern explain` writes one.")
    if settings.check:
        raise ValueError("Maps of answers are not checked: `check` is for images. `captum_ext.check` checks one.")
    scores = measures_named(measures, settings.options)
    check_options(settings, [*chosen, *scores], list(entries) if len(entries) > 1 else [])
    workers = workers_for(settings, entries)
    prepare = QuestionPreparation(settings, entries, processor, questions, chosen, scores, workers.device)
    models = {name: partial(prepare, name) for name in entries}
    return Run(settings, models, chosen, scores, out, command, workers, Question(by_label=False))()
