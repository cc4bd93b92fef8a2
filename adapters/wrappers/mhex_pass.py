"""One forward pass of an MHEX model: the gates at its residual additions."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..checks import check_axes
from ..models.outputs import output_tensor
from ..models.stand_in import run_stand_in
from ..models.unwrapping import Forward
from .residual_anatomy import Residual, WatchAdditions
from .target_layers import TargetLayers, ablated

if TYPE_CHECKING:
    from .mhex import MHEX

See = Callable[[int, Tensor, Tensor], None]


class MHEXPass:
    """One forward pass of a wrapper.

    Args:
        wrapper: The MHEX.
        args: The backbone's arguments.
        see: Called at each block with its index, the identity branch or its gated form, and the residual branch, or in
            transformers with their sum, gated and not.
        kwargs: The backbone's further arguments.

    Attributes:
        output: What the backbone returned.
        gates: s (batch, d) of each block.
        mask: (batch, tokens), which tokens are real; None: all.
    """

    def __init__(self, wrapper: "MHEX", *args: Any, see: See | None = None, **kwargs: Any) -> None:
        self._wrapper, self._see = wrapper, see
        images = args[0] if args else kwargs.get("pixel_values")
        if wrapper._axes and images is not None:  # noqa: SLF001
            check_axes(images, wrapper._axes)  # noqa: SLF001
        self.mask = _attention_mask(wrapper.backbone, args, kwargs)
        self.gates: list[Tensor] = []
        self.pooled: list[Tensor] = []
        self._deep: dict[int, Tensor | None] = {}
        self._given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        backbone = wrapper.backbone
        self._predicts = len(wrapper.residuals) - 1 if wrapper.prediction == "last" else None
        self._layers = TargetLayers(
            backbone if wrapper.prediction == "last" else nn.Module(),
            "Pass `model.target_layers`, the last ones it depends on, or make the MHEX with prediction='original'.",
        )
        left_out = ablated(backbone, wrapper.names)
        inside = dict.fromkeys(name for names in wrapper.nested.values() for name in names)
        self._forwards: dict[str, Forward] = {name: partial(self._through, name, None) for name in inside} | {
            one.name: partial(self._at_block, index)
            for index, one in enumerate(wrapper.residuals)
            if one.name not in left_out
        }
        self._counting: _Counted | None = None
        with self._layers.watched():
            self.output = self._run("", list(self._forwards), *args, **kwargs)
        missing = [one.name for i, one in enumerate(wrapper.residuals) if i not in self._deep]
        if set(missing) - set(left_out):
            raise ValueError(
                f"The backbone ran without its residual additions {missing}: was it changed after it was wrapped? Wrap "
                "it again."
            )

    def logits(self) -> Tensor:
        """What the wrapper predicts."""
        if self._predicts is None:
            return output_tensor(self.output, self._wrapper.output, self._given)
        last = self._deep.get(self._predicts)
        if last is None:
            raise ValueError(
                f"The block {self._wrapper.names[-1]!r}, which predicts, was replaced. Wrap the model again."
            )
        self._layers.check(last)
        return last

    def deep(self) -> list[Tensor]:
        """The logits of every block."""
        found = [y for y in self._deep.values() if y is not None]
        if len(found) < len(self._wrapper.residuals):
            raise ValueError(
                "Expected a model with all its heads, but they were removed by `strip()`. Use the model from before."
            )
        return found

    def _at_block(self, index: int, *args: Any, **kwargs: Any) -> Any:
        residual = self._wrapper.residuals[index]
        counted = _Counted(residual, partial(self._add, index))
        output = self._through(residual.name, counted, *args, **kwargs)
        if counted.seen > residual.order + 1:
            raise ValueError(
                f"The block {residual.name!r} adds {counted.seen} pairs of branches, not {residual.order + 1} as when "
                "it was wrapped: was it changed since, as by adding LoRA weights? Wrap it again."
            )
        return output

    def _through(self, name: str, counted: "_Counted | None", *args: Any, **kwargs: Any) -> Any:
        """What a block returns; its additions are its own, and none of the blocks around it."""
        around, self._counting = self._counting, counted
        if around is not None:
            around.paused = True
        try:
            with WatchAdditions(counted) if counted is not None else nullcontext():
                return self._run(name, self._wrapper.nested.get(name, []), *args, **kwargs)
        finally:
            self._counting = around
            if around is not None:
                around.paused = False

    def _run(self, name: str, inside: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """What a part of the backbone returns, with the forwards of blocks inside it exchanged."""
        backbone = self._wrapper.backbone
        part = backbone.get_submodule(name)
        forwards = {backbone.get_submodule(one): self._forwards[one] for one in inside if one in self._forwards}
        return run_stand_in(part, forwards, *args, **kwargs) if forwards else part(*args, **kwargs)

    def _add(self, index: int, first: Tensor, second: Tensor, in_place: bool) -> Tensor:
        residual = self._wrapper.residuals[index]
        x, r = (first, second) if residual.identity == 0 else (second, first)
        if in_place and x is first:
            x = x.clone()  # written over below, and needed for gradients
        predicts = index == self._predicts
        if residual.on_tokens or predicts:
            total = self._wrapper.mhex_blocks[index].addition(x + r) if predicts else x + r
            z = (self._mean_of_tokens(total) if residual.on_tokens else residual.mean(total)).relu()
        else:
            z = (residual.mean(x) + residual.mean(r)).relu()
        if predicts:
            self._layers.reach()
        s, y = self._wrapper.mhex_blocks[index](z.to(x.dtype))
        self.pooled.append(z)
        self.gates.append(s)
        self._deep[index] = y
        strength = s.sigmoid().to(x.dtype) if self._wrapper.gated else None
        if residual.on_tokens:
            gated = total if strength is None else strength[:, None] * total
            if self._see is not None:
                self._see(index, gated, total)
            return first.copy_(gated) if in_place else gated
        gated = x if strength is None else residual.shaped(strength) * x
        result = (r.add_(gated) if r is first else first.copy_(gated + r)) if in_place else gated + r
        if self._see is not None:
            self._see(index, gated, result)
        return result

    def _mean_of_tokens(self, tokens: Tensor) -> Tensor:
        if self.mask is None:
            return tokens.mean(1)
        weights = self.mask.to(tokens.dtype)[:, :, None]
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


class _Counted:
    """Answers the one addition of a block that is its residual one."""

    def __init__(self, residual: Residual, answer: Callable[[Tensor, Tensor, bool], Tensor]) -> None:
        self._residual, self._answer, self.seen, self.paused = residual, answer, 0, False

    def __call__(self, first: Tensor, second: Tensor, in_place: bool) -> Tensor | None:
        if self.paused or not self._residual.same_kind(first):
            return None
        self.seen += 1
        if self.seen != self._residual.order + 1:
            return None
        return self._answer(first, second, in_place)


def _attention_mask(backbone: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    names = list(inspect.signature(backbone.forward).parameters)
    mask = (dict(zip(names, args, strict=False)) | dict(kwargs)).get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() != 2:
        raise ValueError(f"Expected an `attention_mask` (batch, tokens), got shape {tuple(mask.shape)}.")
    return mask
