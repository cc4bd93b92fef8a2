"""Where a network of graphs adds branches, and which of its layers have no addition."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ..models.evaluation_mode import evaluation_mode
from ..models.hooks import watch_calls
from ..models.outputs import OutputChoice, output_tensor
from .graph_inputs import entering, graph_inputs
from .joins import Join, join_of
from .residual import Residual, ResidualAnatomy

_NODES = 5  # of the graphs on which a network is tried
_EDGES = ((0, 1, 1, 2, 3, 4), (1, 0, 2, 1, 4, 3))
_GRAPHS = (0, 0, 0, 1, 1)


def passes_messages(module: nn.Module) -> bool:
    """Is this a layer of torch_geometric?"""
    return all(callable(getattr(module, name, None)) for name in ("propagate", "message", "aggregate"))


@dataclass(frozen=True, eq=False)
class _Seen:
    """A sum of two branches outside layers: the modules around it, and by how many layers each branch went."""

    join: Join
    around: tuple[nn.Module, ...]
    layers: tuple[int, int]


def graph_anatomy(
    model: nn.Module, *, residual: bool, together: bool, example: Any = None, output: OutputChoice = None
) -> ResidualAnatomy:
    """Find the residual additions of a network of graphs by running it once, and the layers that have none.

    A layer is a `MessagePassing` of torch_geometric. An addition is residual if it adds two tensors (nodes, channels),
    of which one went through more layers than the other; that one is r.

    Args:
        model: The network, `forward(x, edge_index, ...)`.
        residual: Are layers without an addition taken, too, to be given one?
        together: Is a prediction made of each graph?
        example: Its arguments, (x, edge_index, batch) or a dictionary. None: two small graphs of ones.
        output: Which tensor of what it returns is meant, as for `output_tensor`.

    Raises:
        TypeError: if it is not a model.
        ValueError: if it has no layers, or cannot be run, or has no additions and is to be given none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model, a torch.nn.Module, got {type(model)}.")
    layers = [name for name, module in model.named_modules() if passes_messages(module)]
    name = type(model).__name__
    if not layers:
        raise ValueError(f"{name} has no layers of graphs: expected modules of torch_geometric.nn.MessagePassing.")
    given = graph_inputs(model, together, *_arguments(model, example))
    trace = _Trace(model, len(given.nodes))
    with torch.no_grad(), evaluation_mode(model), watch_calls(trace.before, trace.after), trace:
        try:
            output_of = model(*given.args, **given.kwargs)
        except Exception as error:  # of any kind: models check their inputs in many ways
            raise ValueError(
                f"{name} could not be run on two small graphs: {error}. Pass what it takes, as "
                "`example={'x': ..., 'edge_index': ..., 'batch': ..., 'edge_attr': ...}`."
            ) from error
    blocks = trace.residuals(residual)
    if not blocks:
        raise ValueError(
            f"{name} has no residual additions of nodes (nodes, channels), at which its {len(layers)} layers would "
            "be gated. Pass residual=True to give each layer one, which changes nothing at first."
        )
    return ResidualAnatomy(blocks, output_tensor(output_of, output, given.nodes).shape[-1], 0, tuple(layers))


def _arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    if example is not None:
        return tuple(example) if isinstance(example, tuple | list) else (example,), {}
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    x = torch.ones(_NODES, _features(model), dtype=like.dtype, device=like.device)
    edges, batch = (torch.tensor(one, device=like.device) for one in (_EDGES, _GRAPHS))
    return (x, edges, batch), {}


def _features(model: nn.Module) -> int:
    """How many a node has: what the first module with such a number says."""
    for module in model.modules():
        for key in ("in_channels", "in_features"):
            size = getattr(module, key, None)
            size = size[0] if isinstance(size, tuple) else size
            if isinstance(size, int) and size > 0:
                return size
    raise ValueError(
        f"{type(model).__name__} does not say how many features a node has: pass an `example`, (x, edge_index, batch)."
    )


class _Trace(TorchFunctionMode):
    """One run: which sums are made, and through how many layers each tensor went."""

    def __init__(self, model: nn.Module, nodes: int) -> None:
        super().__init__()
        self._names = {module: name for name, module in model.named_modules()}
        self._nodes = nodes
        self._running: list[nn.Module] = []
        self._layers = WeakTensorKeyDictionary()
        self._widths: dict[nn.Module, tuple[int, int]] = {}
        self._went: dict[nn.Module, tuple[int, int]] = {}  # into a layer, and out of it
        self._order: list[_Seen | nn.Module] = []

    def before(self, module: nn.Module) -> None:
        """A module is called."""
        self._running.append(module)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """It returned."""
        self._running.pop()
        if not passes_messages(module) or any(map(passes_messages, self._running)):
            return
        r = output[0] if isinstance(output, tuple) else output
        try:
            x = entering(args, {})
        except TypeError:
            x = r
        depth = 1 + self._layers.get(x, 0)
        self._layers[r] = depth
        if x.dim() == r.dim() == 2 and len(x) == len(r) == self._nodes and module not in self._widths:
            self._widths[module], self._went[module] = (x.shape[1], r.shape[1]), (depth - 1, depth)
            self._order.append(module)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        join = join_of(func, args, kwargs or {}, (2,))
        in_layer = any(map(passes_messages, self._running))
        if join is not None and not in_layer:
            layers = tuple(self._layers.get(one, 0) for one in join.terms)
            around = tuple(module for module in self._running if module in self._names)
            self._order.append(_Seen(join, around, layers))
        depths = [self._layers.get(x, 0) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = func(*args, **(kwargs or {}))
        for one in pytree.tree_leaves(result):
            if isinstance(one, Tensor):
                self._layers[one] = max(depths, default=0)
        return result

    def residuals(self, added: bool) -> tuple[Residual, ...]:
        """The blocks, in the order in which they run."""
        sums = [one for one in self._order if isinstance(one, _Seen)]
        own = [one for one in sums if one.layers[0] != one.layers[1] and len(one.join.first) == self._nodes]
        covered = [(min(one.layers), max(one.layers)) for one in own]
        modules = {one.around[-1] for one in own}
        homes = [next((m for m in reversed(one.around) if m in modules), None) for one in sums]
        found: list[Residual] = []
        for one in self._order:
            if isinstance(one, _Seen):
                if one in own:
                    home = one.around[-1]
                    beside = [other for other, where in zip(sums, homes, strict=True) if where is home]
                    several = len([1 for other in beside if other in own]) > 1 or not self._names[home]
                    part = len([1 for other in beside[: beside.index(one)] if other in own]) if several else None
                    found.append(_residual(self._names[home], one, beside, part))
            elif added and not any(low <= self._went[one][0] < high for low, high in covered):
                entering_, leaving = self._widths[one]
                found.append(_behind(self._names[one], entering_, leaving))
        return tuple(found)


def _residual(name: str, one: _Seen, beside: list[_Seen], part: int | None) -> Residual:
    channels = one.join.first.shape[1]
    alike = [other for other in beside if other.join.first.shape[1] == channels]
    identity = 0 if one.layers[0] < one.layers[1] else 1
    return Residual(name, channels, False, 2, True, identity, False, alike.index(one), len(alike), part=part)


def _behind(name: str, width: int, channels: int) -> Residual:
    return Residual(name, channels, False, 2, True, 0, width != channels, 0, 1, added=True, entering=width)
