"""Do a block's own classifier and its attention gate pull its weights in the same direction?"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.evaluation_mode import evaluated
from .mhex import MHEX
from .mhex_pass import MHEXPass
from .mhex_targets import classes_of


def collaboration(model: MHEX, inputs: Any, targets: Tensor) -> Tensor:
    """The cosine between what two losses want of each gate's weights, for each sample.

        cos(dCE(y_l, t) / dW_l, dCE(y_{l+1}, t) / dW_l),    l < L

    the first through the block's own head, the second through its gate and the next block. Source: Sun and Liò 2025
    (MHEX), section 3.5. As s = W z of one sample, each gradient is the product of dCE/ds and z, so a cosine of matrices
    takes the gradients of the vectors s only, all samples at once.

    Args:
        model: The wrapped model, with all its heads; it runs in evaluation mode.
        inputs: The backbone's input, or a tuple of its arguments.
        targets: (batch,) classes.

    Returns:
        (batch, L - 1), from -1 to 1.

    Raises:
        TypeError: if the model is not an MHEX.
        ValueError: if it is of another task, has fewer than two blocks, or no heads, or targets do not fit.

    Example:
        >>> import torch, torchvision
        >>> from adapters import MHEX, collaboration
        >>> model = MHEX(torchvision.models.resnet18(), num_classes=8, placement="downsample")
        >>> collaboration(model, torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])).shape
        torch.Size([4, 2])
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not isinstance(model, MHEX):
        raise TypeError(f"Expected an adapters.MHEX, got {type(model)}.")
    if model.task != "classification":
        raise ValueError(f"Expected a model of task='classification', whose gates read averages; got {model.task!r}.")
    if len(model.blocks) < 2:
        raise ValueError(f"Expected at least two blocks, as two heads are compared; {model.names} is one.")
    classes = classes_of(model, targets, given[0])
    with evaluated(model, given) as arguments, torch.enable_grad():
        run = MHEXPass(model, *arguments)
        # The sum of losses: samples do not meet in evaluation mode, so each gradient is its own sample's.
        losses = [F.cross_entropy(y, classes, reduction="sum") for y in run.deep()]
        gates = _open(run.gates)
        cosines: list[Tensor] = []
        for gate, z, own, following in zip(gates[:-1], run.pooled, losses, losses[1:], strict=False):
            (first,) = torch.autograd.grad(own, gate, retain_graph=True)
            (second,) = torch.autograd.grad(following, gate, retain_graph=True, allow_unused=True)
            second = torch.zeros_like(first) if second is None else second  # a model without gates
            size = z.norm(dim=1)
            norms = first.norm(dim=1) * size * second.norm(dim=1) * size
            cosines.append(((first * second).sum(1) * size**2 / (norms + 1e-8)).detach())
    return torch.stack(cosines, 1)


def spatial_collaboration(model: MHEX, images: Tensor, targets: Tensor, *, grid: int = 7) -> Tensor:
    """`collaboration` of each image with one cell of a grid after the other replaced by the image's mean.

    Source: Sun and Liò 2025 (MHEX), section 3.5.

    Args:
        model: As for `collaboration`.
        images: (batch, channels, height, width).
        targets: (batch,) classes.
        grid: Cells along each side.

    Returns:
        (batch, L - 1, grid, grid).

    Raises:
        TypeError: as for `collaboration`.
        ValueError: as for `collaboration`, and if images are smaller than the grid.
    """
    height, width = images.shape[2:]
    if grid < 1 or min(height, width) < grid:
        raise ValueError(f"Expected `grid` from 1 to {min(height, width)}, the shorter side of the images; got {grid}.")
    rows = torch.arange(height, device=images.device) * grid // height
    columns = torch.arange(width, device=images.device) * grid // width
    mean = images.mean((2, 3), keepdim=True)
    cells = []
    for row in range(grid):
        for column in range(grid):
            inside = (rows == row)[:, None] & (columns == column)
            cells.append(collaboration(model, torch.where(inside, mean, images), targets))
    maps: Tensor = torch.stack(cells, 2).unflatten(2, (grid, grid))
    return maps


def _open(gates: list[Tensor]) -> list[Tensor]:
    if not all(gate.requires_grad for gate in gates):
        raise ValueError("Expected gates that require gradients; call `model.blocks.requires_grad_()` first.")
    return gates
