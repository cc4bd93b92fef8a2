"""Which tokens play together in a game, and which always take part."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.recording import Grid

ALWAYS = -1


class Players:
    """The players of a game of tokens.

    Args:
        of_tokens: (tokens,), the number of each token's player; ALWAYS: it takes part in all coalitions.

    Attributes:
        of_tokens: As above.
        number: How many players there are.
    """

    def __init__(self, of_tokens: Tensor) -> None:
        self.of_tokens = of_tokens
        self.number = int(of_tokens.max()) + 1

    def tokens_in(self, coalitions: Tensor) -> Tensor:
        """(coalitions, tokens), which tokens take part, of coalitions of players (coalitions, players)."""
        fixed = self.of_tokens == ALWAYS
        return coalitions[:, self.of_tokens.clamp(min=0)] | fixed

    def on_tokens(self, shares: Tensor) -> Tensor:
        """Each token's player's share, (..., tokens), of shares (..., players); 0 of those that always take part."""
        return shares[..., self.of_tokens.clamp(min=0)].masked_fill(self.of_tokens == ALWAYS, 0)


def players_of(given: Any, grid: Grid | None, count: int, device: torch.device) -> Players:
    """The players of tokens on a grid, or of a sequence.

    Args:
        given: Labels of the grid's places, (height, width), or of the tokens of a sequence: those of one label play
            together, negative ones always take part. None: each for itself, tokens beside the grid always take part.
        grid: The grid, if there is one.
        count: How many tokens there are.
        device: Where they are.

    Raises:
        TypeError: if labels are no integers.
        ValueError: if their shape is another, or there is nobody left.
    """
    places = torch.arange(count) if grid is None else grid.places.cpu()
    of_tokens = torch.full((count,), ALWAYS)
    if given is None:
        of_tokens[places] = torch.arange(len(places))
        return Players(of_tokens.to(device))
    labels = _labels(given, (count,) if grid is None else grid.sizes)
    if grid is not None and (grid.coarser or len(places.unique()) < len(places)):
        raise ValueError(
            "The tokens of this model are of several scales, so that `players` cannot be laid over them. Leave it None."
        )
    known = labels[labels >= 0].unique()
    if len(known) == 0:
        raise ValueError("Expected at least one label of `players` that is not negative: nobody plays.")
    of_tokens[places] = torch.where(labels >= 0, torch.searchsorted(known, labels), ALWAYS)
    return Players(of_tokens.to(device))


def _labels(given: Any, sizes: tuple[int, ...]) -> Tensor:
    labels = torch.as_tensor(np.asarray(given) if isinstance(given, list | tuple) else given).cpu()
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise TypeError(f"Expected `players` to hold labels, integers, got {labels.dtype}. Use `.long()`.")
    if tuple(labels.shape) != tuple(sizes):
        raise ValueError(
            f"Expected `players` with one label for each of the tokens, shape {tuple(sizes)}, got "
            f"{tuple(labels.shape)}."
        )
    return labels.long().flatten()
