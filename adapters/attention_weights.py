"""The attention weights of a transformer, from a run of the user's own code."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ._anatomy import read_attention
from ._attention import Attention, UnknownAttentionError
from ._forward import Forward, modules_of, rebound
from ._outputs import bare_output
from ._recognition import as_made, outside
from ._shadow import shadow
from ._site import Site, TokenAnatomy
from ._structure import structure_of
from .token_tail import Readout, first_token

_REMEMBERED = 32  # structures of one model
_reads_class_token: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


class AttentionWeights:
    """A transformer whose attention weights are seen, although fused attention never writes them down.

    A stand-in runs that shares the model's parts but computes its attentions by their formula; the model is not
    touched and no hook is needed. The first time that a model is seen, each attention's result is compared with that
    of the module itself. That is remembered for as long as the model's structure stays the same.

    Args:
        forward: The model, a method of it, or a partial of one.
        root: The model, in evaluation mode.
        inputs: Its positional arguments.
        anatomy: Where its attentions are.
        last_only: Are the weights of the last block enough?

    Attributes:
        class_token: Is there a class token that the output reads?

    Raises:
        ValueError: if an attention is not known here, or if the blocks do not run once each.

    Example:
        >>> import timm, torch
        >>> from adapters import AttentionWeights, find_anatomy
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> weights = AttentionWeights(model, model, (torch.randn(2, 3, 224, 224),), find_anatomy(model)).seen()
        >>> len(weights), weights[0].shape
        (12, torch.Size([2, 3, 197, 197]))
    """

    def __init__(
        self,
        forward: Forward,
        root: nn.Module,
        inputs: tuple[Any, ...],
        anatomy: TokenAnatomy,
        *,
        last_only: bool = False,
    ) -> None:
        if rebound(forward, root, root) is None:
            raise ValueError(
                "The attention weights are read from a stand-in for the model, which cannot be put into this "
                f"{type(forward).__name__}. Pass the model itself."
            )
        self._forward = forward
        self._root = root
        self._inputs = inputs
        self._attentions = self._known(anatomy, last_only)
        self.class_token = self._reads_class_token(anatomy) and anatomy.class_token

    def seen(
        self, reduce: Callable[[Tensor], Tensor] = lambda weights: weights, rows: int | None = None
    ) -> list[Tensor]:
        """The weights of each block, without gradients; nothing behind the last attention runs.

        Args:
            reduce: Called with the weights (batch, heads, tokens, tokens) of a block; what it returns is kept.
            rows: Only those of the last block's first rows; None: all.
        """
        kept: list[Tensor] = []

        def attend(call: _Call) -> Any:
            weights = call.weights()
            kept.append(reduce(weights))
            if call.module is self._attentions[-1]:
                raise _EnoughSeen
            return call.attention.result(weights, call.tokens)

        try:
            self._run(attend, rows=rows)
        except _EnoughSeen:
            self._check(len(kept) == len(self._attentions))
        return kept

    def with_readout(self, latent: Site | None = None) -> tuple[list[Tensor], Readout]:
        """The weights (batch, heads, tokens, tokens) of each block, and the readout, differentiable by them.

        Args:
            latent: Where the latent is read, if it is wanted.
        """
        kept: list[Tensor] = []
        running = True

        def attend(call: _Call) -> Any:
            weights = call.weights()
            if running:  # and not a checkpoint's second run
                kept.append(weights)
                if call.module is self._attentions[0]:
                    weights.requires_grad_()
                    torch.set_grad_enabled(True)
            return call.attention.result(weights, call.tokens)

        readout = self._run(attend, latent)
        running = False
        return kept, readout

    def _run(self, attend: Callable[["_Call"], Any], latent: Site | None = None, rows: int | None = None) -> Readout:
        """The readout with other attentions, of which the last may be asked for some first rows only."""
        calls: Counter[nn.Module] = Counter()

        def exchanged(module: nn.Module) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                calls[module] += 1
                tokens = args[0] if args else next(iter(kwargs.values()))
                wanted = rows if module is self._attentions[-1] else None
                wanted = tokens.shape[1] if wanted is None else wanted
                try:
                    attention = read_attention(module, wanted, args, kwargs)
                except UnknownAttentionError:
                    raise self._unknown(module, "what it computes is not known here") from None
                return attend(_Call(module, attention, tokens, wanted, lambda: module(*args, **kwargs)))

            return forward

        latents: list[Tensor] = []
        forwards = {module: exchanged(module) for module in self._attentions}
        if latent is not None:
            inner = shadow(latent.module, forwards)
            forwards[latent.module] = _keeping(inner, latent.at_input, latents)
        run = rebound(self._forward, self._root, shadow(self._root, forwards))
        if run is None:
            raise ValueError("Pass the model itself.")
        with torch.no_grad():
            outputs = bare_output(run(*self._inputs))
        self._check(all(calls[module] == 1 for module in self._attentions))
        return Readout(outputs, first_token(latents[-1]) if latents else None)

    def _known(self, anatomy: TokenAnatomy, last_only: bool) -> list[nn.Module]:
        found = list(zip(anatomy.attentions, anatomy.blocks, strict=True))
        attentions = []
        for attention, block in found[-1:] if last_only else found:
            if attention is None:
                raise self._unknown(block, "it has no attention module of its own")
            if not as_made(list(attention.modules())):
                raise self._unknown(attention, "it, or a part of it, has hooks or another forward")
            attentions.append(attention)
        return attentions

    def _reads_class_token(self, anatomy: TokenAnatomy) -> bool:
        others = [module for module in modules_of(self._forward) if module is not self._root]
        left_out = frozenset((*anatomy.blocks[:-1], self._attentions[-1]))
        modules = [part for module in (self._root, *others) for part in outside(module, left_out)]
        modules += [part for attention in self._attentions for part in attention.modules()]
        key = structure_of(self._root, self._forward, modules, self._inputs)
        remembered = _reads_class_token.setdefault(self._root, {})
        if key not in remembered:
            found = self._examine()
            if found is None or len(remembered) >= _REMEMBERED:
                return found is not False
            remembered[key] = found
        return remembered[key]

    def _examine(self) -> bool | None:
        """Compare each attention with the module itself, and see whether the output reads the first token.

        None: nothing can be said, as there are numbers that are not finite.
        """
        ends: list[Tensor] = []
        finite = True

        def attend(call: _Call) -> Any:
            nonlocal finite
            own = call.own()
            output: Tensor = own[0] if isinstance(own, tuple) else own
            finite = finite and bool(torch.isfinite(output).all())
            if finite and not _is_right(call, output):
                raise self._unknown(call.module, "it does not compute what its structure says")
            if call.module is self._attentions[-1]:
                ends.append(output.detach().clone().requires_grad_())
                torch.set_grad_enabled(True)
                output = ends[-1].clone()  # what follows may work in place, which a leaf forbids
            return (output, *own[1:]) if isinstance(own, tuple) else output

        outputs = self._run(attend).outputs
        if not finite:
            return None
        if not outputs.requires_grad:
            return True
        direction = torch.linspace(-1, 1, outputs.numel(), device=outputs.device).sin().view_as(outputs)
        (gradient,) = torch.autograd.grad(outputs, ends, direction.to(outputs.dtype), allow_unused=True)
        if gradient is None:
            return True
        read = (gradient != 0).any(-1).any(0)
        return bool(read[0]) or not bool(read.any())

    def _unknown(self, module: nn.Module, why: str) -> ValueError:
        path = next((path for path, part in self._root.named_modules() if part is module), "")
        return ValueError(
            f"Cannot read the attention weights of {type(module).__name__} ({path!r}) in this "
            f"{type(self._root).__name__}: {why}. Merge adapters such as LoRA into the weights, remove hooks from it, "
            "use a model that is neither quantised nor compiled; or take CDAM, which needs no attention weights."
        )

    def _check(self, right: bool) -> None:
        if not right:
            raise ValueError(
                f"Expected each of the {len(self._attentions)} attentions to run once, in order, in a forward pass of "
                f"this {type(self._root).__name__}. Pass the transformer itself, and one that is spread over devices "
                "(nn.DataParallel) as its `.module`."
            )


class _Call(NamedTuple):
    """A call of an attention module; `own` is its own answer."""

    module: nn.Module
    attention: Attention
    tokens: Tensor
    rows: int
    own: Callable[[], Any]

    def weights(self) -> Tensor:
        return self.attention.weights(self.tokens, self.rows)


class _EnoughSeen(BaseException):  # not an Exception, which the model's own code may catch
    pass


def _is_right(call: _Call, own: Tensor) -> bool:
    """Does the attention's formula give the module's own output, and would another one not?"""

    def differs(attention: Attention) -> bool:
        result = attention.result(attention.weights(call.tokens, call.rows), call.tokens)
        output: Tensor = result[0] if isinstance(result, tuple) else result
        eps = torch.finfo(own.dtype).eps
        eps = eps if own.dtype is torch.float64 else max(eps, 1e-5)  # matrix products in tensor float 32
        return output.shape != own.shape or bool((output - own).abs().max() > eps**0.5 * own.abs().max())

    attention = call.attention
    return not differs(attention) and not (
        attention.known_by_parts and not differs(replace(attention, scale=1.5 * attention.scale))
    )


def _keeping(module: nn.Module, at_input: bool, kept: list[Tensor]) -> Forward:
    """The module, keeping its output or first input."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = module(*args, **kwargs)
        if at_input:
            kept.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        else:
            kept.append(output[0] if isinstance(output, tuple) else output)
        return output

    return forward
