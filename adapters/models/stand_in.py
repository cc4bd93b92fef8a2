"""Running a model with some of its modules' forwards exchanged, without touching the model."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from .outputs import OutputChoice, output_tensor
from .unwrapping import Forward

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_EXCHANGED = {*HOOKS, "_modules", "forward", "training"}
M = TypeVar("M", bound=nn.Module)


def stand_in(root: M, forwards: Mapping[nn.Module, Forward]) -> M:
    """A stand-in for a model that shares every part with it, but runs other forwards for some of its modules.

    Only the modules on the way to an exchanged one are copied, and shallowly: weights, buffers and all other modules
    are the model's own. So no hook is needed, the model is not changed for a moment, and threads do not meet. An
    exchanged module's own hooks do not run, unless its new forward calls the module itself.
    """
    return _stand_in(root, forwards, {})


def run_stand_in(root: nn.Module, forwards: Mapping[nn.Module, Forward], *args: Any, **kwargs: Any) -> Any:
    """What a stand-in returns; what its code stores on the modules is stored on the model's own."""
    copies: dict[nn.Module, nn.Module] = {}
    copy = _stand_in(root, forwards, copies)
    before = [(own, vars(made), dict(vars(made))) for own, made in copies.items() if made is not own]
    try:
        return copy(*args, **kwargs)
    finally:
        for own, now, was in before:
            stored = {name for name in now if name not in was or now[name] is not was[name]} - _EXCHANGED
            vars(own).update({name: now[name] for name in stored})


def with_output(model: M, choice: OutputChoice) -> M:
    """A stand-in for a model that returns one tensor of its output, as `output_tensor` chooses it."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        return output_tensor(model(*args, **kwargs), choice, given)

    return stand_in(model, {model: forward})


def _called_by_forward(kind: type[M]) -> type[M]:
    """A class whose objects run their forward when they are called, also if its own ones do something else."""
    if kind.__call__ is nn.Module.__call__:
        return kind
    return type(kind.__name__, (kind,), {"__call__": nn.Module.__call__})


def _stand_in(module: M, forwards: Mapping[nn.Module, Forward], done: dict[nn.Module, nn.Module]) -> M:
    # Not a function inside another: that would be a cycle, and hold the memory of a pass until it is collected.
    if module not in done:
        forward = forwards.get(module)
        children = own = vars(module)["_modules"]
        if forward is None:
            children = {k: None if child is None else _stand_in(child, forwards, done) for k, child in own.items()}
        if forward is None and all(children[name] is child for name, child in own.items()):
            done[module] = module
        else:
            copy = object.__new__(type(module) if forward is None else _called_by_forward(type(module)))
            copy.__dict__.update(module.__dict__, _modules=children)
            if forward is not None:
                copy.__dict__.update({hooks: OrderedDict() for hooks in HOOKS}, forward=forward)
            done[module] = copy
    return done[module]  # type: ignore[return-value] # a copy is of its original's type
