"""Hooks that see only the calling thread's module calls."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def watch_calls(
    before: Callable[[nn.Module], None], after: Callable[[nn.Module, tuple[Any, ...], Any], None] | None = None
) -> Iterator[None]:
    """Call a function before and after each module call of this thread.

    Args:
        before: Called with the module.
        after: Called with the module, its arguments and its own output, before any hook of the user has changed it.
    """
    thread = threading.get_ident()

    def enter(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            before(module)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if after is not None and threading.get_ident() == thread:
            after(module, args, output)

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watch_outputs(
    modules: Iterable[nn.Module], note: Callable[[nn.Module, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Call a function after each call of these modules in this thread: with the module, its arguments and its output.

    Scripted modules take no hooks and are left out.
    """
    thread = threading.get_ident()

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == thread:
            note(module, args, output)

    hooks = [module.register_forward_hook(leave) for module in modules if not isinstance(module, ScriptModule)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
