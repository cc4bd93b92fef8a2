"""What each place of an activation contributes: evidence of channels, or of a kernel of channels, times it."""

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLVED = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def evidence_map(weights: Tensor, activation: Tensor) -> Tensor:
    """`sum_k e_k * A_k`, a product, or a convolution that keeps the size, with each sample's own weights.

    Source: Sun and Liò 2025 (MHEX), section 3.4 and appendix E.

    Args:
        weights: e, (batch, channels), or (batch, channels, *kernel) of odd sizes.
        activation: A, (batch, channels, *places).

    Returns:
        (batch, *places).

    Example:
        >>> import torch
        >>> evidence_map(torch.tensor([[1.0, -1.0]]), torch.tensor([[[3.0, 5.0], [1.0, 2.0]]]))
        tensor([[2., 3.]])
    """
    kernel, places = weights.shape[2:], activation.shape[2:]
    if kernel.numel() == 1:
        return torch.bmm(weights.flatten(1)[:, None], activation.flatten(2)).view(len(weights), *places)
    together = activation.reshape(1, -1, *places)
    convolved: Tensor = _CONVOLVED[len(kernel) - 1](together, weights, padding=kernel[0] // 2, groups=len(weights))
    return convolved.squeeze(0)


def evidence_for_region(weights: Tensor, activation: Tensor, region: Tensor) -> Tensor:
    """What each place contributes to the sum of `evidence_map` over a region, so that it adds up to this sum.

        sum_k A_k (e_k transposed * R)

    Without a kernel that is the map inside the region; with one, places around it count, as far as the kernel reaches.
    Source: Sun and Liò 2025 (MHEX), appendix E.

    Args:
        weights: e, as for `evidence_map`.
        activation: A, (batch, channels, *places).
        region: R, (batch, *places), how much of each place lies in it.

    Returns:
        (batch, *places).

    Example:
        >>> import torch
        >>> weights, region = torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
        >>> evidence_for_region(weights, torch.ones(1, 1, 4), region)
        tensor([[1., 2., 4., 0.]])
    """
    kernel = weights.shape[2:]
    if kernel.numel() == 1:
        return region * evidence_map(weights, activation)
    transposed = _TRANSPOSED[len(kernel) - 1]
    spread: Tensor = transposed(region[None], weights, padding=kernel[0] // 2, groups=len(weights))
    return (spread.view_as(activation) * activation).sum(1)
