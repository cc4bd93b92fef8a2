"""Where a model's weights are, and of which type."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Placement(NamedTuple):
    """Device and floating-point type of a model's weights; None where it has none."""

    device: torch.device | None
    dtype: torch.dtype | None

    def moved(self, inputs: Tensor) -> Tensor:
        """Inputs on the model's device; floating-point ones in its type."""
        return inputs.to(self.device, self.dtype if inputs.is_floating_point() else None)


def placement_of(model: Any) -> Placement:
    """Device and type of a model's first floating-point parameter or, without one, buffer."""
    if isinstance(model, nn.Module):
        for tensors in (model.parameters(), model.buffers()):
            for tensor in tensors:
                if tensor.is_floating_point():
                    return Placement(tensor.device, tensor.dtype)
    return Placement(None, None)
