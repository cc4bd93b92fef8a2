"""The identity branch of a layer that has none."""

import torch
from torch import Tensor, nn


class ScaledShortcut(nn.Module):
    """What is added to a layer without a residual addition: `a V x`, with the number a = 0 at first.

    So a trained network computes at first what it did. V is a projection without bias where the layer changes the
    number of channels, else nothing. Source: Sun and Liò 2025 (MHEX), appendix E; the scale: Bachlechner et al. 2020
    (ReZero).

    Args:
        entering: How many channels go into the layer.
        channels: How many it returns.

    Example:
        >>> import torch
        >>> ScaledShortcut(3, 2)(torch.ones(1, 3)).count_nonzero().item()
        0
    """

    def __init__(self, entering: int, channels: int) -> None:
        super().__init__()
        same = entering == channels
        self.projection: nn.Module = nn.Identity() if same else nn.Linear(entering, channels, bias=False)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """From (nodes, entering) to (nodes, channels)."""
        shortened: Tensor = self.scale * self.projection(x)
        return shortened
