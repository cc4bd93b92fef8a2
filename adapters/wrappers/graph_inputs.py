"""What a network of graphs is given: nodes, edges, and which node is of which graph."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_BATCH = "batch"


@dataclass(frozen=True)
class GraphInputs:
    """The arguments of one pass.

    Attributes:
        nodes: x, (nodes, features).
        batch: (nodes,), the graph of each node; None: not given.
        count: How many graphs there are.
        args: What the backbone gets by position: x and the edges.
        kwargs: And by name, `batch` where it has such a parameter.
    """

    nodes: Tensor
    batch: Tensor | None
    count: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def graph_inputs(backbone: nn.Module, together: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GraphInputs:
    """Check `(x, edge_index, batch)`, of which the last is what a model with MHEX takes third, and arrange them.

    Args:
        backbone: The network, which takes x and edges first, and `batch`, if it does, by name.
        together: Is a prediction made of each graph, so that `batch` is needed?
        args: x, edge_index and batch, those that come by position.
        kwargs: Those that come by name, and the backbone's further arguments.

    Raises:
        TypeError: if they are no tensors, or of another type.
        ValueError: if shapes do not fit, there is no node, a graph has none, or an edge leads to none.
    """
    if len(args) > 3:
        raise TypeError(
            f"Expected x, edge_index and batch by position, got {len(args)} arguments: pass the others by name, as "
            "edge_weight=..."
        )
    given = dict(zip(("x", "edge_index", _BATCH), args, strict=False)) | dict(kwargs)
    x, edges, batch = _nodes(given.pop("x", None)), given.pop("edge_index", None), given.pop(_BATCH, None)
    _check_edges(edges, len(x))
    if batch is None and together:
        raise ValueError(
            f"Expected `batch` (nodes,), the graph of each of {len(x)} nodes, as task='graph' predicts one class of "
            "each graph. Pass `batch=data.batch`, or `torch.zeros(len(x), dtype=torch.long)` for a single graph."
        )
    count = 1 if batch is None else _graphs(batch, x)
    if batch is not None and _BATCH in inspect.signature(backbone.forward).parameters:
        given[_BATCH] = batch
    return GraphInputs(x, batch, count, (x, edges), given)


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The nodes that go into a layer; of a bipartite one those that it returns."""
    x = args[0] if args else kwargs.get("x")
    x = x[1] if isinstance(x, tuple | list) and len(x) == 2 and x[1] is not None else x
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected a layer of a graph that takes nodes (nodes, features) first, got {type(x)}.")
    return x


def _nodes(x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x)
        raise TypeError(f"Expected `x` as a tensor (nodes, features) of floating point, got {got}.")
    if x.dim() != 2 or not len(x):
        raise ValueError(f"Expected `x` (nodes, features) with at least one node, got shape {tuple(x.shape)}.")
    return x


def _check_edges(edges: Any, nodes: int) -> None:
    if not isinstance(edges, Tensor):  # a SparseTensor, or nothing
        if edges is None:
            raise TypeError("Expected `edge_index` (2, edges) as second argument, got none.")
        return
    if edges.layout is not torch.strided:
        return
    if edges.is_floating_point() or edges.dtype == torch.bool:
        raise TypeError(f"Expected `edge_index` (2, edges) of integers, got {edges.dtype}.")
    if edges.dim() != 2 or len(edges) != 2:
        raise ValueError(
            f"Expected `edge_index` (2, edges), got shape {tuple(edges.shape)}. Pairs (edges, 2) need `.t()`."
        )
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < nodes:
        raise ValueError(
            f"Expected edges between nodes 0 to {nodes - 1}, got {int(edges.min())} to {int(edges.max())}: is `x` "
            "of another graph?"
        )


def _graphs(batch: Any, x: Tensor) -> int:
    """How many graphs there are, each with nodes."""
    if not isinstance(batch, Tensor) or batch.is_floating_point() or batch.dtype == torch.bool:
        got = batch.dtype if isinstance(batch, Tensor) else type(batch)
        raise TypeError(f"Expected `batch` (nodes,) of integers, the graph of each node, as third argument; got {got}.")
    if batch.shape != (len(x),):
        raise ValueError(
            f"Expected `batch` ({len(x)},), the graph of each node, got shape {tuple(batch.shape)} for x of shape "
            f"{tuple(x.shape)}."
        )
    if int(batch.min()) < 0:
        raise ValueError(f"Expected graphs from 0 in `batch`, got {int(batch.min())}.")
    sizes = torch.bincount(batch)
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"Expected graphs with at least one node, but graph(s) {empty[:8]} of {len(sizes)} in `batch` have none: "
            "leave them out and number the others without a gap, as torch_geometric.data.Batch does."
        )
    return len(sizes)
