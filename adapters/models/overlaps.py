"""How equal parts of a length are spread over other parts of it."""

import torch
from torch import Tensor


def overlaps(cells: int, number: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    """Which part of each of some cells between `start` and `end` lies in each of `number` cells from 0 to 1.

    Args:
        cells: How many equal cells are spread.
        number: Over how many.
        start: Where the first one begins, in parts of the whole length; below 0 for one that reaches beyond it.
        end: Where the last one ends.

    Returns:
        (number, cells), float64; each column has the sum 1, as what lies outside counts at the edge.

    Example:
        >>> overlaps(2, 3)
        tensor([[0.6667, 0.0000],
                [0.3333, 0.3333],
                [0.0000, 0.6667]], dtype=torch.float64)
    """
    edges = (start + (end - start) * torch.arange(cells + 1, dtype=torch.float64) / cells).clamp(0, 1) * number
    places = torch.arange(number, dtype=torch.float64)[:, None]
    shared = (torch.minimum(edges[1:], places + 1) - torch.maximum(edges[:-1], places)).clamp(min=0)
    outside = edges[1:] - edges[:-1] < 1e-9
    at_edge = (edges[:-1].clamp(max=number - 1).floor() == places).double()
    shared = torch.where(outside, at_edge, shared)
    return shared / shared.sum(0)
