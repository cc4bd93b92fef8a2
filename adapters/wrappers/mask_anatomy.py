"""Where a network that segments joins branches: residual additions, and the skips of its decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ..models.evaluation_mode import evaluation_mode
from ..models.example_inputs import run_on
from ..models.hooks import watch_calls
from ..models.outputs import OutputChoice, output_tensor
from .branch_depths import Branches, Depths
from .gate_places import Grids
from .joins import OF_MAPS, Join, join_of
from .residual import Residual, ResidualAnatomy
from .residual_anatomy import LISTS, is_branch, list_members, on_an_example, residual_of
from .resizing import same_proportions


@dataclass(frozen=True, eq=False)
class _Seen:
    """A join, the modules around it, outermost first, and of each branch the smallest map it is made of, and when.

    `of_maps`: are maps joined that have their places behind their channels, and not tokens?
    """

    join: Join
    branches: Branches
    of_maps: bool
    around: tuple[nn.Module, ...]
    smallest: tuple[int, int]
    made: tuple[int, int]

    @property
    def decoder(self) -> int | None:
        """Which branch is a decoder's, made of smaller maps than it is itself and than the other is; None: neither.

        If both are made of equally small ones, it is the later one, of a concatenation.
        """
        if not self.of_maps:
            return None
        first, second = self.smallest
        places = self.join.first.shape[2:].numel()
        if min(first, second) >= places or (first == second and self.join.kind != "cat"):
            return None
        if first == second:
            return 0 if self.made[0] > self.made[1] else 1
        return 0 if first < second else 1


def mask_anatomy(model: nn.Module, output: OutputChoice = None) -> ResidualAnatomy:
    """Find the residual blocks and skips of a model that segments by running it once on an empty input.

    Blocks are those of `residual_anatomy`, and besides, in any module, additions and concatenations of two maps of
    which one is a decoder's: it was made of smaller maps. That one is x, and the skip is r.

    Args:
        model: The network.
        output: Which tensor of what it returns are the logits, as for `output_tensor`.

    Raises:
        TypeError: if it is not a model.
        ValueError: if there is neither, or it does not return masks.
    """
    return on_an_example(model, lambda example: _watched(model, example, output))


def _watched(model: nn.Module, example: dict[str, Tensor] | Tensor, choice: OutputChoice) -> ResidualAnatomy:
    name = type(model).__name__
    if isinstance(example, dict):
        raise ValueError(f"{name} reads texts: expected a network that segments images.")
    trace = _Trace(model, example)
    with torch.no_grad(), evaluation_mode(model), watch_calls(trace.before, trace.after), trace, trace.depths:
        output = output_tensor(run_on(model, example), choice, example)
    if output.dim() != example.dim():
        raise ValueError(
            f"Expected a network that returns logits (batch, classes, height, width) of masks, but {name} returns "
            f"{tuple(output.shape)} for images {tuple(example.shape)}. For classes leave task='classification'."
        )
    blocks = trace.residuals()
    if not blocks:
        raise ValueError(
            f"{name} has no residual additions and no skips: expected blocks, in an nn.Sequential or nn.ModuleList, "
            "that add two branches of one shape, as those of ResNets, or a decoder that adds or concatenates maps of "
            "its encoder."
        )
    return ResidualAnatomy(blocks, output.shape[1], example.dim())


class _Trace(TorchFunctionMode):
    """One run: what is joined in which module, and of how small a map each tensor was made."""

    def __init__(self, model: nn.Module, given: Tensor) -> None:
        super().__init__()
        self._names = {module: name for name, module in model.named_modules()}
        self._members, self._given = list_members(model, (*LISTS, nn.ModuleDict)), given
        self._running: list[nn.Module] = []
        self._entered: dict[str, Any] = {}
        self._made_by: dict[int, tuple[str, Any]] = {}
        self._smallest, self._time = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._now = 0
        self._seen: list[_Seen] = []
        self._grids, self.depths = Grids(needed=True), Depths()

    def before(self, module: nn.Module) -> None:
        """A module is called."""
        self._running.append(module)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """It returned."""
        self._running.pop()
        name = self._names.get(module, "")
        self._entered[name] = args[0] if args else None
        if self._entered[name] is not output:  # as an empty shortcut returns it
            self._made_by[id(output)] = name.rsplit(".", 1)[-1], output

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        join = join_of(func, args, kwargs or {}, OF_MAPS)
        if join is not None:
            smallest = tuple(self._smallest.get(one, one.shape[2:].numel()) for one in join.terms)
            made = tuple(self._time.get(one, 0) for one in join.terms)
            around = tuple(module for module in self._running if module in self._names)
            branches = self.depths.of(*join.terms)
            self._seen.append(_Seen(join, branches, self._is_map(join.first), around, smallest, made))
        sources = [self._smallest[x] for x in pytree.tree_leaves((args, kwargs)) if self._is_known(x)]
        result = func(*args, **(kwargs or {}))
        self._grids.note(func, result)
        self._now += 1
        for one in pytree.tree_leaves(result):
            if isinstance(one, Tensor):
                self._note(one, sources)
        return result

    def _is_map(self, one: Tensor) -> bool:
        """Has it the axes of the images, and not its channels behind the places?"""
        if one.dim() != self._given.dim():
            return False
        size = self._given.shape[2:]
        return same_proportions(one.shape[2:], size) or not same_proportions(one.shape[1:-1], size)

    def _is_known(self, one: Any) -> bool:
        return isinstance(one, Tensor) and one in self._smallest

    def _note(self, one: Tensor, sources: list[int]) -> None:
        own = one.shape[2:].numel() if one.dim() == self._given.dim() else 0
        sizes = [*sources, own] if own > 1 else sources  # averages over all places, as of gates, are no maps
        if own != 1 and sizes:
            self._smallest[one] = min(sizes)
        self._time[one] = self._now

    def residuals(self) -> tuple[Residual, ...]:
        """The blocks, in the order in which they run."""
        last: dict[nn.Module, _Seen] = {}
        for one in self._seen:
            member = next((m for m in reversed(one.around) if m in self._members), None)
            if member is not None and self._may_be_residual(one, member):
                last[member] = one
        chosen = [one for one in self._seen if one.decoder is not None or one in last.values()]
        modules = {one.around[-1] for one in chosen if one.decoder is not None} | set(last)
        homes = [next((m for m in reversed(one.around) if m in modules), None) for one in self._seen]
        found = [(home, one) for home, one in zip(homes, self._seen, strict=True) if one in chosen and home is not None]
        several = {home for home, _ in found if [h for h, _ in found].count(home) > 1 or not self._names[home]}
        result, parts = [], dict.fromkeys(several, 0)
        for home, one in found:
            beside = [other for where, other in zip(homes, self._seen, strict=True) if where is home]
            part = parts[home] if home in several else None
            parts[home] = parts.get(home, 0) + 1
            result.append(self._residual(self._names[home], one, beside, part))
        return tuple(result)

    def _may_be_residual(self, one: _Seen, member: nn.Module) -> bool:
        first = one.join.first
        if one.join.kind == "cat" or not is_branch(first, member, self._given.dim()):
            return False
        return first.dim() == self._given.dim() or self._grids.of(first.shape[1]) is not None

    def _residual(self, name: str, one: _Seen, beside: list[_Seen], part: int | None) -> Residual:
        """The block of a join in a module of this name, among all joins there."""
        terms = one.join.terms
        if one.decoder is None:
            plain = residual_of(name, [one.branches], self._entered.get(name), self._made_by, self._given)
        else:
            widths = [term.shape[1] for term in terms]
            skip = widths[1 - one.decoder] if one.join.kind == "cat" else 0
            x = widths[one.decoder]
            plain = Residual(name, x, False, terms[0].dim(), False, one.decoder, True, 0, 1, skip)
        alike = [other for other in beside if plain.same_kind(other.join)]
        order = next(i for i, other in enumerate(alike) if other is one)
        return replace(plain, order=order, alike=len(alike), part=part)
