"""The models that the page offers, and the methods that fit each of them."""

import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from adapters.models import evaluation_mode
from captum_ext import CDAM
from xai_compare._method import Method
from xai_compare._methods import methods

from ._subject import ImageModel, compares_texts, device_of, loaded_model
from ._targets import class_named, explains_tokens

FIRST = ("cdam", "smooth-cdam", "integrated-cdam", "token-ablation", "attention", "rollout", "relevance", "gradcam")
"""The methods that the page shows at once, and in this order."""
_CONTROLS_AND_WRAPPERS = ("random", "randomcam", "raw-attention", "mhex-cam")
_SLOW, _TOO_SLOW = 10, 110  # forward passes
_OTHERS = 2  # models beyond those offered that are kept loaded
_LIBRARIES = ("timm", "torchvision", "transformers")


@dataclass(frozen=True)
class Loaded:
    """A model that is ready.

    Attributes:
        name: As it was asked for.
        model: The model.
        methods: Those that fit it, by name.
    """

    name: str
    model: ImageModel
    methods: Mapping[str, Method]

    @property
    def random(self) -> bool:
        """Whether its weights are random."""
        return self.model.subject.weights == "random"

    @property
    def compares_texts(self) -> bool:
        """Whether it compares images with texts, and has no classes."""
        return self.model.processor is not None

    @property
    def usual(self) -> str:
        """The method that is chosen at first."""
        return next(name for name in ("cdam", "gradcam", *self.methods) if name in self.methods)

    def classes(self, count: int) -> list[str]:
        """The names of so many classes."""
        return [class_named(number, self.model.subject.labels) for number in range(count)]


class Models:
    """The models of a page; a name that is not among them is refused unless any model may be loaded.

    Args:
        names: Those offered, as for `xai-discern explain --model`.
        pretrained: Load the weights that the library has; None: those of transformers and of folders only.
        device: Where they run; empty: on a GPU, if there is one.
        any_model: Whether users may name other models of timm, torchvision and transformers.

    Raises:
        TypeError: if `names` is not a list of texts.
        ValueError: if it is empty, or two are the same.
    """

    def __init__(
        self, names: Sequence[str], pretrained: bool | None = None, device: str = "", *, any_model: bool = False
    ) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"Expected `models` to be a list of names, as ['digits'], got {names!r}.")
        if not names or len(set(names)) != len(names):
            raise ValueError(f"Expected `models` to be different names, at least one, got {list(names)}.")
        self.names, self.any_model = tuple(names), any_model
        self._pretrained, self._device = pretrained, device_of(device)
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Loaded:
        """A model; loaded when it is first asked for.

        Raises:
            ValueError: if it is not offered, or cannot be loaded.
        """
        if name not in self.names:
            self._check_other(name)
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _ready(name, self._pretrained, self._device)
                self._forget()
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def _check_other(self, name: str) -> None:
        if not self.any_model:
            raise ValueError(f"This page offers {', '.join(self.names)}, and no other models; got {name!r}.")
        if name.partition(":")[0] not in _LIBRARIES:
            forms = ", ".join(f"{library}:NAME" for library in _LIBRARIES)
            raise ValueError(f"Expected {forms} or one of the list, got {name!r}.")

    def _forget(self) -> None:
        """Keep few of the models that are not among those offered."""
        others = [name for name in self._loaded if name not in self.names]
        for name in others[:-_OTHERS]:
            del self._loaded[name]


def _ready(name: str, pretrained: bool | None, device: str) -> Loaded:
    model = loaded_model(name, pretrained, "", device, texts=compares_texts(name))
    return Loaded(name, model, _fitting(model))


def forwards(method: Method) -> float:
    """What a map costs in forward passes, as `xai-compare --list` says it."""
    found = re.findall(r"[\d.]+$", method.cost.strip())
    return float(found[0]) if found else float("inf")


def is_slow(method: Method) -> bool:
    """Whether a map takes longer than a moment."""
    return forwards(method) > _SLOW


def _fitting(model: ImageModel) -> dict[str, Method]:
    """The methods for a model, those shown at once first; without those that take minutes, and controls."""
    tokens = _has_tokens(model)

    def fits(name: str, method: Method) -> bool:
        if name in _CONTROLS_AND_WRAPPERS or forwards(method) > _TOO_SLOW:
            return False
        if explains_tokens(method.make):
            return tokens
        by_rules = "rules of backpropagation" in method.group or "no transformers" in method.about  # of ReLUs
        return model.processor is None and not (tokens and by_rules)

    known = {name: method for name, method in methods().items() if fits(name, method)}
    order = [*(name for name in FIRST if name in known), *(name for name in known if name not in FIRST)]
    return {name: known[name] for name in order}


def _has_tokens(model: ImageModel) -> bool:
    """Whether this project's methods explain it, tried on a black picture."""
    x = model.ready(Image.new("RGB", (64, 64)))
    with warnings.catch_warnings(), evaluation_mode(model.model), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            CDAM(model.run).path(x)
        except (ValueError, NotImplementedError):
            return False
    return True
