"""What CDAM's scores are for the models of the zoo, from hooks and autograd alone.

The model runs twice. The first run records which projections of keys, values and queries read which tensor. In the
second run, those of the last attention read a leaf instead, and everything else keeps the original. The scores are
`T * df/dT`, summed over the channels. Projections are known by their names, so a model with other names has none.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from zoo import Case

VALUES = frozenset(
    {"v", "kv", "qkv", "value", "values", "val", "wv", "wkv", "wqkv", "kqv", "vkq", "qkvs", "kvs", "vs", "qkvz"}
)
QUERIES = frozenset({"q", "qk", "kq", "query", "queries", "wq", "qs", "wqk"})
KEYS = frozenset({"k", "qk", "kq", "key", "keys", "wk", "ks", "wqk"})
JOINT = ("c_attn", "in_proj", "in_proj_weight", "att_proj", "attn_in", "qkv_mlp", "pwise")
NOT_PROJECTIONS = frozenset(
    {
        "norm",
        "layernorm",
        "ln",
        "drop",
        "dropout",
        "act",
        "pos",
        "bias",
        "rel",
        "cache",
        "rotary",
        "rope",
        "quant",
        "layout",
    }
)
SOFTMAX = ("softmax", "scaled_dot_product_attention", "multi_head_attention_forward", "logsumexp", "acos")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Truth:
    """The tokens of the last attention and their scores, or why there are none.

    The note says what is not the usual: that keys read another tensor than values, or queries a part of the tokens.
    `module` holds the same for the input of the module that holds the projections: there, what reads the tokens on
    another way than by the three projections counts too (gates, compressed keys and values, a class token as query).
    """

    tokens: Tensor | None = None
    scores: Tensor | None = None
    layer: str = ""
    reason: str = ""
    note: str = ""
    module: "Truth | None" = None


@dataclass
class Call:
    """One call of a module: the `count`-th."""

    name: str
    softmax: bool = False
    count: int = 0


@dataclass
class Reading:
    """One read of a tensor by a projection: the `count`-th of the projection `name`."""

    name: str
    count: int
    tensor: Tensor
    call: Call
    channels: int

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.count


class NoReferenceError(ValueError):
    """The last attention cannot be told from the names."""


def reference(case: Case) -> tuple[Tensor, Tensor] | None:
    """The tokens of the last attention as its projections read them, and their scores; None if they are not known."""
    truth = explain(case)
    return None if truth.tokens is None or truth.scores is None else (truth.tokens, truth.scores)


def explain(case: Case) -> Truth:
    """As `reference`, with the name of the projection, or the reason why there is none."""
    try:
        return _explain(case)
    except NoReferenceError as error:
        return Truth(reason=str(error))


def _explain(case: Case) -> Truth:
    record = _recorded(case)
    values = [reading for reading in record if is_value(reading.name) and reading.call.softmax]
    if not values:
        raise NoReferenceError("no projection of values in a module that takes a softmax")
    other = {reading.key: reading.tensor for reading in _recorded(_swapped(case))}
    reason = "no projection of values reads what depends on the input"
    for last in _last_first([reading for reading in values if not _same(reading.tensor, other.get(reading.key))]):
        chosen = [reading for reading in record if reading.call is last.call and reading.tensor is last.tensor]
        if sum(reading.call is last.call for reading in values) > 1 and "." in _short(last):
            raise NoReferenceError(f"the heads of {last.call.name} read tensors of their own")
        truth = _differentiated(case, chosen, last)
        if truth is not None:
            truth.note = _note(record, last)
            truth.module = _at_module(case, last)
            return truth
        reason = f"the output has no gradient for what {last.name} reads"
    raise NoReferenceError(reason)


def _note(record: list[Reading], last: Reading) -> str:
    together = [reading for reading in record if reading.call is last.call and not is_value(reading.name)]
    keys = [reading.tensor is last.tensor for reading in together if _is_named(reading.name, KEYS)]
    if keys and not any(keys):
        return "keys read another tensor"
    parts = [reading.tensor._base is last.tensor for reading in together if _is_named(reading.name, QUERIES)]
    return "queries read a part of the tokens" if any(parts) else ""


def _short(reading: Reading) -> str:
    return reading.name.removeprefix(reading.call.name + ".")


def _last_first(values: list[Reading]) -> Iterator[Reading]:
    """The first projection of values of each attention, the last attention first.

    What reads two tensors, of a decoder and of its encoder, is taken at the second.
    """
    seen: list[Call] = []
    for reading in reversed(values):
        if not any(reading.call is call for call in seen):
            seen.append(reading.call)
            same = [other for other in values if other.call is reading.call]
            yield [other for other in same if other.name == same[0].name][-1]


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and other.shape == tensor.shape and torch.equal(tensor, other)


def _swapped(case: Case) -> Case:
    """The case with the samples in reverse order."""
    several = isinstance(case.inputs, tuple)
    swapped = tuple(part.flip(0) for part in (case.inputs if several else (case.inputs,)))
    return Case(case.model, swapped if several else swapped[0], case.additional, case.target, case.forward)


def _recorded(case: Case) -> list[Reading]:
    record: list[Reading] = []
    with Watch(case.model, lambda reading: record.append(reading)):
        case.run()
    return record


def _differentiated(case: Case, chosen: list[Reading], last: Reading) -> Truth | None:
    keys = {reading.key for reading in chosen}
    leaves: list[Tensor] = []

    def exchange(reading: Reading) -> Tensor | None:
        if reading.key not in keys:
            return None
        if not leaves:
            leaves.append(reading.tensor.detach().clone().requires_grad_())
        return leaves[0]

    with Watch(case.model, exchange):
        output = case.run()
    (leaf,) = leaves
    score = score_of(output, case.target)
    (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True) if score.requires_grad else (None,)
    if gradient is None or not gradient.any():
        return None
    tokens = leaf.detach()
    return Truth(tokens, (tokens * gradient).sum(last.channels), last.name)


def _at_module(case: Case, last: Reading) -> Truth | None:
    """The same at the input of the module that holds the projections."""
    module = case.model.get_submodule(last.call.name)
    leaves: list[Tensor] = []
    calls: list[None] = []

    def exchange(_: nn.Module, args: Any, kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) - 1 != last.call.count:
            return args, kwargs
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
        same = [x for x in given if x.shape == last.tensor.shape and torch.equal(x, last.tensor)]
        read = (same or given)[0]
        leaves.append(read.detach().clone().requires_grad_())
        exchanged = partial(_exchanged, read, leaves[0])
        return tuple(map(exchanged, args)), {name: exchanged(value) for name, value in kwargs.items()}

    with module.register_forward_pre_hook(exchange, with_kwargs=True):
        output = case.run()
    score = score_of(output, case.target)
    if not leaves or not score.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(score, leaves[0], allow_unused=True)
    if gradient is None:
        return None
    tokens = leaves[0].detach()
    return Truth(tokens, (tokens * gradient).sum(last.channels if tokens.shape == last.tensor.shape else -1), last.name)


def score_of(output: Any, target: Any) -> Tensor:
    """The sum over the samples of the output at the target."""
    if isinstance(output, dict):
        output = next(output[name] for name in ("logits", "scores") if name in output)
    while isinstance(output, tuple | list):
        output = output[0]
    index = target if isinstance(target, tuple) else (target,)
    return output[(slice(None), *index)].sum()


def is_value(name: str) -> bool:
    """Whether a projection of this name projects values."""
    return _is_named(name, VALUES)


def is_projection(name: str) -> bool:
    """Whether a projection of this name projects values, keys or queries."""
    return _is_named(name, VALUES | QUERIES | KEYS)


def _is_named(name: str, words: frozenset[str]) -> bool:
    last = re.sub(r"(\.\d+)+$", "", name).rpartition(".")[2].lower()
    found = set(re.findall("[a-z]+", last))
    return last in JOINT or (bool(found & words) and not found & NOT_PROJECTIONS)


def parent_of(name: str) -> str:
    """The name of the module that holds a projection; the projections of a list belong to the list's module."""
    return re.sub(r"(\.\d+)+$", "", name).rpartition(".")[0]


