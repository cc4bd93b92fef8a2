"""The formulas once more, for models whose output reads their first tokens only: at the price of one forward pass.

With the last attention's products `s_i = scale q.(k_i)` and weights `a = softmax(s)`, its result for the class token is
`o = sum_i a_i v_i` per head, and what follows is run on that one row. With `g = df/do`,

    ds_i = a_i (v_i.g - o.g)
    S_i  = sum_heads a_i (t_i Wv).g + scale ds_i (t_i Wk).q        and (t_0 Wq).dq for the class token itself,

where `t` is what the gradient is multiplied with: the tokens, or their difference from the baseline. So no gradient is
projected back to token space, and keys and values, which are linear in the tokens, are projected once for all steps of
a path. Of noise, only its products with one vector per head are needed.

Source: Brocki et al. 2024, equations 2, 5 and 6; the rearrangement is ours and exact.
Shapes: a chunk of m copies and the r first tokens give M = m * r rows, (batch, heads, M, ...), copy after copy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters import Attention, ClassTokenTail, Projection

from ._features import Cloud, Copies, Features, Path, Turned
from ._targets import Score

SCRATCH = 13  # a chunk's scratch memory, in multiples of the tokens' own; the forward pass itself needs about 12


class Chunk(NamedTuple):
    """Some copies of the tokens, evaluated at once.

    Attributes:
        copies: How many, and their layout.
        keys: Their keys.
        values: Their values, without the projection's bias.
        tokens: (m * batch, rows, channels), the first tokens.
        multiplier: (m * batch, rows, channels), `t` of the first tokens.
        weights: (m,), of the copies in the sum.
    """

    copies: Copies
    keys: Features
    values: Features
    tokens: Tensor
    multiplier: Tensor
    weights: Tensor


def class_token_relevance(
    tail: ClassTokenTail, scores: Sequence[Score], chunks: Iterator[Chunk], total: int
) -> tuple[Tensor, Tensor]:
    """Weighted sums of relevance over all copies, for each score.

    Args:
        tail: The model.
        scores: The targets' score functions.
        chunks: Copies of the tokens; asked for the first one when the tail knows its tokens.
        total: How many copies there are in all chunks.

    Returns:
        Scores (targets, batch, tokens) in float32 or wider, and whether any patch received a gradient at all,
        (targets, batch).
    """
    parts = alive = None
    done = 0
    while done < total:
        reading = Reading(tail, chunks)
        done += reading.copies
        left = range(len(scores) - 1, -1, -1)
        answers = [reading.relevance(score, again=i > 0) for i, score in zip(left, scores, strict=True)]
        part, reached = (torch.stack(column) for column in zip(*answers, strict=True))
        parts = part if parts is None else parts + part
        alive = reached if alive is None else alive | reached
    if parts is None or alive is None:
        raise ValueError("Expected at least one copy.")
    return parts, alive


class Reading:
    """The model's output for a chunk, and the relevance of the tokens for it."""

    def __init__(self, tail: ClassTokenTail, chunks: Iterator[Chunk]) -> None:
        self._tail = tail
        self._chunks = chunks
        self.readout = tail.read(self._mix)

    @property
    def copies(self) -> int:
        """How many copies the chunk has."""
        return self._chunk.copies.number

    def _mix(self) -> tuple[Tensor, Tensor]:
        chunk, attention = next(self._chunks), self._tail.attention
        self._chunk = chunk
        self._tokens = chunk.tokens.requires_grad_()
        with torch.enable_grad():
            query = attention.in_heads(F.linear(self._tokens, *attention.query))
            self._query = query if attention.turn_query is None else attention.turn_query(query)
        with _exactly(self._tokens):
            self._vectors = chunk.copies.as_rows(self._query.detach().to(chunk.weights.dtype))
            products, self._along = chunk.keys.products(self._vectors)
            self._weights = _masked(attention, products, chunk.copies).softmax(-1)
            mixed = chunk.values.mix(self._weights)
            if attention.value.bias is not None:
                mixed = mixed + attention.value.bias.to(mixed).view(attention.heads, 1, -1)
            mixed = chunk.copies.as_samples(mixed).transpose(1, 2).flatten(2).to(query.dtype)
        self._mixed = mixed.requires_grad_()
        return self._mixed, self._tokens

    def relevance(self, score: Score, *, again: bool) -> tuple[Tensor, Tensor]:
        """Scores (batch, tokens), summed over the chunk, and whether any patch received a gradient, (batch,).

        Args:
            score: Reads the target's scores.
            again: Will it be asked for another score? Else memory is freed.
        """
        chunk, copies = self._chunk, self._chunk.copies
        with torch.enable_grad():
            total = score(self.readout).sum()
        ends = (self._mixed, self._tokens)
        found: tuple[Tensor | None, ...] = (None, None)
        if total.requires_grad:
            found = torch.autograd.grad(total, ends, retain_graph=again, allow_unused=True)
        of_mixed, of_tokens = (torch.zeros_like(x) if g is None else g for x, g in zip(ends, found, strict=True))
        with _exactly(self._tokens):
            gradient = copies.as_rows(self._tail.attention.in_heads(of_mixed.to(chunk.weights.dtype)))
            gradient = gradient * chunk.weights.repeat_interleave(copies.rows)[:, None]
            products, along = chunk.values.products(gradient)
            value_part = self._weights * along
            of_weights = products - (self._weights * products).sum(-1, keepdim=True)
            of_products = self._tail.attention.scale * self._weights * of_weights
            key_part, of_vectors = chunk.keys.pull(of_products, self._vectors, self._along)
            part = value_part.sum((1, 2)) + key_part
            of_query = copies.as_samples(of_vectors).to(self._query.dtype)
        (through_query,) = torch.autograd.grad(self._query, self._tokens, of_query, retain_graph=again)
        wide = chunk.weights.dtype
        weights = chunk.weights.repeat_interleave(copies.batch).view(-1, 1, 1)
        of_rows = through_query.to(wide) + weights * of_tokens.to(wide)
        own = (chunk.multiplier.to(wide) * of_rows).sum(2).unflatten(0, (-1, copies.batch)).sum(0)
        part[:, : copies.rows] += own
        reached = (self._weights[..., self._tail.prefix :] > 0).flatten(1).any(1) & (gradient != 0).flatten(1).any(1)
        return part, reached


