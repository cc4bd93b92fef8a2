"""A small residual U-Net that learns masks of small pictures in minutes on a CPU."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions and an addition."""

    def __init__(self, entering: int, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(entering, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Identity() if entering == channels else nn.Conv2d(entering, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, entering, ...) to (batch, channels, ...)."""
        return (self.shortcut(x) + self.branch(x)).relu()


class SmallUNet(nn.Module):
    """Three levels of residual blocks; the decoder concatenates the encoder's maps.

    Args:
        classes: Of the masks.
        channels: Of the images.
        widths: Channels of each level.
    """

    def __init__(self, classes: int, channels: int = 1, widths: tuple[int, int, int] = (8, 16, 32)) -> None:
        super().__init__()
        one, two, three = widths
        self.down = nn.ModuleList([Residual(channels, one), Residual(one, two), Residual(two, three)])
        self.up = nn.ModuleList([Residual(three + two, two), Residual(two + one, one)])
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(one, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """From (batch, channels, height, width) to logits (batch, classes, height, width)."""
        first = self.down[0](images)
        second = self.down[1](self.pool(first))
        x = self.down[2](self.pool(second))
        x = self.up[0](torch.cat([self.grow(x), second], 1))
        x = self.up[1](torch.cat([self.grow(x), first], 1))
        logits: Tensor = self.head(x)
        return logits
