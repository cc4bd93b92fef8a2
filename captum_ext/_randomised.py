"""Copies of an attribution whose model has random weights, from the head down."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from adapters.models import evaluation_mode, root_module, uncompiled

STAGES = ("head", "half", "all")


def randomised(explainer: Any) -> Iterator[tuple[str, Any]]:
    """A copy with a random last layer, then with the upper half of its layers random, then with all.

    A layer is a module with parameters of its own, the last one that the model lists being the head. Each parameter is
    replaced by normal numbers of its mean and standard deviation, from a fixed seed.

    Raises:
        ValueError: if the model cannot be copied with the attribution.
    """
    original = root_module(uncompiled(explainer.forward_func))
    if original is None:
        raise ValueError("the model is not seen behind the function; pass the model, or functools.partial of it.")
    try:
        own = copy.deepcopy(explainer)
    except Exception as error:  # of any kind: parts may refuse
        raise ValueError(f"the model cannot be copied: {error}") from error
    root = root_module(uncompiled(own.forward_func))
    if root is None or root is original:
        raise ValueError(
            "the model lies inside a function, which copies keep as it is; pass the model, or functools.partial of it."
        )
    layers = [module for module in root.modules() if any(True for _ in module.parameters(recurse=False))]
    generator = torch.Generator().manual_seed(0)
    waiting = layers[::-1]
    for stage, count in zip(STAGES, (1, (len(layers) + 1) // 2, len(layers)), strict=True):
        done = len(layers) - len(waiting)
        for layer in waiting[: max(0, count - done)]:
            _randomise(layer, generator)
        waiting = layers[::-1][count:]
        yield stage, own


class _Parameters(TorchFunctionMode):
    """Inside, collects the parameters that torch's functions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[nn.Parameter] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen += [one for one in tree_leaves((args, kwargs)) if isinstance(one, nn.Parameter)]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def check_weights(copy: Any, arguments: tuple[Any, ...]) -> None:
    """Raise a ValueError if the model of a copy runs with parameters that are not its own, which stay as they are."""
    root = root_module(uncompiled(copy.forward_func))
    assert root is not None  # noqa: S101 # as it was made
    used = _Parameters()
    with evaluation_mode(root), used:
        copy.forward_func(*arguments)
    own = {id(one) for one in root.parameters()}
    if any(id(one) not in own for one in used.seen):
        raise ValueError(
            "the model runs with weights that are not among its parameters, as a function or a list in it holds them, "
            "so that a copy keeps them as they are. Pass the model that has them."
        )


@torch.no_grad()
def _randomise(layer: nn.Module, generator: torch.Generator) -> None:
    for parameter in layer.parameters(recurse=False):
        if parameter.is_floating_point():
            values = torch.randn(parameter.shape, generator=generator).to(parameter)
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
            parameter.copy_(values * spread + parameter.mean())
