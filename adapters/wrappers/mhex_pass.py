"""One forward pass of an MHEX model: the gates at its residual additions."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..checks import check_axes
from ..models.outputs import output_tensor
from ..models.stand_in import run_stand_in
from ..models.unwrapping import Forward
from .gate_places import Grids, Places, each_place, of_graphs, of_maps, of_tokens
from .graph_inputs import GraphInputs, entering, graph_inputs
from .joins import OF_MAPS, Join, WatchJoins
from .residual import Residual
from .resizing import resized
from .target_layers import TargetLayers, ablated

if TYPE_CHECKING:
    from .mhex import MHEX


@dataclass(frozen=True)
class Seen:
    """What is seen at a block.

    Attributes:
        index: The block's number.
        z: What its gate reads.
        gated: x', in transformers of classes sigmoid(s) (x + r); z where a pass ends with `reads_alone`.
        total: x' + r, or [x'; r]; in such transformers and in graphs x + r; likewise z.
    """

    index: int
    z: Tensor
    gated: Tensor
    total: Tensor


See = Callable[[Seen], None]


@dataclass(frozen=True)
class End:
    """When a pass ends, because nothing else is asked for.

    Attributes:
        blocks: When so many of the blocks, the first ones, were seen. What the network does after them does not run.
        reads_alone: Is only z of the last one seen, so that its gate is not computed either?
    """

    blocks: int
    reads_alone: bool = False


class _Ended(BaseException):
    """Leaves the backbone, whose own code may catch any Exception."""


class MHEXPass:
    """One forward pass of a wrapper.

    Args:
        wrapper: The MHEX.
        args: The backbone's arguments.
        see: Called at each block with what is seen there.
        end: When the pass ends; None: it runs whole. Else it has no output.
        kwargs: The backbone's further arguments.

    Attributes:
        output: What the backbone returned.
        gates: s (batch, d) of each block.
        pooled: z (batch, d) of each block.
        mask: (batch, tokens), which tokens are real; None: all.
        graphs: Of graphs, which nodes are of which.
    """

    def __init__(
        self, wrapper: "MHEX", *args: Any, see: See | None = None, end: End | None = None, **kwargs: Any
    ) -> None:
        self._wrapper, self._see, self._end = wrapper, see, end
        self._asked = set(range(len(wrapper.residuals) if end is None else end.blocks))
        backbone = wrapper.backbone
        self.graphs: GraphInputs | None = None
        if wrapper.task in ("graph", "node"):
            self.graphs = graph_inputs(backbone, wrapper.task == "graph", args, kwargs)
            args, kwargs = self.graphs.args, self.graphs.kwargs
        images = args[0] if args else kwargs.get("pixel_values")
        if wrapper._axes and images is not None:  # noqa: SLF001
            check_axes(images, wrapper._axes)  # noqa: SLF001
        self.mask = _attention_mask(backbone, args, kwargs)
        self.gates: list[Tensor] = []
        self.pooled: list[Tensor] = []
        self._deep: dict[int, Tensor | None] = {}
        self._given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        masks = wrapper.task == "segmentation"
        self._grids = Grids(masks and any(one.on_tokens for one in wrapper.residuals))
        self._axes = OF_MAPS if self.graphs is None else (2,)
        self._predicts = len(wrapper.residuals) - 1 if wrapper.prediction == "last" else None
        self._layers = TargetLayers(
            backbone if wrapper.prediction == "last" else nn.Module(),
            "Pass `model.target_layers`, the last ones it depends on, or make the MHEX with prediction='original'.",
        )
        left_out = ablated(backbone, [one.name for one in wrapper.residuals])
        self._counting: list[_Counted] = []
        self._forwards = self._exchanged(left_out)
        self.output: Any = None
        with suppress(_Ended), self._layers.watched(), self._grids.watched():
            self.output = self._forwards[""](*args, **kwargs)
        missing = [wrapper.residuals[i].label for i in sorted(self._asked)]
        if [one for one in wrapper.residuals if one.label in missing and one.name not in left_out]:
            raise ValueError(
                f"The backbone ran without its residual additions {missing}: was it changed after it was wrapped? Wrap "
                "it again."
            )

    def _exchanged(self, left_out: Sequence[str]) -> dict[str, Forward]:
        """The forwards of modules with blocks, and of those inside them whose joins are their own."""
        indexes: dict[str, list[int]] = {"": []}
        for inside in self._wrapper.nested.values():
            indexes |= {name: [] for name in inside}
        for index, one in enumerate(self._wrapper.residuals):
            if one.name not in left_out:
                indexes[one.name] = [*indexes.get(one.name, []), index]
        return {name: partial(self._at_module, name, found) for name, found in indexes.items()}

    def logits(self) -> Tensor:
        """What the wrapper predicts."""
        if self._predicts is None:
            return output_tensor(self.output, self._wrapper.output, self._given)
        last = self._deep.get(self._predicts)
        if last is None:
            raise ValueError(
                f"The block {self._wrapper.names[-1]!r}, which predicts, was replaced. Wrap the model again."
            )
        last = resized(last, self.size) if self.size else last
        self._layers.check(last)
        return last

    @property
    def size(self) -> tuple[int, ...]:
        """The images' height and width, where masks are predicted; else nothing."""
        masks = self._wrapper.task == "segmentation" and self._given is not None
        return tuple(self._given.shape[2:]) if masks and self._given is not None else ()

    def deep(self) -> list[Tensor]:
        """The logits of every block."""
        found = [y for i in sorted(self._deep) if (y := self._deep[i]) is not None]
        if len(found) < len(self._wrapper.residuals):
            raise ValueError(
                "Expected a model with all its heads, but they were removed by `strip()`. Use the model from before."
            )
        return found

    def _at_module(self, name: str, indexes: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        """What a module returns, with the gates of its blocks."""
        residuals = self._wrapper.residuals
        counters = [_Counted(residuals[i], partial(self._join, i)) for i in indexes if not residuals[i].added]
        with self._alone(counters):
            with WatchJoins(partial(_first_answer, counters), self._axes) if counters else nullcontext():
                output = self._run(name, *args, **kwargs)
            for index in indexes:
                if residuals[index].added:
                    output = self._added(index, output, *args, **kwargs)
        for one in counters:
            if one.seen > one.residual.alike:
                raise ValueError(
                    f"The block {name!r} adds {one.seen} pairs of branches, not {one.residual.alike} as when it was "
                    "wrapped: was it changed since, as by adding LoRA weights? Wrap it again."
                )
        return output

    @contextmanager
    def _alone(self, counters: "list[_Counted]") -> Iterator[None]:
        """Inside, joins are those of a module, and of none of the modules around it."""
        around, self._counting = self._counting, counters
        for one in around:
            one.paused = True
        try:
            yield
        finally:
            self._counting = around
            for one in around:
                one.paused = False

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What a part of the backbone returns, with the forwards of blocks inside it exchanged."""
        backbone = self._wrapper.backbone
        part = backbone.get_submodule(name)
        inside = self._wrapper.nested.get(name, []) if name else list(self._forwards)
        forwards = {backbone.get_submodule(one): self._forwards[one] for one in inside if one in self._forwards and one}
        return run_stand_in(part, forwards, *args, **kwargs) if forwards else part(*args, **kwargs)

    def _join(self, index: int, join: Join) -> Tensor:
        """The branches joined again, one of them or their sum gated."""
        residual, block = self._wrapper.residuals[index], self._wrapper.mhex_blocks[index]
        if index in self._deep and self._wrapper.task != "classification":
            raise ValueError(
                f"The block {residual.label!r} runs several times in one pass, so its gate has no one input: leave it "
                "out by `placement`, a list of names."
            )
        places = self._places(residual, join.first)
        x, r = join.terms if residual.identity == 0 else join.terms[::-1]
        if join.in_place and x is join.first:
            x = x.clone()  # written over below, and needed for gradients
        x, r = places.laid_out(x), places.laid_out(r)
        predicts = index == self._predicts
        sees_sum = places.gates_sum or self.graphs is not None
        if sees_sum or not places.averages or predicts:
            total = torch.cat([x, r], 1) if residual.skip else x + r
            total = block.addition(total) if predicts else total
            z = places.mean(total).relu()
        else:
            z = (places.mean(x) + places.mean(r)).relu()
        if predicts:
            self._layers.reach()
        self._asked.discard(index)
        if self._end is not None and self._end.reads_alone and not self._asked:
            self._seen(Seen(index, z, z, z))
        s, y = block(z.to(x.dtype))
        self.pooled.append(z)
        self.gates.append(s)
        self._deep[index] = y
        gated = total if places.gates_sum else x
        if self._wrapper.gated:
            gated = places.spread(s.sigmoid().to(x.dtype)) * gated
        result = _written(join, residual, places, gated, r)
        if self._see is not None or self._end is not None:
            joined = total if sees_sum else torch.cat([gated, r], 1) if residual.skip else places.laid_out(result)
            self._seen(Seen(index, z, gated, joined))
        return result

    def _seen(self, seen: Seen) -> None:
        if self._see is not None:
            self._see(seen)
        if self._end is not None and not self._asked:
            raise _Ended

    def _added(self, index: int, output: Any, *args: Any, **kwargs: Any) -> Any:
        """What a layer of a graph returns, with a residual addition that it does not have."""
        shortcut = cast(nn.Module, self._wrapper.mhex_blocks[index].shortcut)
        r = output[0] if isinstance(output, tuple) else output
        joined = self._join(index, Join(shortcut(entering(args, kwargs)), r, "add"))
        return (joined, *output[1:]) if isinstance(output, tuple) else joined

    def _places(self, residual: Residual, like: Tensor) -> Places:
        task = self._wrapper.task
        if self.graphs is not None:
            batch = self.graphs.batch if task == "graph" else None
            return each_place(residual) if batch is None else of_graphs(batch, self.graphs.count)
        if task == "classification":
            return of_tokens(self.mask) if residual.on_tokens else of_maps(residual)
        grid = self._grids.of(like.shape[1]) if residual.on_tokens else None
        if residual.on_tokens and grid is None:
            raise ValueError(
                f"The {like.shape[1]} tokens at {residual.label!r} lie on no grid of a convolution, or on one of "
                "several: expected tokens of places only, as SegFormer's, not a class token beside them."
            )
        return each_place(residual, grid)


def _written(join: Join, residual: Residual, places: Places, gated: Tensor, r: Tensor) -> Tensor:
    """The branches joined as the network does, in its layout."""
    if residual.skip:
        return torch.cat((gated, r) if residual.identity == 0 else (r, gated), 1)
    if join.in_place and residual.identity == 1 and not places.gates_sum:
        return join.first.add_(places.back(gated))
    result = places.back(gated if places.gates_sum else gated + r)
    return join.first.copy_(result) if join.in_place else result


class _Counted:
    """Answers the one join of a module that is its block's."""

    def __init__(self, residual: Residual, answer: Callable[[Join], Tensor]) -> None:
        self.residual, self._answer, self.seen, self.paused = residual, answer, 0, False

    def __call__(self, join: Join) -> Tensor | None:
        if self.paused or not self.residual.same_kind(join):
            return None
        self.seen += 1
        return self._answer(join) if self.seen == self.residual.order + 1 else None


def _first_answer(counters: Sequence[_Counted], join: Join) -> Tensor | None:
    answers = [counted(join) for counted in counters]  # of all, as each counts
    return next((one for one in answers if one is not None), None)


def _attention_mask(backbone: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    names = list(inspect.signature(backbone.forward).parameters)
    mask = (dict(zip(names, args, strict=False)) | dict(kwargs)).get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() != 2:
        raise ValueError(f"Expected an `attention_mask` (batch, tokens), got shape {tuple(mask.shape)}.")
    return mask