def path_chunks(
    tail: ClassTokenTail,
    baseline: Callable[[Tensor], Tensor] | None,
    alphas: Sequence[float],
    weights: Sequence[float],
    at_once: Callable[[Tensor], int] | None = None,
) -> Iterator[Chunk]:
    """Copies on the path from a baseline to the tokens.

    Args:
        tail: The model.
        baseline: `T~` from the tokens, of their shape; None: zeros.
        alphas: Points on the path, 0 to 1.
        weights: Those of the points in the sum.
        at_once: From the tokens the copies in a chunk; None: as many as keep memory independent of their number.
    """
    attention, tokens, rows = tail.attention, tail.tokens, tail.rows
    origin = None if baseline is None else baseline(tokens)
    step = tokens if origin is None else tokens - origin
    both = (attention.key, attention.value)
    key_steps, value_steps = (_project(attention, step, p) for p in both)
    dtype, wide = key_steps.dtype, torch.promote_types(tokens.dtype, torch.float32)
    key_steps, value_steps = key_steps.to(wide), value_steps.to(wide)
    key_start = value_start = None
    if origin is not None:
        key_start, value_start = (_project(attention, origin, p).to(wide) for p in both)
    turn, bias = attention.turn_key, _bias(attention, attention.key, wide)
    if turn is not None and attention.turn_is_linear:
        key_steps = turn(key_steps)
        if bias is not None:
            start = bias if key_start is None else key_start + bias
            key_start = turn(start.expand_as(key_steps))
        elif key_start is not None:
            key_start = turn(key_start)
    first_step = step[:, :rows]
    first_start = torch.zeros_like(first_step) if origin is None else origin[:, :rows]
    points, sizes = (torch.tensor(x, dtype=wide, device=tokens.device) for x in (alphas, weights))
    del step, origin
    for here in _slices(len(alphas), at_once(tokens) if at_once else _copies_at_once(tail)):
        alpha = points[here]
        copies = Copies(len(alpha), len(tokens), rows)
        path = Path(key_start, key_steps, alpha, copies)
        keys = path if turn is None or attention.turn_is_linear else Turned(path, bias, turn, dtype)
        own = (first_start.to(wide) + alpha.view(-1, 1, 1, 1) * first_step.to(wide)).flatten(0, 1)
        multiplier = first_step.repeat(len(alpha), 1, 1)
        values = Path(value_start, value_steps, alpha, copies)
        yield Chunk(copies, keys, values, own.to(tokens.dtype), multiplier, sizes[here])


