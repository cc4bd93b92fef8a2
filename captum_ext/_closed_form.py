"""Relevance for models whose output reads a few rows of their last attention: at the price of one forward pass.

With the last attention's products `s_i = scale q.k_i` and weights `a = softmax(s)`, its result for the class token is
`o = sum_i a_i v_i` per head, and what follows is run on that one row. With `g = df/do`,

    ds_i = a_i (v_i.g - o.g)
    S_i  = sum_heads a_i (t_i Wv).g + scale ds_i (t_i Wk).q        and (t_0 Wq).dq for the class token itself,

where `t` is what the gradient is multiplied with: the tokens, or their difference from the baseline. So no gradient is
projected back to token space, and keys and values, which are linear in the tokens, are projected once for all steps of
a path. Of noise, only its products with one vector per head are needed.

Source: Brocki et al. 2024, equations 2, 5 and 6; the rearrangement is ours and exact.
Shapes: a chunk of m copies and r queries gives M = m * r rows, (batch, heads, M, ...), copy after copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapters.recording import DifferentOutputError, LastAttention, NotInClosedFormError, Prediction

from ._features import CopyLayout, full_precision
from ._perturbed_tokens import Chunk, InterpolatedTokens, NoisyTokens
from ._targets import Score


def closed_form_relevance(
    last: LastAttention, scores: Sequence[Score], copies: InterpolatedTokens | NoisyTokens
) -> Tensor:
    """Weighted sums of relevance over all copies, (targets, batch, tokens), in float32 or wider.

    Args:
        last: The model's last attention.
        scores: The targets' score functions.
        copies: The copies of the tokens.

    Raises:
        NotInClosedFormError: if the model does not return for the tokens themselves what it returned.
    """
    total: Tensor | None = None
    for chunk in copies.chunks(last):
        evaluation = Evaluation.of(last, chunk)
        rows = RowGradients.of(evaluation, scores)
        groups = [slice(i, i + chunk.at_once) for i in range(0, len(scores), chunk.at_once)]
        left = range(len(groups) - 1, -1, -1)
        parts = torch.cat(
            [
                evaluation.relevance(
                    evaluation.gradients(scores[group], again=i > 0) if rows is None else rows.part(group), again=i > 0
                )
                for i, group in zip(left, groups, strict=True)
            ]
        )
        total = parts if total is None else total + parts
        del evaluation, rows, parts, chunk  # before the next chunk needs the memory
    if total is None:
        raise ValueError("Expected at least one copy.")
    return total


def closed_form_scores(last: LastAttention, scores: Sequence[Score], copies: InterpolatedTokens) -> Tensor:
    """The scores themselves, (targets, copies, batch)."""
    with torch.no_grad():
        parts = [
            torch.stack([score(Evaluation.of(last, chunk).prediction) for score in scores])
            for chunk in copies.chunks(last)
        ]
        return torch.cat(parts, 1).view(len(scores), len(copies), -1)


def check_closed_form(last: LastAttention) -> None:
    """See whether the attention, taken apart, gives what the model returned.

    Raises:
        NotInClosedFormError: if it does not.
    """
    with torch.no_grad():
        for chunk in InterpolatedTokens(alphas=[1.0], weights=[0.0]).chunks(last):
            Evaluation.of(last, chunk)


@dataclass
class Evaluation:
    """The model's output for some copies of the tokens, with what the formula needs of the way there.

    Attributes:
        last: The model's last attention.
        chunk: The copies.
        tokens: Their rows that are read, a leaf.
        query: The queries (m * batch, heads, r, width), with the graph from the tokens.
        vectors: The same by rows.
        along: Products of the vectors with what the keys are multiplied with.
        weights: The attention's weights (batch, heads, M, tokens).
        mixed: The attention's output (m * batch, heads, r, width), a leaf.
        prediction: What the model returns, with the graph from there.
    """

    last: LastAttention
    chunk: Chunk
    tokens: Tensor
    query: Tensor
    vectors: Tensor
    along: Tensor
    weights: Tensor
    mixed: Tensor
    prediction: Prediction

    @classmethod
    def of(cls, last: LastAttention, chunk: Chunk) -> "Evaluation":
        """Evaluate a chunk.

        Raises:
            NotInClosedFormError: if it holds the tokens themselves and does not give what the model returned.
        """
        gradients = torch.is_grad_enabled() or chunk.weights.any()
        copies = chunk.copies
        tokens = chunk.tokens.requires_grad_()
        with torch.set_grad_enabled(bool(gradients)):
            query = last.query(tokens)
        with full_precision(tokens):
            vectors = copies.as_rows(query.detach().to(chunk.weights.dtype))
            products, along = chunk.keys.products(vectors)
            weights = _masked(last, products, copies).softmax(-1)
            del products
            mixed = chunk.values.mix(weights)
            if last.value.bias is not None:
                mixed = mixed + last.value.bias.to(mixed)[:, None]
            mixed = copies.as_samples(mixed).contiguous()
        mixed.requires_grad_()
        with torch.set_grad_enabled(bool(gradients)):
            prediction = last.predict(mixed, tokens)
        if chunk.own is not None:
            count = last.run.prediction.outputs.shape[0]
            first = chunk.own * count
            try:
                last.run.check(Prediction(prediction.outputs[first : first + count], prediction.latents))
            except DifferentOutputError:
                raise NotInClosedFormError("taken apart, the model returns something else") from None
        return cls(last, chunk, tokens, query, vectors, along, weights, mixed, prediction)

    def relevance(self, gradients: "Gradients", *, again: bool) -> Tensor:
        """Relevance (targets, batch, tokens), summed over the chunk.

        Args:
            gradients: Those of the targets' scores.
            again: Will it be asked for others? Else memory is freed.
        """
        of_mixed, of_tokens, reads = gradients
        targets, chunk = len(of_mixed), self.chunk
        copies = chunk.copies.times(targets)
        wide = chunk.weights.dtype
        with full_precision(self.tokens):
            weights = chunk.weights.repeat(targets)
            attention, vectors, along_keys = (
                x if targets == 1 else x.repeat(1, 1, targets, 1) for x in (self.weights, self.vectors, self.along)
            )
            gradient = copies.as_rows(of_mixed.flatten(0, 1).to(wide))
            gradient = gradient * weights.repeat_interleave(copies.rows)[:, None]
            products, along = chunk.values.times(targets).products(gradient)
            part = copies.by_copy((attention * along).sum(1))
            of_weights = products - (attention * products).sum(-1, keepdim=True)
            of_products = self.last.scale * attention * of_weights
            key_part, of_vectors = chunk.keys.times(targets).pull(of_products, vectors, along_keys)
            found: Tensor = (part + key_part).unflatten(0, (targets, -1)).sum(1)
            of_rows = chunk.weights.repeat_interleave(copies.batch).view(-1, 1, 1) * of_tokens.to(wide)
            if self.query.requires_grad:
                of_query = copies.as_samples(of_vectors).unflatten(0, (targets, -1)).to(self.query.dtype)
                of_rows = of_rows + self._by_query(of_query, reads, again=again).to(wide)
            own = (chunk.multiplier.to(wide) * of_rows).sum(3).unflatten(1, (-1, copies.batch)).sum(1)
            rows = self.last.rows
            if isinstance(rows, Tensor):
                found.scatter_add_(2, rows.to(found.device)[:, None].expand(targets, -1, -1), own)
            else:
                found.index_add_(2, torch.tensor(rows, device=found.device), own)
        return found

    def gradients(self, scores: Sequence[Score], *, again: bool) -> "Gradients":
        """Those of any scores."""
        with torch.enable_grad():
            total = torch.stack([score(self.prediction).sum() for score in scores])
        each = torch.eye(len(scores), dtype=total.dtype, device=total.device)
        of_mixed, of_tokens = _gradients([total], [self.mixed, self.tokens], each, again=again)
        return Gradients(of_mixed, of_tokens, None)

    def _by_query(self, of_query: Tensor, reads: Tensor | None, *, again: bool) -> Tensor:
        """The gradients by the tokens' rows of what the queries give, (targets, m * batch, r, channels)."""
        if reads is None:
            return _gradients([self.query], [self.tokens], of_query, again=again)[0]
        both = _gradients([self.query], [self.tokens], of_query.sum(0, keepdim=True), again=again)[0]
        return both * reads[..., None]


