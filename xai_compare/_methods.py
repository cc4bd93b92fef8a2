"""The explanation methods that can be compared, by name."""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import captum_ext

from ._captum import CAPTUM
from ._method import Explain as Explain
from ._method import Make, Row, Table, methods_of
from ._method import Method as Method
from ._names import by_slug, from_entry_points, select, slug

GROUP = "xai_compare.methods"
OTHERS = "Entry points of other packages"


class Noise:
    """Noise, as a control."""

    def __init__(self, model: nn.Module) -> None:
        del model

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        return torch.randn(len(inputs), 1, *inputs.shape[2:], device=inputs.device)


_OURS: Table = {
    "captum_ext: class-discriminative attention": {
        "cdam": Row(captum_ext.CDAM, "CDAM", "gradient times tokens before the last attention", "1"),
        "smooth-cdam": Row(captum_ext.SmoothCDAM, "Smooth CDAM", "CDAM averaged over noise on the tokens", "1.3"),
        "integrated-cdam": Row(
            captum_ext.IntegratedCDAM, "Integrated CDAM", "CDAM integrated from zero to the tokens", "1.2"
        ),
    },
    "captum_ext: exact effects of tokens": {
        "token-ablation": Row(
            captum_ext.TokenAblation, "Token ablation", "score less that without the token in the last attention", "1.2"
        ),
        "token-shapley": Row(
            captum_ext.TokenShapley, "Token Shapley", "the tokens' fair shares of what they add together", "9.5"
        ),
    },
    "captum_ext: attention baselines": {
        "attention": Row(
            captum_ext.AttentionMap, "Attention map", "weights of the last attention; the same for all classes", "1"
        ),
        "rollout": Row(
            captum_ext.AttentionRollout,
            "Attention rollout",
            "product of all attentions; the same for all classes",
            "1.1",
        ),
        "relevance": Row(
            captum_ext.RelevancePropagation,
            "Relevance propagation",
            "all attentions weighted by their gradients",
            "2.2",
        ),
        "partial-lrp": Row(captum_ext.PartialLRP, "Partial LRP", "relevance of the heads of the last attention", "1.4"),
    },
    "captum_ext: maps of the wrappers CA-Stream and MHEX": {
        "raw-attention": Row(
            captum_ext.RawAttention, "RawAttention", "attention of a CA-Stream; the same for all classes", "1"
        ),
        "mhex-cam": Row(captum_ext.MHEXCAM, "MHEXCAM", "evidence of an MHEX's heads for the class", "1"),
    },
}
_CONTROLS: Table = {"Controls": {"random": Row(Noise, "random", "normal noise", "0")}}


def methods() -> dict[str, Method]:
    """All methods: this project's, Captum's, pytorch-grad-cam's if it is installed, and those of entry points."""
    known = methods_of(_OURS, lambda row: "captum_ext." + _named(row.make).rpartition(".")[2])
    known |= methods_of(CAPTUM, lambda row: f"captum.attr: {row.title}", needs_warm_up=False)
    known |= _grad_cams()
    known |= methods_of(_CONTROLS, lambda _: "normal noise, a control")
    made = {name: method.make for name, method in known.items()}
    for name, make in from_entry_points(GROUP, made).items():
        about = (inspect.getdoc(make) or "").partition("\n")[0].rstrip(".")
        known[name] = Method(make, _named(make), title=name, group=OTHERS, about=about)
    return known


def _grad_cams() -> dict[str, Method]:
    try:
        cams = importlib.import_module("xai_compare._cams")
    except ModuleNotFoundError:  # pytorch_grad_cam is not installed
        return {}
    found = methods_of(cams.CAMS, lambda row: f"pytorch_grad_cam.{row.title}")
    return found | {name: replace(found[name], needs_warm_up=False) for name in cams.OF_MANY_PASSES}


def methods_named(wanted: Any) -> dict[str, Method]:
    """The requested methods.

    Args:
        wanted: Names; or a mapping from the user's names to method names, classes or functions of the model.

    Raises:
        TypeError: if a value is neither a name nor callable.
        ValueError: if a name is unknown, or two are the same once normalised.

    Example:
        >>> from xai_compare import methods_named
        >>> list(methods_named(["CDAM", "mine=ig"]))
        ['cdam', 'mine']
    """
    known = methods()
    if not isinstance(wanted, Mapping):
        return select("method", wanted, known)
    found = {}
    by_slug(wanted)
    for name, value in wanted.items():
        if isinstance(value, str):
            (found[slug(name)],) = select("method", [value], known).values()
        elif callable(value):
            found[slug(name)] = Method(value, _named(value), title=name)
        else:
            raise TypeError(f"Expected method {name!r} to be a name, a class or a function, got {type(value)}.")
    return found


def _named(value: Make) -> str:
    return (
        f"{getattr(value, '__module__', type(value).__module__)}.{getattr(value, '__qualname__', type(value).__name__)}"
    )
