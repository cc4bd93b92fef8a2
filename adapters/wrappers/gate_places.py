"""What a gate's values are averaged over, and which places it is spread over again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .residual import Residual

Change = Callable[[Tensor], Tensor]


def _same(one: Tensor) -> Tensor:
    return one


@dataclass(frozen=True)
class Places:
    """How a block goes from branches to the vectors that W multiplies, and back; by default nothing is averaged.

    Attributes:
        mean: From a branch to what W reads.
        spread: From gates to what multiplies a branch.
        averages: Does `mean` average?
        gates_sum: Is x + r gated, not x alone?
        laid_out: From the network's layout of a branch to (batch, channels, ...).
        back: And back.
    """

    mean: Change = _same
    spread: Change = _same
    averages: bool = False
    gates_sum: bool = False
    laid_out: Change = _same
    back: Change = _same


def of_maps(residual: Residual) -> Places:
    """All places of a map together."""
    return Places(residual.mean, residual.shaped, averages=True)


def of_tokens(mask: Tensor | None) -> Places:
    """All real tokens together, those that `mask` (batch, tokens) marks; None: all."""

    def mean(tokens: Tensor) -> Tensor:
        if mask is None:
            return tokens.mean(1)
        weights = mask.to(tokens.dtype)[:, :, None]
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)

    return Places(mean, lambda vectors: vectors[:, None], averages=True, gates_sum=True)


def each_place(residual: Residual, grid: tuple[int, ...] | None = None) -> Places:
    """Each place of a map by itself; tokens lie on a grid."""
    if grid is not None:
        return Places(
            laid_out=lambda tokens: tokens.transpose(1, 2).unflatten(2, grid),
            back=lambda maps: maps.flatten(2).transpose(1, 2),
        )
    if residual.channels_last and residual.axes > 2:
        return Places(laid_out=lambda maps: maps.movedim(-1, 1), back=lambda maps: maps.movedim(1, -1))
    return Places()


def of_graphs(batch: Tensor, count: int) -> Places:
    """All nodes of a graph together: `batch` (nodes,) says which of `count` graphs each is of."""

    def mean(nodes: Tensor) -> Tensor:
        return graph_means(nodes, batch, count)

    return Places(mean, lambda vectors: vectors[batch], averages=True)


def graph_means(nodes: Tensor, batch: Tensor, count: int) -> Tensor:
    """The means (graphs, channels) of nodes (nodes, channels); each of `count` graphs has one at least.

    Example:
        >>> import torch
        >>> graph_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [5.]])
    """
    sums = nodes.new_zeros(count, nodes.shape[1]).index_add(0, batch, nodes)
    return sums / torch.bincount(batch, minlength=count).to(nodes)[:, None]


class Grids:
    """On which grids tokens lie: those of the maps that the convolutions of this pass made.

    Args:
        needed: Are there tokens at all?
    """

    def __init__(self, needed: bool) -> None:
        self._needed = needed
        self._by_count: dict[int, set[tuple[int, ...]]] = {}

    def watched(self) -> AbstractContextManager[Any]:
        """Inside, convolutions are noted."""
        return self._watched() if self._needed else nullcontext()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with _Convolutions(self.note):
            yield

    def note(self, func: Callable[..., Any], result: Any) -> None:
        """See what a function of torch returned."""
        if getattr(func, "__name__", "") in ("conv1d", "conv2d", "conv3d") and isinstance(result, Tensor):
            self._by_count.setdefault(result.shape[2:].numel(), set()).add(tuple(result.shape[2:]))

    def of(self, tokens: int) -> tuple[int, ...] | None:
        """The grid of so many tokens; None: no convolution made such a map, or there are several of other shapes."""
        found = self._by_count.get(tokens, set())
        return next(iter(found)) if len(found) == 1 else None


class _Convolutions(TorchFunctionMode):
    def __init__(self, note: Callable[[Callable[..., Any], Any], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(func, result)
        return result
