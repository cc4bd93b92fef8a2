"""A place in a model where its tokens can be exchanged: a module's output or input."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class HookPoint:
    """The output of a module, or its first input."""

    module: nn.Module
    at_input: bool = False

    def __str__(self) -> str:
        return f"{type(self.module).__name__}{' (its input)' if self.at_input else ''}"


@contextmanager
def exchanged_at(point: HookPoint, exchange: Callable[[Any], Any]) -> Iterator[None]:
    """Exchange what a module of this thread's calls returns, or reads, for what `exchange` makes of it.

    At a module's input every argument that is the same tensor as the first is exchanged with it, as attention modules
    may be given their tokens three times: as query, key and value.
    """
    thread = threading.get_ident()

    def at_output(_: nn.Module, __: Any, output: Any) -> Any:
        return exchange(output) if threading.get_ident() == thread else output

    def at_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != thread:
            return None
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        new = exchange(first)
        return (
            tuple(new if value is first else value for value in args),
            {name: new if value is first else value for name, value in kwargs.items()},
        )

    if point.at_input:
        hook = point.module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        hook = point.module.register_forward_hook(at_output)
    try:
        yield
    finally:
        hook.remove()
