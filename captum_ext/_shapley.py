"""Shapley values of a game: exactly from all coalitions, or estimated from permutations."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MOST_PLAYERS = 16  # of all coalitions

Worth = Callable[[Tensor], Tensor]
"""What coalitions (coalitions, players) of booleans are worth: (..., coalitions, batch)."""


class Shares(NamedTuple):
    """Each player's share of what all of them add.

    Attributes:
        values: (..., batch, players).
        errors: Their standard errors; zeros where they are exact.
    """

    values: Tensor
    errors: Tensor


def exact_shares(worth: Worth, players: int, device: torch.device) -> Shares:
    """`phi_i = sum_{C without i} |C|! (n - |C| - 1)! / n! (v(C and i) - v(C))`, from all 2^n coalitions."""
    numbers = torch.arange(2**players, device=device)
    members = (numbers[:, None] >> torch.arange(players, device=device)) & 1 == 1
    worths = worth(members)
    sizes = members.sum(1)
    weights = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
    by_size = torch.tensor(weights, dtype=worths.dtype, device=device)
    shares = []
    for player in range(players):
        without = numbers[~members[:, player]]
        weight = by_size[sizes[without]][:, None]
        shares.append((weight * (worths[..., without + 2**player, :] - worths[..., without, :])).sum(-2))
    values = torch.stack(shares, -1)
    return Shares(values, torch.zeros_like(values))


def sampled_shares(worth: Worth, players: int, samples: int, generator: torch.Generator) -> Shares:
    """The mean of what each player adds to those in front of it, in random orders, each also read from its end.

    The shares of each order sum to what all players add, and so do their means. The errors are those of the mean over
    pairs of orders.

    Args:
        worth: The game.
        players: How many.
        samples: How many orders, an even number.
        generator: Source of the orders.
    """
    device, pairs = generator.device, samples // 2
    ends = torch.tensor([[False], [True]], device=device).expand(2, players)
    nobody, everybody = worth(ends).split(1, -2)
    total: Tensor | None = None
    squares: Tensor | None = None
    for number in range(1, pairs + 1):
        order = torch.randperm(players, generator=generator, device=device)
        both = [_added(worth, nobody, everybody, one) for one in (order, order.flip(0))]
        found = torch.stack(both).mean(0)
        if total is None or squares is None:
            total, squares = found, torch.zeros_like(found)
            continue
        change = found - total / (number - 1)
        total = total + found
        squares = squares + change * (found - total / number)  # Welford's
    if total is None or squares is None:
        raise ValueError("Expected at least two orders.")
    return Shares(total / pairs, (squares / max(1, pairs - 1) / pairs).sqrt())


def _added(worth: Worth, nobody: Tensor, everybody: Tensor, order: Tensor) -> Tensor:
    """What each player adds to those in front of it, (..., batch, players)."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    parts = [nobody, everybody]
    if len(order) > 1:
        growing = places < torch.arange(1, len(order), device=order.device)[:, None]
        parts.insert(1, worth(growing))
    added = torch.cat(parts, -2).diff(dim=-2)
    return added[..., places, :].mT
