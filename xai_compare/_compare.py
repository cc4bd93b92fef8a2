"""The comparison as a Python function."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapters.models import OutputChoice
from quantus_metrics._metric import TensorMetric
from quantus_metrics._probabilities import Activation, checked_activation
from quantus_metrics._targets import Function

from ._batches import first_items, is_stream
from ._candidate import Preparation
from ._comparison import Comparison
from ._lineup import lineup
from ._methods import methods_named
from ._metrics import Metric, metrics_named
from ._models import python_function
from ._preliminaries import check_options, workers_for
from ._questioned import Question
from ._run_folder import RunFolder
from ._runner import Run
from ._settings import METHODS, METRICS, Settings, from_mapping
from ._trackers import trackers_named
from .questions import Questions, compare_answers, questions_in

_PERTURBED = 1600  # images, of a batch for one metric
_SHAPE = (3, 4096, 4096)  # in which boxes of any size lie


def compare(
    model: str | nn.Module | Sequence[str | nn.Module] | Mapping[str, str | nn.Module] = "digits",
    data: Any = "",
    *,
    out: str | Path,
    methods: Iterable[str] | Mapping[str, Any] = METHODS,
    metrics: Iterable[str] | Mapping[str, Any] = METRICS,
    transform: Callable[..., Tensor] | None = None,
    labels: Sequence[str] | Mapping[int, str] = (),
    output: OutputChoice = None,
    processor: Any = None,
    targets: str | Function | Sequence[Function] = "",
    activation: Activation = "softmax",
    command: str = "",
    **settings: Any,
) -> Comparison:
    """Explain samples by several methods, score every explanation by several metrics, and report.

    What `xai-compare` does, for a model and data that you already have in Python. Results are saved as they are
    computed; the same call resumes an interrupted run.

    Args:
        model: A model that maps images to logits, or a name as on the command line. It runs in evaluation mode and is
            left unchanged. Or several to compare on the same samples: a list, or a mapping from names of your choice.
        data: A folder of images; a table (.csv, .parquet or a pandas.DataFrame) with columns file, label, mask, box
            and split; "hf:NAME[:CONFIG][:SPLIT]"; "digits"; or a dataset or DataLoader: images (channels, height,
            width), tuples of image, label and mask, or dictionaries of these; or (images, labels). Signals (channels,
            length) and volumes (channels, depth, height, width) are images, too. Tables, lists and datasets with
            question and answer, and an image where there is one, ask a language model; the answers are explained.
        out: The run's folder: a path, or a URL of a file system that fsspec knows, such as "s3://BUCKET/RUN".
        methods: Names; or a mapping from names of your choice to method names, classes of Captum or pytorch-grad-cam,
            or functions of the model that return an instance of one.
        metrics: Names, or a mapping from names of your choice to Quantus metrics.
        transform: Preprocesses a PIL image for all models; None: each model's own, or the data are tensors.
        labels: The names of the model's classes in their order, or by number, with which those in the data are matched;
            also for the report.
        output: Where the model returns several tensors, which one its logits are: a name, an index, a tuple of them, a
            name with dots for what is nested, or a function of what it returns. None: by name.
        processor: Of a language model that is asked questions its processor or tokenizer.
        targets: "predicted", the likeliest class; "label", the sample's; "answer", that of a question; or a function of
            one sample's output that returns a number, as for pytorch-grad-cam, or a list with one for each sample: for
            several labels, masks, detections or numbers. Scores of probabilities hand it probabilities.
        activation: What makes probabilities of the outputs: "softmax"; "sigmoid", where classes do not exclude each
            other; "identity", where the outputs are probabilities or no classes; or a function of the outputs.
        command: The command shown in the report.
        **settings: As in `Settings`: split, options, limit, seed, device, dtype, batch_size, forward_batch, gallery,
            resamples, pretrained, checkpoint, check, save_maps, retry_failed, log_with.

    Returns:
        The results.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a name or setting is unknown, the device is not available, a method does not fit the model, or
            the folder holds another run.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from xai_compare import compare
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> results = compare(model, torch.rand(4, 3, 4, 4), out=folder, methods=["ixg"], metrics=["compactness"])
        >>> len(results.scores())
        4
    """
    named = {
        name: value for name, value in (("methods", methods), ("metrics", metrics)) if not isinstance(value, Mapping)
    }
    data = "digits" if isinstance(data, str) and not data and model == "digits" else data
    given = from_mapping(
        {"out": str(out)}
        | ({"model": model} if _are_names(model) else {})
        | ({"data": str(data)} if isinstance(data, str | Path) else {})
        | named
        | {name: value for name, value in (("targets", targets), ("activation", activation)) if isinstance(value, str)}
        | settings
    )
    if isinstance(data, str) and not data:
        raise ValueError(
            "Expected `data`: a folder of images, 'digits', or a dataset. On the command line: --data FOLDER"
        )
    trackers_named(given.log_with)  # an unknown one is refused before any work
    entries = lineup(model, given.checkpoint, pretrained=given.pretrained)
    if not _are_names(model):
        titles = [entry.title for entry in entries.values()]
        given = replace(given, model=titles[0] if len(titles) == 1 else tuple(titles))
    functions = _functions(targets)
    activation = checked_activation(_named(activation))
    options = dict(given.options.get("data", {}))
    questions = None if functions else _questions(data, given, options)
    if questions is not None:
        return compare_answers(given, entries, processor, questions, methods, metrics, out, command)
    chosen = methods_named(methods if isinstance(methods, Mapping) else given.methods)
    scores = metrics_named(metrics if isinstance(metrics, Mapping) else given.metrics, given.options, activation)
    check_options(given, [*chosen, *scores], list(entries) if len(entries) > 1 else [])
    batch_size = given.batch_size or RunFolder(out).batch_size() or _batch_size(scores)
    given = replace(given, batch_size=batch_size)
    by_label = not functions and (given.targets == "label" or (given.targets == "" and given.data == "digits"))
    question = Question(by_label, functions, activation)
    workers = workers_for(given, entries)
    known = _checked_labels(labels) or _checked_labels(options.pop("labels", ()))
    if len(entries) > 1 and not isinstance(data, str | Path | Mapping) and is_stream(data):
        data = first_items(data, given.limit)  # to be read for each model
    output = None if output == "" else output
    prepare = Preparation(
        given, entries, data, options, known, transform, output, question, chosen, scores, workers.device
    )
    models = {name: partial(prepare, name) for name in entries}
    return Run(given, models, chosen, scores, out, command, workers, question, output)()


def _batch_size(metrics: Mapping[str, Metric]) -> int:
    """As few samples as need no more perturbed images than this for a map of each, so that a stop loses little work."""
    ours = [one.score for one in metrics.values() if isinstance(one.score, TensorMetric)]
    most = max((score.passes(_SHAPE) for score in ours), default=1)
    return max(1, min(Settings().at_once, _PERTURBED // max(1, most)))


def _are_names(model: Any) -> bool:
    """Is this a name, a list of names, or a mapping to names?"""
    if isinstance(model, nn.Module) or not isinstance(model, Iterable):
        return False
    return all(isinstance(one, str) for one in (model.values() if isinstance(model, Mapping) else model))


def _named(value: Any) -> Any:
    """The value, or the function that a name stands for."""
    given = isinstance(value, str) and value.startswith("python:")
    return python_function(value.removeprefix("python:")) if given else value


def _functions(targets: Any) -> list[Function]:
    """The functions among targets, one or many; none where these are classes."""
    found = _named(targets)
    if isinstance(found, str):
        return []
    many = [found] if callable(found) else list(found) if isinstance(found, list | tuple) else []
    wrong = next((one for one in many if not callable(one)), None if many else found)
    if wrong is not None:
        raise TypeError(
            "Expected `targets` to be 'predicted', 'label', a function of one sample's output or a list of functions, "
            f'got {wrong!r}. Classes of your own are labels: pass (images, classes) as `data` and targets="label".'
        )
    return many


def _checked_labels(labels: Any) -> list[str]:
    if isinstance(labels, Mapping) and sorted(labels) == list(range(len(labels))):  # as transformers' id2label
        labels = [labels[index] for index in range(len(labels))]
    listed = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [None]
    if not all(isinstance(one, str) for one in listed):
        raise TypeError(f"Expected `labels` to be a list of the classes' names, got {labels!r}.")
    return list(map(str, listed))


def _questions(data: Any, given: Settings, options: Mapping[str, Any]) -> Questions | None:
    """Data with questions, where the answers are explained."""
    wanted = given.targets == "answer"
    named = isinstance(data, str) and data.startswith("hf:")  # which is loaded once
    found = questions_in(data, given.split, options) if wanted or (given.targets == "" and not named) else None
    if wanted and found is None:
        raise ValueError(
            'targets="answer" needs data with question and answer, and file where the questions are about images: a '
            "table (.csv, .tsv, .parquet, .jsonl), a folder of images with one as questions.csv, or a list of mappings."
        )
    return found