def noise_chunks(
    tail: ClassTokenTail,
    noise: Callable[[Tensor], Iterator[Tensor]],
    deviation: Callable[[Tensor], float | Tensor],
    samples: int,
    at_once: int | None = None,
) -> Iterator[Chunk]:
    """Noisy copies of the tokens.

    Args:
        tail: The model.
        noise: From the tokens standard normals (tokens, channels), one a copy, the same for the whole batch.
        deviation: From the tokens the noise's standard deviation, a number or (batch, 1, 1).
        samples: How many copies.
        at_once: Copies in a chunk; None: as many as keep memory independent of their number.
    """
    attention, tokens, rows = tail.attention, tail.tokens, tail.rows
    both = (attention.key, attention.value)
    key_steps, value_steps = (_project(attention, tokens, p) for p in both)
    dtype, wide = key_steps.dtype, torch.promote_types(tokens.dtype, torch.float32)
    key_steps, value_steps = key_steps.to(wide), value_steps.to(wide)
    key_weight, value_weight = (p.weight.to(wide).unflatten(0, (attention.heads, -1)) for p in both)
    normals, sigma = noise(tokens), deviation(tokens)
    each_head = sigma if isinstance(sigma, float) else sigma[:, None]
    at_once = min(samples, at_once or _copies_at_once(tail, noise=True))
    memory = tokens.new_empty((at_once, *tokens.shape[1:]), dtype=wide)
    for here in _slices(samples, at_once):
        drawn = memory[: here.stop - here.start]
        for one in drawn:
            one.copy_(next(normals))
        copies = Copies(len(drawn), len(tokens), rows)
        cloud = Cloud(key_steps, key_weight, drawn, each_head, copies)
        bias = _bias(attention, attention.key, wide)
        keys = cloud if attention.turn_key is None else Turned(cloud, bias, attention.turn_key, dtype)
        values = Cloud(value_steps, value_weight, drawn, each_head, copies)
        own = (tokens[:, :rows] + sigma * drawn[:, None, :rows]).flatten(0, 1).to(tokens.dtype)
        sizes = tokens.new_full((len(drawn),), 1 / samples, dtype=wide)
        yield Chunk(copies, keys, values, own, own.clone(), sizes)


def _project(attention: Attention, tokens: Tensor, projection: Projection) -> Tensor:
    """Keys or values without their bias, (batch, heads, tokens, width)."""
    return attention.in_heads(F.linear(tokens, projection.weight)).contiguous()


def _bias(attention: Attention, projection: Projection, dtype: torch.dtype) -> Tensor | None:
    """(heads, 1, width)."""
    return None if projection.bias is None else projection.bias.to(dtype).view(attention.heads, 1, -1)


def _masked(attention: Attention, products: Tensor, copies: Copies) -> Tensor:
    mask, scaled = attention.mask_of(copies.rows), attention.scale * products
    if mask is None:
        return scaled
    if mask.shape[-2] > 1:
        mask = mask.repeat(*[1] * (mask.dim() - 2), copies.number, 1)
    return scaled + mask


def _slices(count: int, at_once: int) -> Iterator[slice]:
    """Parts of equal size, as far as that goes."""
    parts = -(-count // at_once)
    bounds = [count * i // parts for i in range(parts + 1)]
    return map(slice, bounds[:-1], bounds[1:])


def _copies_at_once(tail: ClassTokenTail, *, noise: bool = False) -> int:
    """How many copies to evaluate at once, so that memory does not grow with their number."""
    batch, tokens, channels = tail.tokens.shape
    attention = tail.attention
    written = attention.turn_key is not None and (noise or not attention.turn_is_linear)
    rows = tail.rows * (24 * channels + 8 * attention.heads * tokens)
    rows += 3 * tokens * channels // batch if noise else 0
    rows += 8 * tokens * channels if written else 0
    return max(1, int(SCRATCH * tokens * channels // rows))


@contextmanager
def _exactly(like: Tensor) -> Iterator[None]:
    """Without gradients, and in the types given even under autocast."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        yield
