"""What an explanation costs, in forward passes of the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry


class _Operations(TorchDispatchMode):
    """Counts the floating point operations of products, convolutions and attention, forwards and backwards.

    torch's FlopCounterMode counts the same, but hooks every module, and hooks change the way that a model is explained.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)  # noqa: SLF001 # as torch's own counter asks
        if func is torch.ops.aten.convolution_backward.default:
            self.total += _backward(*args)
        elif count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _backward(grad: Tensor, x: Tensor, weight: Tensor, *further: Any) -> int:
    """Of a convolution: each gradient has as many products as the forward pass, where torch counts no groups."""
    *_, transposed, _, _, wanted = further
    forward: int = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed=transposed)
    return forward * sum(map(int, wanted[:2]))


def in_forwards(work: Callable[[], object], forward: Callable[[], object]) -> float:
    """How many forward passes have as many operations as some work; NaN for a model that has none."""
    with _Operations() as whole:
        work()
    with torch.no_grad(), _Operations() as one:
        forward()
    return whole.total / one.total if one.total else float("nan")
