"""From the products of queries and keys to the weighted values: the operands of an attention, its scale and mask."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention_calls import AttentionCall, fused_operands, product_before
from .continuation import Continuation
from .operations import NotInClosedFormError, Operation, Slot
from .recorder import Recorder
from .row_axes import Axis
from .rows import RowPlan, rows_of
from .token_pass import TokenPass

_MATRIX_PRODUCTS = ("matmul", "__matmul__")
_AFFINE = frozenset(
    [
        *("mul", "mul_", "multiply", "div", "div_", "true_divide", "add", "add_", "sub", "sub_", "subtract"),
        *("masked_fill", "masked_fill_", "where", "dropout", "to", "type", "type_as", "float", "half", "bfloat16"),
        *("double", "contiguous", "clone"),
    ]
)
"""What may happen to products on the way to the softmax; that it is a factor and a mask is tried besides."""
_NOTHING = frozenset(["dropout", "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone"])
_SEEN = 1e3  # a masked product is below minus this


class AttentionCore(NamedTuple):
    """The operands of an attention, and the operations from their products to the weighted values."""

    query: Slot
    key: Slot
    value: Slot
    operations: list[Operation]


def core_of(recorder: Recorder, found: Continuation, attention: AttentionCall) -> AttentionCore:
    """Take an attention apart.

    Raises:
        NotInClosedFormError: if it is more than a softmax of scaled and masked products.
    """
    operation = attention.operation
    if len(recorder.shapes[attention.output]) != 4:
        raise NotInClosedFormError("the attention's output is not (batch, heads, tokens, width)")
    if attention.softmax is None:
        return AttentionCore(*fused_operands(operation), [operation])
    product = product_before(recorder, attention.softmax)
    if (
        product is None
        or not {product.name, operation.name} <= {*_MATRIX_PRODUCTS}
        or len(product.inputs) != 2
        or operation.inputs != (attention.weights, attention.value)
    ):
        raise NotInClosedFormError("the attention's products are not matrix products of queries and keys")
    query, transposed = product.inputs
    key = _transposed(recorder, transposed)
    operations = [product, *_behind(recorder, found, attention, product)]
    if attention.softmax not in operations:
        raise NotInClosedFormError("the attention's products are not matrix products of queries and keys")
    if len(recorder.shapes[product.outputs[0]]) != 4:
        raise NotInClosedFormError("the attention's products are not (batch, heads, tokens, tokens)")
    return AttentionCore(query, key, attention.value, operations)


def _behind(recorder: Recorder, found: Continuation, attention: AttentionCall, product: Operation) -> list[Operation]:
    """The operations that lead from the products to the weighted values, each of them checked."""
    reached = {product.outputs[0]}
    kept = []
    for one in found.operations:
        if not product.index < one.index <= attention.operation.index or reached.isdisjoint(one.inputs):
            continue
        if any(s in found.dependent and s not in reached and s != attention.value for s in one.inputs):
            raise NotInClosedFormError("something that depends on the tokens is added to the products")
        _check_weights(one, attention)
        made = recorder.dtypes[one.outputs[0]]
        if made.is_floating_point and torch.finfo(made).bits < torch.finfo(recorder.dtypes[found.slot]).bits:
            raise NotInClosedFormError(f"the attention's weights are rounded to {made}")
        reached.update(one.outputs)
        kept.append(one)
    return kept


def _check_weights(operation: Operation, attention: AttentionCall) -> None:
    """Products may be scaled and masked in front of the softmax, weights not be changed behind it."""
    if operation in (attention.operation, attention.softmax) or attention.softmax is None:
        return
    allowed = _AFFINE if operation.index < attention.softmax.index else _NOTHING
    if operation.name not in allowed:
        raise NotInClosedFormError(f"the attention's weights are changed by `{operation.name}`")


def _transposed(recorder: Recorder, slot: Slot) -> Slot:
    writers = recorder.writers[slot]
    operation = writers[0] if writers else None
    if operation is not None and operation.name in ("transpose", "mT", "swapaxes") and len(recorder.shapes[slot]) == 4:
        dims = {int(d) % 4 for d in operation.args[1:3] if isinstance(d, int)} if operation.name != "mT" else {2, 3}
        if dims == {2, 3}:
            return operation.inputs[0]
    raise NotInClosedFormError("keys are not transposed by the last two axes")


def scale_and_mask(
    run: TokenPass, core: AttentionCore, picked: list[int] | Tensor | None
) -> tuple[float, Tensor | None]:
    """The factor of the products, and what is added to those of the picked queries.

    Raises:
        NotInClosedFormError: if more happens to the products.
    """
    attention = run.continuation.attention
    if attention is None or attention.softmax is None:
        return _given_to_fused(run, core, picked)
    axis = attention.softmax.kwargs.get("dim", attention.softmax.args[1] if len(attention.softmax.args) > 1 else -1)
    if axis not in (-1, 3):
        raise NotInClosedFormError("the weights are not normalised over the tokens")
    zero, one, two = _at_constant_products(run, core, attention.softmax, picked)
    seen = torch.isfinite(zero) & (zero.abs() < _SEEN)
    if not bool(seen.any()):
        raise NotInClosedFormError("every product is masked")
    slopes = torch.stack([(one - zero)[seen], (two - one)[seen]]).double()
    scale = float(slopes[0, 0])
    if bool(((slopes - scale).abs() > torch.finfo(zero.dtype).eps ** 0.5 * abs(scale)).any()):
        raise NotInClosedFormError("the products are changed by more than a factor and a mask before the softmax")
    return scale, zero if bool((zero != 0).any()) else None


def _at_constant_products(
    run: TokenPass, core: AttentionCore, softmax: Operation, picked: list[int] | Tensor | None
) -> list[Tensor]:
    """What the softmax reads where all products are 0, 1 and 2."""
    recorder, products = run.watched.recorder, core.operations[0].outputs[0]
    chain = core.operations[1 : core.operations.index(softmax)]
    shape = [*recorder.shapes[products]]
    plan = RowPlan(recorder, chain, {products: Axis(2)}, shape[2], run.continuation.externals)
    if plan.picked is not None:
        raise NotInClosedFormError("products are picked before the softmax")
    shape[2] = number_of(picked, shape[2])
    like = run.tokens.detach().new_empty(shape, dtype=recorder.dtypes[products])
    with torch.no_grad():
        return [
            plan.run({products: torch.full_like(like, value)}, picked, [softmax.inputs[0]])[0]
            for value in (0.0, 1.0, 2.0)
        ]


def _given_to_fused(
    run: TokenPass, core: AttentionCore, picked: list[int] | Tensor | None
) -> tuple[float, Tensor | None]:
    """Scale and mask as they were given to torch's fused attention."""
    recorder, found, operation = run.watched.recorder, run.continuation, core.operations[0]
    given: dict[str, Any] = dict(zip(("attn_mask", "dropout_p", "is_causal"), operation.args[3:], strict=False))
    given |= operation.kwargs
    queries, width = recorder.shapes[core.query][2:]
    scale = float(width**-0.5 if given.get("scale") is None else given["scale"])
    mask = None
    if isinstance(given.get("attn_mask"), Slot):
        if given["attn_mask"] in found.dependent:
            raise NotInClosedFormError("the attention's mask depends on the tokens")
        mask = found.externals[given["attn_mask"]]
        if mask.dtype is torch.bool:
            mask = torch.zeros_like(mask, dtype=run.tokens.dtype).masked_fill_(~mask, -float("inf"))
    if given.get("is_causal"):
        mask = run.tokens.detach().new_full((queries, run.count), -float("inf")).triu_(1)
    if mask is None:
        return scale, None
    mask = mask[(None,) * (4 - mask.dim())]
    return scale, mask if picked is None or mask.shape[2] == 1 else rows_of(mask, 2, picked)


def number_of(picked: list[int] | Tensor | None, queries: int) -> int:
    """How many rows are picked of so many."""
    if picked is None:
        return queries
    return 1 if isinstance(picked, Tensor) else len(picked)
