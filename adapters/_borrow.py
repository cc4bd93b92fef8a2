"""A user's model in evaluation mode for a moment, also when other threads use it meanwhile.

Everything here acts only on calls made by the thread that asked, so another thread's forward pass is untouched. A
module's train flag, which threads share, is counted: the first one takes it, the last one gives it back.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

_lock = threading.Lock()
_in_evaluation: dict[nn.Module, int] = {}


@contextmanager
def evaluation_mode() -> Iterator[None]:
    """Run every module that this thread calls in evaluation mode, and restore each one's own flag."""
    thread = threading.get_ident()
    borrowed: set[nn.Module] = set()

    def before(module: nn.Module, _: Any) -> None:
        if threading.get_ident() != thread or module in borrowed:
            return
        with _lock:
            if module.training or module in _in_evaluation:
                _in_evaluation[module] = _in_evaluation.get(module, 0) + 1
                module.training = False
                borrowed.add(module)

    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()
        with _lock:
            for module in borrowed:
                _in_evaluation[module] -= 1
                if not _in_evaluation[module]:
                    del _in_evaluation[module]
                    module.training = True


@contextmanager
def borrowed(root: nn.Module | None, inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """A model in evaluation mode, and its inputs as tensors that gradients may meet.

    A model that is in evaluation mode already is not touched at all: no hook, no lock. None: a function's modules.
    """
    training = root is None or any(module.training for module in root.modules())
    with torch.inference_mode(False), evaluation_mode() if training else nullcontext():
        yield pytree.tree_map_only(Tensor, lambda x: x.clone() if x.is_inference() else x, inputs)


@contextmanager
def watch_calls(
    before: Callable[[nn.Module], None], after: Callable[[nn.Module, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Be told before and after each module call of this thread; the output is the module's own, before its hooks."""
    thread = threading.get_ident()

    def enter(module: nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            before(module)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == thread:
            after(module, args, output)

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def modules_of(root: nn.Module) -> list[nn.Module]:
    """All modules of a model; quicker than `root.modules()`, which makes a name for each."""
    found: dict[nn.Module, None] = {root: None}
    waiting = [root]
    while waiting:
        for child in waiting.pop()._modules.values():  # noqa: SLF001
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def uncompiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The plain function behind one that torch.compile made, whose compiled graph would not see our taps.

    Raises:
        ValueError: if a part of the model is compiled, or the model compiled itself in place.
    """
    # By the names of torch's attributes: its compiler's classes take seconds to import.
    forward = getattr(forward, "_orig_mod", getattr(forward, "_torchdynamo_orig_callable", forward))
    if isinstance(forward, nn.Module):
        compiled = [m for m in modules_of(forward) if "_orig_mod" in m._modules or m._compiled_call_impl is not None]  # noqa: SLF001
        for name, module in forward.named_modules() if compiled else ():
            if module is compiled[0]:
                raise ValueError(
                    f"Expected a model that is not compiled, but {name or 'the model itself'!r} is. Explain the model "
                    "from before compilation, or use `compiled = torch.compile(model)`, which keeps the original."
                )
    return forward