class Gradients(NamedTuple):
    """The gradients of some targets' scores.

    Attributes:
        of_mixed: By the attention's output, (targets, m * batch, heads, r, width).
        of_tokens: By the tokens' rows behind it, (targets, m * batch, r, channels).
        reads: (targets, m * batch, r), which rows each target reads, where no other one reads these; or None.
    """

    of_mixed: Tensor
    of_tokens: Tensor
    reads: Tensor | None


@dataclass
class RowGradients:
    """The gradients of targets that read different rows of the output, all from one pass backwards.

    Attributes:
        of_mixed: Their sum by the attention's output, (m * batch, heads, r, width).
        of_tokens: The same by the tokens' rows behind it, (m * batch, r, channels).
        reads: (targets, m * batch, r), which rows each target reads.
    """

    of_mixed: Tensor
    of_tokens: Tensor
    reads: Tensor

    @classmethod
    def of(cls, evaluation: Evaluation, scores: Sequence[Score]) -> "RowGradients | None":
        """None if two targets read the same row, or a row of the output does not depend on one token's row alone."""
        outputs, latents = evaluation.prediction
        if len(scores) == 1 or not evaluation.last.rows_stay_apart or latents is not outputs:
            return None
        leaf = outputs.detach().requires_grad_()
        total, reads = torch.zeros_like(leaf), []
        for score in scores:
            with torch.enable_grad():
                value = score(Prediction(leaf, leaf)).sum()
            (found,) = torch.autograd.grad(value, leaf, allow_unused=True) if value.requires_grad else (None,)
            reads.append(torch.zeros_like(leaf[..., 0], dtype=torch.bool) if found is None else (found != 0).any(-1))
            total += 0 if found is None else found
        rows = torch.stack(reads)
        if bool((rows.sum(0) > 1).any()):
            return None
        by = [evaluation.mixed, evaluation.tokens]
        of_mixed, of_tokens = _gradients([outputs], by, total[None], again=False)
        return cls(of_mixed[0], of_tokens[0], rows)

    def part(self, targets: slice) -> Gradients:
        """Those of some targets."""
        reads = self.reads[targets]
        return Gradients(self.of_mixed * reads[:, :, None, :, None], self.of_tokens * reads[..., None], reads)


