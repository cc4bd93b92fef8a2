"""The copies of the tokens that a formula sums over: on a path from a baseline, or with noise."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.recording import LastAttention, Projection

from ._features import (
    CopyLayout,
    Features,
    InterpolatedFeatures,
    LinearFeatures,
    MaterialisedKeys,
    NoisyFeatures,
    UnprojectedFeatures,
)

SCRATCH = 13  # memory of a chunk in multiples of the tokens' own; the forward pass itself needs about 12
LITTLE = 2**20  # numbers that a chunk may always use


class Chunk(NamedTuple):
    """Some copies of the tokens, evaluated at once.

    Attributes:
        copies: How many, and their layout.
        keys: Their keys.
        values: Their values, without the projection's bias.
        tokens: (m * batch, rows, channels), the tokens' rows that are read.
        multiplier: (m * batch, rows, channels), `t` of these rows.
        weights: (m,), of the copies in the sum.
        own: Which of the copies is the tokens themselves; None: none.
        at_once: For how many targets there is memory at once.
    """

    copies: CopyLayout
    keys: Features
    values: LinearFeatures
    tokens: Tensor
    multiplier: Tensor
    weights: Tensor
    own: int | None
    at_once: int


@dataclass(frozen=True)
class InterpolatedTokens:
    """Copies on the path from a baseline to the tokens, multiplied with their difference.

    Attributes:
        alphas: Points on the path, 0 to 1.
        weights: Those of the points in the sum.
        baseline: `T~`, of the tokens' shape; None: zeros.
        at_once: Copies in a chunk; None: as many as keep memory independent of their number.
    """

    alphas: Sequence[float]
    weights: Sequence[float]
    baseline: Tensor | None = None
    at_once: int | None = None

    def __len__(self) -> int:
        return len(self.alphas)

    def chunks(self, last: LastAttention) -> Iterator[Chunk]:
        """The copies, some at a time."""
        tokens, wide = last.tokens, _wide(last.tokens)
        baseline = self.baseline
        step = tokens if baseline is None else tokens - baseline
        first_step = last.own_rows(step).to(wide).clone()  # not a view, which would keep all rows
        first_start = torch.zeros_like(first_step) if baseline is None else last.own_rows(baseline).to(wide)
        alphas = [*self.alphas] if 1.0 in self.alphas else [*self.alphas, 1.0]
        weights = [*self.weights, *[0.0] * (len(alphas) - len(self.weights))]
        at_once = self.at_once or _copies_at_once(last, SCRATCH - 3 * (baseline is not None))
        parts = _slices(len(alphas), at_once)
        few = 2 * last.heads * last.query_rows * len(alphas) < tokens.shape[2] and last.key.turn is None
        of_key, of_value = (
            _unprojected(p, step, baseline, wide) if few else _projected(p, step, baseline, wide)
            for p in (last.key, last.value)
        )
        turned = last.key.turn is not None and not last.key.turn_is_linear
        del step
        for here in parts:
            points = torch.tensor(alphas[here], dtype=wide, device=tokens.device)
            copies = CopyLayout(len(points), len(tokens), last.query_rows)
            keys: Features = of_key(points, copies)
            if turned and last.key.turn is not None and isinstance(keys, InterpolatedFeatures):
                keys = MaterialisedKeys(keys, _bias(last.key, wide), last.key.turn, tokens.dtype)
            yield Chunk(
                copies,
                keys=keys,
                values=of_value(points, copies),
                tokens=_on_path(first_start, first_step, points).to(tokens.dtype),
                multiplier=first_step.repeat(len(points), 1, 1),
                weights=torch.tensor(weights[here], dtype=wide, device=tokens.device),
                own=alphas[here].index(1.0) if 1.0 in alphas[here] else None,
                at_once=1 if turned else max(1, at_once // len(points)),
            )


def _projected(
    projection: Projection, step: Tensor, baseline: Tensor | None, wide: torch.dtype
) -> Callable[[Tensor, CopyLayout], LinearFeatures]:
    """Features at some points of the path; a turn that is linear is done once."""
    steps = projection.of(step).to(wide).contiguous()
    start = None if baseline is None else projection.of(baseline).to(wide).contiguous()
    if projection.turn is not None and projection.turn_is_linear:
        parts = [part for part in (start, _bias(projection, wide)) if part is not None]
        start = projection.turn(sum(parts[1:], parts[0]).expand_as(steps)).to(wide) if parts else None
        steps = projection.turn(steps).to(wide)
    return functools.partial(InterpolatedFeatures, start=start, step=steps)


def _unprojected(
    projection: Projection, step: Tensor, baseline: Tensor | None, wide: torch.dtype
) -> Callable[[Tensor, CopyLayout], LinearFeatures]:
    start = None if baseline is None else baseline.to(wide)
    return functools.partial(UnprojectedFeatures, start=start, step=step.to(wide), weight=projection.weight.to(wide))


@dataclass(frozen=True)
class NoisyTokens:
    """Copies of the tokens with noise, multiplied with themselves and averaged.

    Attributes:
        samples: How many.
        noise: Fills a tensor (tokens, channels) with standard normals; one a copy, the same for the whole batch.
        deviation: The noise's standard deviation, a number or (batch, 1, 1).
        at_once: Copies in a chunk; None: as many as keep memory independent of their number.
    """

    samples: int
    noise: Callable[[Tensor], object]
    deviation: float | Tensor
    at_once: int | None = None

    def __len__(self) -> int:
        return self.samples

    def chunks(self, last: LastAttention) -> Iterator[Chunk]:
        """The copies, some at a time; first of all the tokens themselves, with weight 0."""
        tokens, wide = last.tokens, _wide(last.tokens)
        key_steps, value_steps = (p.of(tokens).contiguous() for p in (last.key, last.value))
        dtype = key_steps.dtype
        key_steps, value_steps = key_steps.to(wide), value_steps.to(wide)
        key_weight, value_weight = (p.weight.to(wide) for p in (last.key, last.value))
        turn, bias = last.key.turn, _bias(last.key, wide)
        deviation = self.deviation
        of_heads = deviation if isinstance(deviation, float) else deviation[:, None]
        at_once = min(self.samples + 1, self.at_once or _copies_at_once(last, SCRATCH, noise=True))
        memory = tokens.new_empty((at_once, *tokens.shape[1:]), dtype=wide)
        for here in _slices(self.samples + 1, at_once):
            drawn = memory[: here.stop - here.start]
            for number, one in enumerate(drawn, here.start):
                if number == 0:
                    one.zero_()
                else:
                    self.noise(one)
            weights = memory.new_full((len(drawn),), 1 / self.samples)
            if here.start == 0:
                weights[0] = 0
            copies = CopyLayout(len(drawn), len(tokens), last.query_rows)
            keys = NoisyFeatures(key_steps, key_weight, drawn, of_heads, copies)
            own = (last.own_rows(tokens) + deviation * _noise_rows(last, drawn)).flatten(0, 1)
            yield Chunk(
                copies,
                keys=keys if turn is None else MaterialisedKeys(keys, bias, turn, dtype),
                values=NoisyFeatures(value_steps, value_weight, drawn, of_heads, copies),
                tokens=own.to(tokens.dtype),
                multiplier=own,
                weights=weights,
                own=0 if here.start == 0 else None,
                at_once=1 if turn is not None else max(1, at_once // len(drawn)),
            )


def _noise_rows(last: LastAttention, drawn: Tensor) -> Tensor:
    """The noise of the rows that are read, (m, batch or 1, rows, channels)."""
    if isinstance(last.rows, Tensor):
        return drawn[:, last.rows.to(drawn.device)][:, :, None]
    return drawn[:, None, last.rows]


def _wide(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def _on_path(start: Tensor, step: Tensor, alphas: Tensor) -> Tensor:
    """(m * batch, ...), copy after copy."""
    path: Tensor = torch.addcmul(start, alphas.view(-1, *[1] * step.dim()), step)
    return path.flatten(0, 1)


def _bias(projection: Projection, dtype: torch.dtype) -> Tensor | None:
    """(heads, 1, width)."""
    return None if projection.bias is None else projection.bias.to(dtype)[:, None]


def _slices(count: int, at_once: int) -> Iterator[slice]:
    """Parts of equal size, as far as that goes."""
    parts = -(-count // at_once)
    bounds = [count * i // parts for i in range(parts + 1)]
    return map(slice, bounds[:-1], bounds[1:])


def _copies_at_once(last: LastAttention, scratch: int, *, noise: bool = False) -> int:
    """How many copies to evaluate at once, so that memory does not grow with their number."""
    batch, tokens, channels = last.tokens.shape
    materialised = last.key.turn is not None and (noise or not last.key.turn_is_linear)
    rows = last.query_rows * (24 * channels + 8 * last.heads * tokens)
    rows += 2 * tokens * channels // batch if noise else 0
    rows += 8 * tokens * channels if materialised else 0
    return max(1, max(scratch * tokens * channels, LITTLE // batch) // rows)
