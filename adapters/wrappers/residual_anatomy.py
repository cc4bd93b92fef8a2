"""Where a network adds the residual branches of its blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.evaluation_mode import evaluation_mode
from ..models.example_inputs import cannot_be_run, example_inputs, run_on
from ..models.hooks import watch_calls
from ..models.image_layout import channels_are_last
from ..models.outputs import OutputChoice, output_tensor

_ADDITIONS = (torch.add, Tensor.add, Tensor.add_)
_SHORTCUTS = ("downsample", "shortcut", "skip")  # names of modules on the identity branch
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LISTS = (nn.Sequential, nn.ModuleList)
_Addition = tuple[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Residual:
    """A block that ends with a residual addition.

    Attributes:
        name: The block's.
        channels: How many it has.
        on_tokens: Does it add tokens (batch, tokens, channels), or maps (batch, channels, height, width)?
        axes: How many these have.
        channels_last: Are maps (batch, height, width, channels)? Tokens always have their channels last.
        identity: Which of the two added is the identity branch, 0 or 1.
        projected: Is something computed on it, as a down-sampling?
        order: Which of the additions of tensors of this kind in the block's call it is.
    """

    name: str
    channels: int
    on_tokens: bool
    axes: int
    channels_last: bool
    identity: int
    projected: bool
    order: int

    def same_kind(self, one: Tensor) -> bool:
        """Is this a tensor of the block's channels and axes?"""
        return one.dim() == self.axes and one.shape[-1 if self.channels_last else 1] == self.channels

    def mean(self, one: Tensor) -> Tensor:
        """Of a map over its places, (batch, channels)."""
        return one.mean(tuple(range(1, self.axes - 1) if self.channels_last else range(2, self.axes)))

    def shaped(self, vectors: Tensor) -> Tensor:
        """Vectors (batch, channels), as they multiply a map."""
        axes = [1] * (self.axes - 2)
        return vectors.view(len(vectors), *([*axes, -1] if self.channels_last else [-1, *axes]))


@dataclass(frozen=True)
class ResidualAnatomy:
    """The residual blocks of a model, in the order in which they run, its number of logits, the axes of its images.

    That is 3 for signals, 5 for volumes, 0 for texts.
    """

    blocks: tuple[Residual, ...]
    classes: int
    axes: int


Placement = Literal["all", "downsample"] | Sequence[str]
Answer = Callable[[Tensor, Tensor, bool], Tensor | None]