def _gradients(made: list[Tensor], ends: list[Tensor], vectors: Tensor, *, again: bool) -> list[Tensor]:
    """Products of several vectors with the Jacobians, (vectors, ...); zeros where nothing depends on an end."""
    if not made[0].requires_grad:
        return [_or_zeros(None, end, len(vectors)) for end in ends]
    options: dict[str, Any] = {"retain_graph": again or len(vectors) > 1, "allow_unused": True}
    try:
        if len(vectors) > 1:
            found = torch.autograd.grad(made, ends, vectors, is_grads_batched=True, **options)
            return [_or_zeros(x, end, len(vectors)) for x, end in zip(found, ends, strict=True)]
    except (RuntimeError, NotImplementedError):  # an operation whose gradient vmap does not know
        pass
    each = [torch.autograd.grad(made, ends, vector, **options) for vector in vectors]
    parts = zip(*each, strict=True)
    return [
        _or_zeros(None if part[0] is None else torch.stack(part), end, len(vectors))
        for part, end in zip(parts, ends, strict=True)
    ]


def _or_zeros(gradient: Tensor | None, end: Tensor, number: int) -> Tensor:
    return end.new_zeros((number, *end.shape)) if gradient is None else gradient


def _masked(last: LastAttention, products: Tensor, copies: CopyLayout) -> Tensor:
    mask, scaled = last.mask, last.scale * products
    if mask is None:
        return scaled
    if mask.shape[-2] > 1:
        mask = mask.repeat(*[1] * (mask.dim() - 2), copies.number, 1)
    return scaled + mask.to(scaled)
