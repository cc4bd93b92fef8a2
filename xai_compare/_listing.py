"""What `xai-compare --list` prints: all methods and metrics, and which methods fit a model."""

import contextlib
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as images

from adapters.models import evaluation_mode, placement_of
from adapters.models.example_inputs import example_inputs
from quantus_metrics._outputs import read
from quantus_metrics._probabilities import answers

from ._input_layout import input_layout
from ._lineup import Entry, lineup
from ._marks import mark
from ._method import Method
from ._methods import OTHERS, methods
from ._metrics import direction_of, metrics, our_metrics
from ._models import Subject, moved
from ._pictures import Pictures
from ._seeding import seeded_for
from ._settings import Settings
from ._trial import cost_of
from .questions import MEASURES

_SIDE = 256  # of the random picture that a transform gets


def listing(settings: Settings | None = None) -> Iterator[str]:
    """The lines, one after the other, as trying methods and metrics takes time.

    Args:
        settings: Those of a model, on which every method is tried; None: methods are listed only.

    Raises:
        ValueError: if the model cannot be loaded, or runs on no random image.
    """
    models = {} if settings is None else lineup(settings.model, settings.checkpoint, pretrained=settings.pretrained)
    yield from _methods([_Fitting(settings, name, entry) for name, entry in models.items()] if settings else [])
    yield from ("", "Metrics, and whether higher or lower scores are better:")
    found, ours = metrics(), set(our_metrics())
    for name in sorted(found, key=lambda name: name not in ours):
        cls, said = found[name], mark(name)
        better = direction_of(cls) or "neither"
        yield f"  {name:32} {better:8} {cls.__module__.split('.')[0]}.{cls.__name__}" + f" ({said})" * bool(said)
    yield from ("", "Metrics of answers to questions, for data with the columns question and answer:")
    for name, measure in MEASURES.items():
        yield f"  {name:32} {measure.about}"


def table_of_methods() -> Iterator[str]:
    """The methods as a table of the documentation, in Markdown; those of other packages are left out."""
    yield from ("| method | title | what it is | forward passes |", "|---|---|---|---|")
    for group, rows in grouped(methods()):
        if group == OTHERS:
            continue
        yield f"| **{group}** | | | |"
        for name, method in rows.items():
            yield f"| `{name}` | {method.title} | {method.about} | {method.cost} |"


def grouped(known: Mapping[str, Method]) -> Iterator[tuple[str, dict[str, Method]]]:
    """Methods by group, in the order in which groups are first met."""
    order = list(dict.fromkeys(method.group for method in known.values()))
    ranked = sorted(known.items(), key=lambda pair: order.index(pair[1].group))
    for group, pairs in itertools.groupby(ranked, key=lambda pair: pair[1].group):
        yield group, dict(pairs)


def _methods(fittings: "list[_Fitting]") -> Iterator[str]:
    yield "Methods, and what an explanation costs in forward passes, as measured on ResNet-18 or the digit model:"
    for one in fittings:
        yield f"(at the end: tried on a random input {tuple(one.x.shape[1:])} of {one.subject.name})"
    for group, rows in grouped(methods()):
        yield f" {group}"
        for name, method in rows.items():
            line = f"  {name:18}  {method.about[:70]:70}  {method.cost:33}"
            yield "  ".join([line, *(fitting(name, method) for fitting in fittings)]).rstrip()


class _Fitting:
    """Tries methods on one random input of a model.

    Raises:
        ValueError: if the model cannot be loaded, or runs on no random image.
    """

    def __init__(self, settings: Settings, name: str, entry: Entry) -> None:
        self._settings = settings
        self.subject = entry.load(settings, name)
        self.model = moved(self.subject.model, settings.device or "cpu", settings.dtype).eval()
        self.x, outputs = _first_that_runs(self.model, self.subject, settings)
        self.target = answers(outputs, None).argmax(1)

    def __call__(self, name: str, method: Method) -> str:
        """Whether a method fits, in a line."""
        settings = self._settings
        try:
            explain = method.explain(settings.options.get(name, {}), settings.at_once, settings.output or None)
            quiet = contextlib.redirect_stderr(io.StringIO())  # pytorch-grad-cam's progress bars
            with warnings.catch_warnings(), quiet, evaluation_mode(self.model):
                warnings.simplefilter("ignore")
                return f"fits, {cost_of(explain, method, self.model, self.x, self.target, settings.seed):.3g} forwards"
        except Exception as error:
            said = (str(error) or type(error).__name__).strip().splitlines()[0]
            return f"does not fit: {said if len(said) <= 160 else said[:157] + '...'}"


def _first_that_runs(model: nn.Module, subject: Subject, settings: Settings) -> tuple[Tensor, Tensor]:
    """A random input on which a model runs, and its outputs."""
    said = ""
    for x in _inputs(model, subject, settings.seed):
        given = placement_of(model).moved(x)
        try:
            with torch.no_grad():
                return given, read(model(given), given, settings.output or None)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    raise ValueError(f"The {type(model).__name__} runs on none of the random images tried: {said}")


def _inputs(model: nn.Module, subject: Subject, seed: int) -> Iterator[Tensor]:
    """Random inputs: a picture through the model's transform, or of the sizes that it may be made for."""
    with seeded_for(seed, "image", 0):
        if subject.transform is not None:
            picture: Image.Image = images.to_pil_image(torch.randint(256, (3, _SIDE, _SIDE), dtype=torch.uint8))
            yield Pictures(subject.transform, input_layout(model)).ready(picture)[None]
            return
        for empty in example_inputs(model):
            if isinstance(empty, Tensor):
                yield torch.rand(empty.shape)
