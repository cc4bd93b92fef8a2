"""Cross-attention of a query with the stages of a network, one after the other: CA-Stream's own parameters."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


def attend(tokens: Tensor, query: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The attention of one query to the positions of a map, and the average it weights.

        a = softmax(F q / sqrt(d)),    CA = F^T a

    Source: CA-Stream, equations 4 and 6.

    Args:
        tokens: (batch, d, positions), the map F, transposed.
        query: (batch, d).
        offset: (batch, 1), added to all F q; changes nothing, but is part of the graph.

    Returns:
        a (batch, positions), which sums to 1, in at least float32, and CA (batch, d).
    """
    scores = torch.bmm(query[:, None] * tokens.shape[1] ** -0.5, tokens)[:, 0]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    attention = (scores if offset is None else scores + offset).softmax(1)
    return attention, torch.bmm(attention.to(tokens.dtype)[:, None], tokens.transpose(1, 2))[:, 0]


class Stream(nn.Module):
    """What a CA-Stream learns.

        q_{l+1} = W_l CA_l

    Source: CA-Stream, equations 10 and, with `projections`, 11. Keys and values of each position are never computed:
    `q . (K f + b) = (K^T q) . f + q . b`, and as attention sums to 1, `sum_i a_i (V f_i + c) = V (sum_i a_i f_i) + c`.

    Args:
        widths: The channels of each stage.
        projections: Shall keys and values have linear maps of their own?
        classes: How many queries, one for each class; None: one for all.

    Attributes:
        query: (d_0,) or (classes, d_0), initialised from a normal distribution of mean 1 and variance 1.
        projections: The W_l, linear maps to the next stage's width; the last one keeps its width. Xavier uniform.
        keys: Linear maps of each stage; empty without `projections`.
        values: The same.
    """

    def __init__(self, widths: Sequence[int], projections: bool = False, classes: int | None = None) -> None:
        super().__init__()
        self.query = nn.Parameter(1 + torch.randn(*(() if classes is None else (classes,)), widths[0]))
        self.projections = nn.ModuleList(map(nn.Linear, widths, [*widths[1:], widths[-1]]))
        own = widths if projections else ()
        self.keys, self.values = (nn.ModuleList(map(nn.Linear, own, own)) for _ in range(2))
        for linear in (*self.projections, *self.keys, *self.values):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def start(self, count: int, classes: Tensor | None = None) -> Tensor:
        """The queries (count, d_0) of a batch, of the given classes (count,) if there is one for each."""
        return self.query.expand(count, -1) if classes is None else self.query[classes]

    def forward(self, stage: int, tokens: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """The next query (batch, d_{l+1}) after a stage's tokens (batch, d_l, positions), and its attention."""
        if not self.keys:
            attention, average = attend(tokens, query.to(tokens.dtype))
        else:
            key, value = cast(nn.Linear, self.keys[stage]), self.values[stage]
            attention, average = attend(tokens, (query @ key.weight).to(tokens.dtype), (query @ key.bias)[:, None])
            average = value(average)
        return self.projections[stage](average), attention
