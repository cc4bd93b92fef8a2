"""A model's last attention taken apart: its projections, and what follows it for the rows that the output reads."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .attention_core import core_of, number_of, scale_and_mask
from .operation_names import CUTS
from .operations import NotInClosedFormError, Operation, Slot
from .prediction import Prediction
from .projections import between, projection_of
from .row_axes import Axis, most_rows
from .rows import RowPlan, rows_of
from .token_pass import TokenPass


class LastAttention:
    """A softmax attention of which everything is known that a closed form needs.

    `output = softmax(scale * query . turn_key(key) + mask) value`, of which the model's output reads some rows only.

    Args:
        run: The pass.

    Attributes:
        tokens: (batch, tokens, channels).
        picked_queries: Which queries the output reads: numbers, or a tensor with one for each sample; None: all.
        query_rows: How many.
        rows: Which tokens' queries are read: numbers, or a tensor with one for each sample.
        key: The keys' projection.
        value: The values' projection.
        heads: Number of heads.
        scale: Factor of the products.
        rows_stay_apart: Is the output (batch, rows, values), each row made of one of these tokens' rows alone?
        mask: Added to the products of these rows, broadcasting to (batch, heads, rows, tokens), or None.

    Raises:
        NotInClosedFormError: if the model or this call of it is another one.
    """

    def __init__(self, run: TokenPass) -> None:
        found, tokens = run.continuation, run.tokens
        if run.reason is not None:
            raise NotInClosedFormError(run.reason)
        if any(not op.differentiable or op.name in CUTS for op in found.operations):
            raise NotInClosedFormError("gradients are cut behind the tokens (torch.no_grad or detach)")
        if found.attention is None:
            raise NotInClosedFormError("the tokens do not enter an attention by the layer that was given")
        output = run.prediction.outputs
        if output.dim() == 0 or output.shape[0] == 0 or run.batch % output.shape[0]:
            raise NotInClosedFormError("the output has no batch axis")
        if tokens.dim() != 3 or run.channels != 2:
            raise NotInClosedFormError("the tokens are not one sequence for each sample")
        self.run, self.tokens = run, tokens.detach()
        self._recorder, self._found = run.watched.recorder, found
        self._batch, self._count, _ = tokens.shape
        core = core_of(self._recorder, found, found.attention)
        self.value = projection_of(run, core.value, allow_turn=False)
        self.key = projection_of(run, core.key, allow_turn=True)
        self._query, self._output = core.query, found.attention.output
        self.heads = self._recorder.shapes[self._output][1]
        self._queries = self._recorder.shapes[self._query][2]
        self._token_axis = Axis(1 if run.layout.axis == 0 else 0)
        tied = self._plan_query()
        self._plan_after(found.attention.operation, core.operations, tied=tied)
        self.picked_queries = self._after.picked
        self.query_rows = number_of(self.picked_queries, self._queries)
        self.rows = self._rows_of_tokens(tied=tied)
        self.scale, self.mask = scale_and_mask(run, core, self.picked_queries)

    def _plan_query(self) -> bool:
        """How queries are made again from the tokens' rows; whether each is made of the token of its own number."""
        found, recorder = self._found, self._recorder
        self._query_plan: RowPlan | None = None
        if self._query not in found.dependent:
            if self._query not in found.externals:
                raise NotInClosedFormError("queries were not kept")
            return False
        chain = between(found, self._query)
        plan = RowPlan(recorder, chain, {found.slot: self._token_axis}, self._count, found.externals)
        self._query_plan, axis = plan, plan.axes[self._query]
        tied = axis == Axis(2)
        if not tied and axis is not None:
            raise NotInClosedFormError("queries of several tokens lie on one axis")
        if tied and plan.picked is not None:
            raise NotInClosedFormError("queries are made of some tokens")
        return tied

    def _plan_after(self, attention: Operation, core: list[Operation], *, tied: bool) -> None:
        """How the output is made again from some rows of the attention's output, and of the tokens."""
        found = self._found
        before = {*core, *between(found, self._query), *between(found, *attention.inputs), attention}
        after = [op for op in found.operations if op not in before]
        start: dict[Slot, Axis | None] = {self._output: Axis(2) if self._queries > 1 else None}
        self._reads_tokens = any(found.reads_tokens(op) for op in after)
        if self._reads_tokens and not tied:
            raise NotInClosedFormError("the tokens are also read outside the attention")
        if self._reads_tokens:
            if any(found.slot in op.inputs and not found.reads_tokens(op) for op in after):
                raise NotInClosedFormError("the tokens go past the attention, too, and gate what it gives")
            start[found.slot] = self._token_axis
        self._after = RowPlan(self._recorder, after, start, self._queries, found.externals)
        wanted = self._wanted()
        if any(slot not in self._after.axes and slot not in found.externals for slot in wanted):
            raise NotInClosedFormError("what is explained is made before the attention")
        axes = {slot: self._after.axes.get(slot) for slot in wanted}
        if any(axis is not None and axis.stop is None for axis in axes.values()):
            raise NotInClosedFormError("the output reads all tokens")
        self.rows_stay_apart = self._keeps_rows_apart(axes, tied=tied)
        for slot in wanted:
            self._after.settle(slot)
        if self._after.picked is None and self._queries > most_rows(self._count):
            raise NotInClosedFormError("the output reads all tokens")

    def _keeps_rows_apart(self, axes: Mapping[Slot, Axis | None], *, tied: bool) -> bool:
        """Is the output (batch, rows, values), of which each row is made of the same row of the tokens alone?"""
        axis = axes.get(self._wanted()[0])
        shape = self._recorder.shapes[self._wanted()[0]]
        alone = tied or (not self._reads_tokens and self._query_plan is None)
        return alone and len(shape) == 3 and axis is not None and axis[:3] == (1, 1, 1) and not self._after.picked

    def _rows_of_tokens(self, *, tied: bool) -> list[int] | Tensor:
        """The tokens that make the queries that are read."""
        if self._query_plan is None:
            return [0]
        rows = self.picked_queries if tied else self._query_plan.picked
        if rows is None and not tied:
            raise NotInClosedFormError("queries are made of all tokens")
        return list(range(self._queries)) if rows is None else rows

    # Going on from the attention

    def own_rows(self, tokens: Tensor) -> Tensor:
        """The rows of tokens (..., tokens, channels) that the queries and what follows read."""
        return rows_of(tokens, 1, self.rows)

    def query(self, rows: Tensor) -> Tensor:
        """The queries (copies * batch, heads, rows, width) of these rows of tokens (copies * batch, rows, channels)."""
        copies = len(rows) // self._batch
        if self._query_plan is None:
            query = self._found.externals[self._query]
            query = query if self.picked_queries is None else rows_of(query, 2, self.picked_queries)
            if query.shape[0] != self._batch:
                query = query.expand(self._batch, -1, -1, -1)
            return query.repeat(copies, 1, 1, 1)
        plan = self._query_plan
        found: Tensor = self._of_copies(
            lambda own: plan.run({self._found.slot: self._natural(own)}, self.rows, [self._query])[0], copies, rows
        )
        return found

    def predict(self, attended: Tensor, rows: Tensor) -> Prediction:
        """What the model returns.

        Args:
            attended: The attention's output for the rows, (copies * batch, heads, rows, width).
            rows: The same rows of the tokens, (copies * batch, rows, channels).
        """
        copies = len(rows) // self._batch
        wanted = self._wanted()

        def follow(of_attention: Tensor, own: Tensor) -> tuple[Tensor, ...]:
            given = {self._output: of_attention.to(self._recorder.dtypes[self._output])}
            if self._reads_tokens:
                given[self._found.slot] = self._natural(own)
            known = {slot: self._found.externals[slot] for slot in wanted if slot not in self._after.axes}
            return tuple(self._after.run({**known, **given}, self.picked_queries, wanted))

        found = self._of_copies(follow, copies, attended, rows)
        return self.run.prediction_of(found)

    def _wanted(self) -> list[Slot]:
        """The slots of the output and of the latent, if that is wanted."""
        return [slot for slot in (self.run.watched.output_slot, self.run.watched.latent_slot) if slot is not None]

    def _natural(self, rows: Tensor) -> Tensor:
        return rows if self.run.layout.axis == 0 else rows.transpose(0, 1)

    def _of_copies(self, function: Callable[..., Any], copies: int, *tensors: Tensor) -> Any:
        """Apply a function of one batch to several, independently: samples of different copies do not meet."""
        allowed = torch.set_grad_enabled(torch.is_grad_enabled())
        with torch.inference_mode(False), allowed:
            if copies == 1:
                return function(*tensors)
            many = [x.unflatten(0, (copies, self._batch)) for x in tensors]
            try:
                found = torch.vmap(function)(*many)
            except (RuntimeError, NotImplementedError) as error:
                raise NotInClosedFormError(
                    f"what follows the attention cannot be run for several copies: {error}"
                ) from error
        if isinstance(found, Tensor):
            return found.flatten(0, 1)
        return tuple(x.flatten(0, 1) for x in found)
