"""The copies of the tokens that a formula sums over: on a path from a baseline, or with noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters import AttentionTail, Projection

from ._class_token_reading import ClassTokenChunk
from ._differentiated_reading import DifferentiatedChunk
from ._features import Cloud, Copies, Path, Turned, known_attention

TOKENS_PER_PASS = 1024
SCRATCH = 13  # memory of a chunk in multiples of the tokens' own; the forward pass itself needs about 12
LITTLE = 2**20  # numbers that a chunk may always use


@dataclass(frozen=True)
class PathCopies:
    """Copies on the path from a baseline to the tokens, multiplied with their difference.

    Attributes:
        alphas: Points on the path, 0 to 1.
        weights: Those of the points in the sum.
        baseline: `T~` from the tokens, of their shape; None: zeros.
        at_once: From the tokens the copies in a chunk; None: as many as keep memory independent of their number.
    """

    alphas: Sequence[float]
    weights: Sequence[float]
    baseline: Callable[[Tensor], Tensor] | None = None
    at_once: Callable[[Tensor], int] | None = None

    def __len__(self) -> int:
        return len(self.alphas)

    def for_class_token(self, tail: AttentionTail) -> Iterator[ClassTokenChunk]:
        """Chunks for an output that reads the first tokens only."""
        attention, tokens, rows = known_attention(tail), tail.tokens, tail.rows
        heads = attention.heads
        origin, step = self._origin_and_step(tokens)
        both = (attention.key, attention.value)
        key_steps, value_steps = (_project(heads, step, p).contiguous() for p in both)
        dtype, wide = key_steps.dtype, _wide(tokens)
        key_steps, value_steps = key_steps.to(wide), value_steps.to(wide)
        key_start = value_start = None
        if origin is not None:
            key_start, value_start = (_project(heads, origin, p).to(wide).contiguous() for p in both)
        turn, bias = attention.turn_key, _bias(heads, attention.key, wide)
        if turn is not None and attention.turn_is_linear:
            starts = [part for part in (key_start, bias) if part is not None]
            key_start = turn(sum(starts[1:], starts[0]).expand_as(key_steps)) if starts else None
            key_steps = turn(key_steps)
        first_step = step[:, :rows].to(wide).clone()  # not a view, which would keep all rows
        first_start = torch.zeros_like(first_step) if origin is None else origin[:, :rows].to(wide)
        more = 0 if origin is None else 3
        del step, origin
        for alphas, weights in self._chunks(tail, lambda: _copies_at_once(tail, SCRATCH - more)):
            copies = Copies(len(alphas), len(tokens), rows)
            path = Path(key_start, key_steps, alphas, copies)
            yield ClassTokenChunk(
                copies,
                keys=path if turn is None or attention.turn_is_linear else Turned(path, bias, turn, dtype),
                values=Path(value_start, value_steps, alphas, copies),
                tokens=_on_path(first_start, first_step, alphas).to(tokens.dtype),
                multiplier=first_step.repeat(len(alphas), 1, 1),
                weights=weights,
            )

    def for_differentiation(self, tail: AttentionTail) -> Iterator[DifferentiatedChunk]:
        """Chunks for automatic differentiation."""
        tokens, (heads, projections) = tail.tokens, _projections(tail)
        origin, step = self._origin_and_step(tokens)
        wide = _wide(tokens)
        starts, steps, dtype = [], [], tokens.dtype
        for projection in projections:
            one, bias = _project(heads, step, projection), _bias(heads, projection, wide)
            start = one.new_zeros(1, 1, 1, 1) if origin is None else _project(heads, origin, projection)
            starts.append(start.to(wide) if bias is None else start.to(wide) + bias)
            steps.append(one.to(wide))
            dtype = one.dtype
        start = torch.zeros_like(tokens[:1]) if origin is None else origin
        for alphas, weights in self._chunks(tail, lambda: _copies_of_all(tail, len(self))):
            yield DifferentiatedChunk(
                Copies(len(alphas), *tokens.shape[:2]),
                features=[_on_path(a, b, alphas).to(dtype) for a, b in zip(starts, steps, strict=True)],
                multipliers=steps,
                tokens=_on_path(start.to(wide), step.to(wide), alphas).to(tokens.dtype),
                multiplier=step,
                weights=weights,
            )

    def _origin_and_step(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        origin = None if self.baseline is None else self.baseline(tokens)
        return origin, tokens if origin is None else tokens - origin

    def _chunks(self, tail: AttentionTail, at_once: Callable[[], int]) -> Iterator[tuple[Tensor, Tensor]]:
        tokens = tail.tokens
        columns = (torch.tensor(x, dtype=_wide(tokens), device=tokens.device) for x in (self.alphas, self.weights))
        alphas, weights = columns
        for here in _slices(len(self), self.at_once(tokens) if self.at_once and tail.attention else at_once()):
            yield alphas[here], weights[here]


@dataclass(frozen=True)
class NoiseCopies:
    """Copies of the tokens with noise, multiplied with themselves and averaged.

    Attributes:
        samples: How many.
        noise: From the tokens what fills a tensor (tokens, channels) with standard normals; one a copy, the same for
            the whole batch.
        deviation: From the tokens the noise's standard deviation, a number or (batch, 1, 1).
        at_once: Copies in a chunk; None: as many as keep memory independent of their number.
    """

    samples: int
    noise: Callable[[Tensor], Callable[[Tensor], object]]
    deviation: Callable[[Tensor], float | Tensor]
    at_once: int | None = None

    def __len__(self) -> int:
        return self.samples

    def for_class_token(self, tail: AttentionTail) -> Iterator[ClassTokenChunk]:
        """Chunks for an output that reads the first tokens only."""
        attention, tokens, rows = known_attention(tail), tail.tokens, tail.rows
        heads = attention.heads
        both = (attention.key, attention.value)
        key_steps, value_steps = (_project(heads, tokens, p).contiguous() for p in both)
        dtype, wide = key_steps.dtype, _wide(tokens)
        key_steps, value_steps = key_steps.to(wide), value_steps.to(wide)
        key_weight, value_weight = (_weight(heads, p, wide) for p in both)
        turn, bias = attention.turn_key, _bias(heads, attention.key, wide)
        deviation = self.deviation(tokens)
        of_heads = deviation if isinstance(deviation, float) else deviation[:, None]
        for drawn, weights in self._chunks(tail, _copies_at_once(tail, SCRATCH, noise=True)):
            copies = Copies(len(drawn), len(tokens), rows)
            cloud = Cloud(key_steps, key_weight, drawn, of_heads, copies)
            own = (tokens[:, :rows] + deviation * drawn[:, None, :rows]).flatten(0, 1)
            yield ClassTokenChunk(
                copies,
                keys=cloud if turn is None else Turned(cloud, bias, turn, dtype),
                values=Cloud(value_steps, value_weight, drawn, of_heads, copies),
                tokens=own.to(tokens.dtype),
                multiplier=own,
                weights=weights,
            )

    def for_differentiation(self, tail: AttentionTail) -> Iterator[DifferentiatedChunk]:
        """Chunks for automatic differentiation."""
        tokens, (heads, projections) = tail.tokens, _projections(tail)
        wide = _wide(tokens)
        parts, dtype = [], tokens.dtype
        for projection in projections:
            one = _project(heads, tokens, projection)
            parts.append((one.to(wide), _weight(heads, projection, wide), _bias(heads, projection, wide)))
            dtype = one.dtype
        deviation = self.deviation(tokens)
        of_heads = deviation if isinstance(deviation, float) else deviation[:, None]
        for drawn, weights in self._chunks(tail, _copies_of_all(tail, len(self))):
            copies = Copies(len(drawn), *tokens.shape[:2])
            noisy = [Cloud(one, weight, drawn, of_heads, copies).written()[0] for one, weight, _ in parts]
            features = [x if bias is None else x + bias for x, (_, _, bias) in zip(noisy, parts, strict=True)]
            own = (tokens + deviation * drawn[:, None]).flatten(0, 1)
            yield DifferentiatedChunk(
                copies,
                features=[x.to(dtype) for x in features],
                multipliers=noisy,
                tokens=own.to(tokens.dtype),
                multiplier=own,
                weights=weights,
            )

    def _chunks(self, tail: AttentionTail, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
        tokens = tail.tokens
        at_once = min(self.samples, self.at_once if self.at_once and tail.attention else at_once)
        fill = self.noise(tokens)
        memory = tokens.new_empty((at_once, *tokens.shape[1:]), dtype=_wide(tokens))
        weights = memory.new_full((at_once,), 1 / self.samples)
        for here in _slices(self.samples, at_once):
            drawn = memory[: here.stop - here.start]
            for one in drawn:
                fill(one)
            yield drawn, weights[: len(drawn)]


def copies_per_pass(tokens: Tensor, copies: int) -> int:
    """How many copies of all tokens to evaluate at once, so that memory does not grow with their number."""
    batch, count = tokens.shape[:2]
    return max(1, min(copies, TOKENS_PER_PASS // (batch * count)))


def _projections(tail: AttentionTail) -> tuple[int, tuple[Projection, ...]]:
    """The number of heads, and the projections to queries, keys and values; none if they are unknown."""
    attention = tail.attention
    return (1, ()) if attention is None else (attention.heads, (attention.query, attention.key, attention.value))


def _copies_of_all(tail: AttentionTail, copies: int) -> int:
    """The same; an attention that is not known is run for one copy at a time, as its other arguments are for one."""
    return 1 if tail.attention is None else copies_per_pass(tail.tokens, copies)


def _wide(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def _on_path(start: Tensor, step: Tensor, alphas: Tensor) -> Tensor:
    """(m * batch, ...), copy after copy."""
    path: Tensor = torch.addcmul(start, alphas.view(-1, *[1] * step.dim()), step)
    return path.flatten(0, 1)


def _weight(heads: int, projection: Projection, dtype: torch.dtype) -> Tensor:
    """(heads, width, channels)."""
    return projection.weight.to(dtype).reshape(heads, -1, projection.weight.shape[1])


def _project(heads: int, tokens: Tensor, projection: Projection) -> Tensor:
    """Queries, keys or values without their bias, (batch, heads, tokens, width)."""
    return F.linear(tokens, projection.weight).view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _bias(heads: int, projection: Projection, dtype: torch.dtype) -> Tensor | None:
    """(heads, 1, width)."""
    return None if projection.bias is None else projection.bias.to(dtype).view(heads, 1, -1)


def _slices(count: int, at_once: int) -> Iterator[slice]:
    """Parts of equal size, as far as that goes."""
    parts = -(-count // at_once)
    bounds = [count * i // parts for i in range(parts + 1)]
    return map(slice, bounds[:-1], bounds[1:])


def _copies_at_once(tail: AttentionTail, scratch: int, *, noise: bool = False) -> int:
    """How many copies to evaluate at once, so that memory does not grow with their number."""
    batch, tokens, channels = tail.tokens.shape
    attention = known_attention(tail)
    written = attention.turn_key is not None and (noise or not attention.turn_is_linear)
    rows = tail.rows * (24 * channels + 8 * attention.heads * tokens)
    rows += 3 * tokens * channels // batch if noise else 0
    rows += 8 * tokens * channels if written else 0
    return max(1, max(scratch * tokens * channels, LITTLE // batch) // rows)
