"""Which models can be taken apart at their last attention: seen from their structure, and checked by running them."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from . import _borrow
from ._attention import Attention, UnknownAttentionError
from ._forward import Forward, modules_of, rebound, root_module
from ._outputs import bare_output
from ._shadow import HOOKS
from ._site import Site, TokenAnatomy
from ._structure import structure_of
from .attention_tail import AttentionTail


class _Verdict(NamedTuple):
    """How many first tokens the output reads, None being all, and whether what the attention computes is known."""

    rows: int | None
    algebra: bool


_LISTENS_ONLY = "transformers.utils.output_capturing"  # its hooks stay once attentions or hidden states were asked for
_REMEMBERED = 32  # structures of one model
_verdicts: WeakKeyDictionary[nn.Module, dict[Any, _Verdict | None]] = WeakKeyDictionary()


def attention_tail_of(
    forward: Forward, root: nn.Module, inputs: tuple[Any, ...], anatomy: TokenAnatomy, latent: Site | None = None
) -> AttentionTail | None:
    """The model from its last attention on, if it can be taken apart there; else None.

    The first time that a model is seen it runs as a whole, and what it was taken apart into must return the same.
    That is remembered for as long as its structure stays the same: modules, hooks, settings and kinds of inputs, but
    not weights, which are read anew by every call.

    Args:
        forward: The model, a method of it, or a function that refers to it.
        root: The model, in evaluation mode.
        inputs: Its positional arguments.
        anatomy: Where its tokens are.
        latent: Where the latent is read, if it is wanted.
    """
    attends = anatomy.attention
    if attends is None or rebound(forward, root, root) is None:
        return None
    others = [module for module in modules_of(forward) if module is not root]
    left_out = frozenset((*anatomy.blocks[:-1], attends))
    modules = [part for module in (root, *others) for part in outside(module, left_out)]
    if not as_made(modules) or (anatomy.tokens.at_input and vars(attends)["_forward_pre_hooks"]):
        return None
    attending = list(attends.modules())
    algebra = as_made(attending)
    key = algebra, structure_of(root, forward, [*modules, *attending], inputs)
    remembered = _verdicts.setdefault(root, {})
    if key not in remembered:
        if len(remembered) >= _REMEMBERED:  # a model that changes with every call is better not examined every time
            return None
        ran: list[nn.Module] = []
        with torch.no_grad(), _borrow.watch_calls(ran.append, lambda *_: None):
            own = bare_output(forward(*inputs))
        if not bool(torch.isfinite(own).all()):
            return None
        known = {part for module in (root, *others) for part in module.modules()}
        found = root_module(forward) is root or known.issuperset(ran)
        right = found and ran.count(attends) <= 1
        remembered[key] = _examine(forward, root, inputs, anatomy, own, algebra=algebra) if right else None
    verdict = remembered[key]
    if verdict is None:
        return None
    return AttentionTail(forward, root, inputs, anatomy, verdict.rows, verdict.algebra, latent)


def outside(module: nn.Module, left_out: frozenset[nn.Module]) -> Iterator[nn.Module]:
    """The module and all its parts, but for some and theirs."""
    if module not in left_out:
        yield module
        for child in module.children():
            yield from outside(child, left_out)


def as_made(modules: list[nn.Module]) -> bool:
    """Has nobody put hooks on these modules, or another forward into them?"""
    everywhere = chain.from_iterable(vars(torch_module)[f"_global{hooks}"].values() for hooks in HOOKS)
    own = chain.from_iterable(getattr(module, hooks).values() for module in modules for hooks in HOOKS)
    return (
        all(hook.__module__ == _borrow.__name__ for hook in everywhere)
        and all(getattr(hook, "__module__", None) == _LISTENS_ONLY for hook in own)
        and not any("forward" in module.__dict__ for module in modules)
        and not any(
            type(module).__module__.startswith(("torch.nn.parallel", "torch.distributed", "torch.jit"))
            for module in modules
        )
    )


def _examine(
    forward: Forward, root: nn.Module, inputs: tuple[Any, ...], anatomy: TokenAnatomy, own: Tensor, *, algebra: bool
) -> _Verdict | None:
    """Run a model taken apart, with as few rows as possible, and compare it with the whole one's own output."""
    for rows in (*sorted({1, max(1, anatomy.prefix)}), None):
        try:
            if algebra and _passes(AttentionTail(forward, root, inputs, anatomy, rows, algebra=True), own):
                return _Verdict(rows, algebra=True)
        except UnknownAttentionError as error:
            algebra = False
            if isinstance(error, _OtherAttentionError):
                _warn(root, anatomy.attention)
        if not algebra and _passes(AttentionTail(forward, root, inputs, anatomy, rows, algebra=False), own):
            return _Verdict(rows, algebra=False)
    return None


