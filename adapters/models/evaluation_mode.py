"""A model in evaluation mode for a while, also when several threads use it at the same time.

Threads share a module's `training` flag, so it is counted who needs it to be False: the first call switches it off, the
last one restores it.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .hooks import watch_calls
from .unwrapping import modules_of, root_module

_lock = threading.Lock()
_in_evaluation: dict[nn.Module, int] = {}


@contextmanager
def evaluation_mode(forward: Callable[..., Any] | None) -> Iterator[None]:
    """Run a model in evaluation mode, and restore each module's own flag, also after an error.

    Args:
        forward: A model or a method of one: all of its modules. Of any other function, or None: every module that this
            thread calls inside.
    """
    root = None if forward is None else root_module(forward)
    switched: set[nn.Module] = set()
    try:
        if root is not None:
            _switch_off(modules_of(root), switched)
            yield
        else:
            with watch_calls(lambda module: _switch_off([module], switched)):
                yield
    finally:
        _restore(switched)


@contextmanager
def evaluated(forward: Callable[..., Any] | None, inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """A model in evaluation mode, and its inputs as tensors that can be part of a graph, also under inference mode."""
    with torch.inference_mode(False), evaluation_mode(forward):
        yield pytree.tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, inputs)


def _switch_off(modules: Iterable[nn.Module], switched: set[nn.Module]) -> None:
    with _lock:
        for module in modules:
            if (module.training or module in _in_evaluation) and module not in switched:
                _in_evaluation[module] = _in_evaluation.get(module, 0) + 1
                module.training = False
                switched.add(module)


def _restore(switched: set[nn.Module]) -> None:
    with _lock:
        for module in switched:
            _in_evaluation[module] -= 1
            if not _in_evaluation[module]:
                del _in_evaluation[module]
                module.training = True
