"""What a model's first layer takes."""

from dataclasses import dataclass

from torch import nn

_AXES = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_NAMES = {1: "length", 2: "height, width", 3: "depth, height, width"}


@dataclass(frozen=True)
class InputLayout:
    """Channels and axes of one input.

    Attributes:
        channels: How many, or None if no convolution tells it.
        axes: 1 of signals, 2 of images, 3 of volumes; None if no convolution tells it.
    """

    channels: int | None = None
    axes: int | None = None

    def __str__(self) -> str:
        return f"({self.channels or 'channels'}, {_NAMES[self.axes or 2]})"


def input_layout(model: nn.Module) -> InputLayout:
    """What the first convolution of a model takes."""
    for module in model.modules():
        for kind, axes in _AXES.items():
            if isinstance(module, kind):
                return InputLayout(module.in_channels, axes)
    return InputLayout()