def _passes(tail: AttentionTail, own: Tensor) -> bool:
    try:
        return _Examination(tail, own).passed()
    except UnknownAttentionError:
        raise
    except Exception:  # whatever the model's code does with fewer tokens than it expects
        return False


def _warn(root: nn.Module, attention: nn.Module | None) -> None:
    path = next((name for name, part in root.named_modules() if part is attention), "")
    warnings.warn(
        f"{type(attention).__name__} ({path}) of this {type(root).__name__} does not compute what its structure says. "
        "The model is explained without that knowledge: the same maps, more slowly.",
        stacklevel=2,
    )


class _OtherAttentionError(UnknownAttentionError):
    """The attention does not compute what its structure says."""


class _Examination:
    """Does a model that was taken apart return what the whole one does?"""

    def __init__(self, tail: AttentionTail, own: Tensor) -> None:
        self._tail = tail
        self._own = own
        self._attended = own  # for now
        self._eps = torch.finfo(own.dtype).eps
        if torch.is_autocast_enabled(own.device.type):
            self._eps = max(self._eps, torch.finfo(torch.get_autocast_dtype(own.device.type)).eps)

    def passed(self) -> bool:
        """Does it, and does the output read no other rows?

        Raises:
            _OtherAttentionError: if the attention does not compute what its structure says.
        """
        outputs = self._tail.read(self._attend).outputs
        copies = len(outputs) // len(self._own)
        return (
            outputs.requires_grad
            and self._stays_without_the_rest()
            and self._equal(outputs, self._own.repeat(copies, *[1] * (self._own.dim() - 1)))
        )

    def _attend(self) -> Tensor:
        """The attention's own output, which what is known of it must repeat; in two copies if it does."""
        tail, attention = self._tail, self._tail.attention
        if attention is None:
            self._attended = tail.attend(tail.tokens).detach()
            return self._attended.clone().requires_grad_()

        def known(tokens: Tensor) -> Tensor:
            return attention.output(attention.mixed(tokens, tail.rows), tokens[:, : tail.rows])

        own, own_gradient = _with_gradient(tail.attend, tail.tokens)
        self._attended = own
        self._eps = max(self._eps, torch.finfo(own.dtype).eps)  # the model may use autocast by itself
        output, gradient = _with_gradient(known, tail.tokens)
        if not self._equal(output, own) or not self._equal(gradient, own_gradient):
            raise _OtherAttentionError
        if attention.known_by_parts and self._blind(attention, output):
            raise UnknownAttentionError
        return output.repeat(2, 1, 1).requires_grad_()

    def _blind(self, attention: Attention, output: Tensor) -> bool:
        """Would another attention give the same output, so that the comparison says nothing?"""
        tail = self._tail
        other = replace(attention, scale=1.5 * attention.scale)
        with torch.no_grad():
            return self._equal(other.output(other.mixed(tail.tokens, tail.rows), tail.tokens[:, : tail.rows]), output)

    def _stays_without_the_rest(self) -> bool:
        """Do the outputs stay as they are if nothing that `read` leaves out is a number?

        That is, all other rows from the last attention on, and whatever ran before the last block. Nothing that is
        computed from them is a number then, not even with weights of zero. The tokens, too, must not reach the outputs
        by another way than the attention.
        """
        site = self._tail.site
        count = self._tail.tokens.shape[1]
        leaf = torch.zeros_like(self._tail.tokens).requires_grad_()

        def go_on() -> tuple[Tensor, Tensor]:
            torch.set_grad_enabled(True)
            return _filled_up(self._tail.stream, count), _filled_up(self._attended, count)

        outputs = self._tail.run(
            go_on,
            {} if site.at_input else {site.module: lambda *_, **__: leaf},
        ).outputs
        (reached,) = (
            torch.autograd.grad(outputs, [leaf], torch.ones_like(outputs), allow_unused=True)
            if outputs.requires_grad
            else (None,)
        )
        return self._equal(outputs, self._own) and reached is None

    def _equal(self, actual: Tensor, expected: Tensor) -> bool:
        """Are they equal, but for rounding?"""
        if actual.shape != expected.shape:
            return False
        error = (actual - expected).abs().max()
        return bool(error <= self._eps**0.5 * expected.abs().max())


def _with_gradient(function: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A function's output for the tokens, and the gradient of some weighted sum of it."""
    leaf = tokens.detach().clone().requires_grad_()
    with torch.enable_grad():
        output = function(leaf)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).sin().view_as(output).to(output.dtype)
    (gradient,) = torch.autograd.grad(output, leaf, weights)
    return output.detach(), gradient


def _filled_up(rows: Tensor, count: int) -> Tensor:
    """Further rows that are not numbers."""
    rest = rows.new_full((rows.shape[0], count - rows.shape[1], rows.shape[2]), float("nan"))
    return torch.cat([rows, rest], dim=1)