@dataclass
class Watch(TorchFunctionMode):
    """While open, tells `on_reading` of each read by a projection, and exchanges the tensor for what it returns."""

    model: nn.Module
    on_reading: Callable[[Reading], Tensor | None]
    stack: list[Call] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.handles = ExitStack()
        self.parameters = {id(parameter): name for name, parameter in self.model.named_parameters()}

    def __enter__(self) -> "Watch":
        for name, module in self.model.named_modules():
            watched = isinstance(module, nn.MultiheadAttention) or (name and is_projection(name))
            enter = partial(self._enter, name, bool(watched))
            self.handles.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            self.handles.callback(module.register_forward_hook(self._leave, always_call=True).remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.handles.close()

    def _enter(self, name: str, watched: bool, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        whole = isinstance(module, nn.MultiheadAttention)
        self.calls[name] = self.calls.get(name, -1) + 1
        self.stack.append(Call(name, count=self.calls[name]))
        tensor = _read(args, kwargs, 2 if whole else 0, "value" if whole else None)
        call = self.stack[-1] if whole else self._call(parent_of(name))
        if not watched or tensor is None or call is None:
            return args, kwargs
        axis = 1 if _is_convolution(module) else -1
        for place, part in enumerate(("query", "key") if whole else ()):
            self._told(f"{name}.{part}", _read(args, kwargs, place, part), call, axis)
        leaf = self._told(f"{name}.value" if whole else name, tensor, call, axis)
        if leaf is None:
            return args, kwargs
        exchange = partial(_exchanged, tensor, leaf)
        return tuple(map(exchange, args)), {name: exchange(value) for name, value in kwargs.items()}

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    def _call(self, name: str) -> Call | None:
        return next((call for call in reversed(self.stack) if call.name == name), None)

    def _told(self, name: str, tensor: Tensor, call: Call, axis: int) -> Tensor | None:
        self.counts[name] = self.counts.get(name, -1) + 1
        return self.on_reading(Reading(name, self.counts[name], tensor, call, axis))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in SOFTMAX:
            for call in self.stack:
                call.softmax = True
        args, kwargs = self._exchanged_arguments(function, args, kwargs or {})
        return function(*args, **kwargs)

    def _exchanged_arguments(self, function: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Handles a weight that is used without a call of the module it belongs to."""
        given = args, kwargs
        flat = _flat((*args, *kwargs.values()))
        weights = [self.parameters[id(arg)] for arg in flat if id(arg) in self.parameters]
        name = next((name for name in weights if name.endswith("weight") or "." in name), None)
        if name is None or getattr(function, "__name__", "") not in ("linear", "einsum", "matmul"):
            return given
        name = name.removesuffix(".weight")
        call = self._call(parent_of(name))
        if not is_projection(name) or call is None or self.stack[-1].name == name:
            return given
        tensor = next((arg for arg in flat if id(arg) not in self.parameters), None)
        leaf = None if tensor is None else self._told(name, tensor, call, -1)
        if leaf is None:
            return given
        return _exchanged(tensor, leaf, args), {key: _exchanged(tensor, leaf, value) for key, value in kwargs.items()}


def _flat(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    return [tensor for arg in args for tensor in _flat(arg)] if isinstance(args, tuple | list) else []


def _exchanged(tensor: Any, leaf: Tensor, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_exchanged(tensor, leaf, part) for part in value)
    return leaf if value is tensor else value


def _read(args: Any, kwargs: Any, place: int, name: str | None) -> Tensor | None:
    """What a module reads: its first tensor, or an nn.MultiheadAttention's values."""
    if name is not None:
        given = args[place] if len(args) > place else kwargs.get(name)
    else:
        given = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)), None)
    return given if isinstance(given, Tensor) else None


def _is_convolution(module: nn.Module) -> bool:
    """Whether a module, or the first layer of a module of several, is a convolution."""
    layers = (part for part in module.modules() if isinstance(part, (nn.Linear, *CONVOLUTIONS)))
    return isinstance(next(layers, None), CONVOLUTIONS)