class WatchAdditions(TorchFunctionMode):
    """Inside, each sum of two tensors of one shape, of maps or tokens, is shown to `answer`, which may replace it.

    `answer` is told whether the sum is written over the first of the two, as it then must do itself. Acts on this
    thread only.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = None
        if func in _ADDITIONS and len(args) == 2 and not kwargs:
            first, second = args
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                known = first.dim() in (3, 4, 5) and first.is_floating_point()
                answer = self._answer(first, second, func is Tensor.add_) if known else None
        return func(*args, **(kwargs or {})) if answer is None else answer


def residual_anatomy(model: nn.Module, output: OutputChoice = None) -> ResidualAnatomy:
    """Find the residual blocks of a model by running it once on an empty input.

    A block is a member of an nn.Sequential or nn.ModuleList that adds two tensors of one shape. Where it does so
    several times, as the blocks of transformers, it is the last addition, that of the feed-forward part. Maps have as
    many axes as the inputs; what has three in a model of images or words are tokens.

    Args:
        model: The network.
        output: Which tensor of what it returns are the logits, as for `output_tensor`.

    Raises:
        TypeError: if it is not a model.
        ValueError: if there is no such block.
    """
    failures = []
    for example in example_inputs(model):
        try:
            return _watched(model, example, output)
        except RuntimeError as error:
            shape = "" if isinstance(example, dict) else f"{tuple(example.shape)}: "
            failures.append(shape + str(error).splitlines()[0])
    raise ValueError(cannot_be_run(model, failures))


def _watched(model: nn.Module, example: dict[str, Tensor] | Tensor, choice: OutputChoice) -> ResidualAnatomy:
    axes = 0 if isinstance(example, dict) else example.dim()
    names = {module: name for name, module in model.named_modules()}
    blocks = {child for module in model.modules() if isinstance(module, _LISTS) for child in module.children()}
    running: list[nn.Module] = []
    entered: dict[str, Any] = {}
    made_by: dict[int, tuple[str, Any]] = {}
    seen: list[_Addition] = []  # with the block around each

    def before(module: nn.Module) -> None:
        running.append(module)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running.pop()
        name = names.get(module, "")
        entered[name] = args[0] if args else None
        made_by[id(output)] = name.rsplit(".", 1)[-1], output

    def see(first: Tensor, second: Tensor, in_place: bool) -> None:
        around = next((module for module in reversed(running) if module in blocks), None)
        if around is not None and _is_branch(first, around, axes):
            seen.append((names[around], (first, second)))

    with torch.no_grad(), evaluation_mode(model), watch_calls(before, after), WatchAdditions(see):
        given = next(iter(example.values())) if isinstance(example, dict) else example
        output = output_tensor(run_on(model, example), choice, given)
    if not seen:
        raise ValueError(
            f"{type(model).__name__} has no residual additions: expected blocks, in an nn.Sequential or nn.ModuleList, "
            "that add two branches of one shape, as those of ResNets and transformers."
        )
    found = (
        _residual(name, [terms for block, terms in seen if block == name], entered[name], made_by, given)
        for name in dict.fromkeys(block for block, _ in seen)
    )
    return ResidualAnatomy(tuple(found), output.shape[-1], axes)


def _is_branch(one: Tensor, block: nn.Module, axes: int) -> bool:
    """Is what a block adds a map, or tokens?"""
    return one.dim() == 3 if one.dim() != axes else any(isinstance(m, _CONVOLUTIONS) for m in block.modules())


def _residual(
    name: str, sums: list[tuple[Tensor, Tensor]], entered: Any, made_by: Mapping[int, tuple[str, Any]], given: Tensor
) -> Residual:
    terms = sums[-1]
    on_tokens = terms[0].dim() != given.dim() or not given.is_floating_point()
    last = on_tokens or (given.dim() == 4 and bool(channels_are_last(terms[0].shape, given.shape)))
    place = -1 if last else 1
    channels = terms[0].shape[place]
    alike = [one for one, _ in sums if one.dim() == terms[0].dim() and one.shape[place] == channels]
    plain = [i for i, term in enumerate(terms) if term is entered]
    named = [i for i, term in enumerate(terms) if made_by.get(id(term), ("",))[0] in _SHORTCUTS]
    identity = (plain or named or [1])[0]
    projected = not on_tokens and not plain
    return Residual(name, channels, on_tokens, terms[0].dim(), last, identity, projected, len(alike) - 1)


def placed(model: nn.Module, blocks: Sequence[Residual], placement: Placement) -> tuple[Residual, ...]:
    """The blocks that a placement means: "all", "downsample" (those with a projected identity branch), or by name.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it matches no block.
    """
    if not isinstance(placement, Sequence):
        raise TypeError(f"Expected `placement` to be 'all', 'downsample' or a list of names, got {placement!r}.")
    if placement == "all":
        return tuple(blocks)
    names = [one.name for one in blocks]
    if placement == "downsample":
        chosen = tuple(one for one in blocks if one.projected)
        if not chosen:
            raise ValueError(
                f"{type(model).__name__} has no residual block with a down-sampling identity branch. Its blocks are "
                f"{names}: pass their names, or placement='all'."
            )
        return chosen
    if isinstance(placement, str) or not all(isinstance(name, str) for name in placement):
        raise ValueError(f"Expected `placement` to be 'all', 'downsample' or a list of names, got {placement!r}.")
    unknown = [name for name in placement if name not in names]
    if unknown or not placement or len(set(placement)) < len(placement):
        raise ValueError(f"Expected different names of residual blocks out of {names}, got {list(placement)}.")
    return tuple(one for one in blocks if one.name in placement)
