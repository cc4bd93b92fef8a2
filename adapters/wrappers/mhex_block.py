"""One MHEX block: an attention gate and a classifier at a residual addition."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def equivalent(head: Tensor, gate: Tensor) -> Tensor:
    """The product of two weights, E[c, j] = sum_m P[c, m] W[m, j], in each place of W's kernel.

    Source: Sun and Liò 2025 (MHEX), section 3.4, and appendix E for convolutions. As P has no extent, `P * (W * z)` is
    `E * z` everywhere, also at the border.

    Args:
        head: P, (C, m), for convolutions (C, m, 1, 1).
        gate: W, (m, d), for convolutions (m, d, *kernel).

    Returns:
        (C, d), or (C, d, *kernel).

    Example:
        >>> import torch
        >>> equivalent(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 1.0]]))
        tensor([[2., 3., 1.]])
    """
    return (head.flatten(1) @ gate.flatten(1)).view(len(head), *gate.shape[1:])


class MHEXBlock(nn.Module):
    """What a block learns.

        z = ReLU(mean x + mean r),    s = W z,    y = P s

    Source: Sun and Liò 2025 (MHEX), section 3.2. The identity branch is multiplied by sigmoid(s), or, in transformers,
    the sum of both branches. For masks, W and P are convolutions, and nothing is averaged (appendix E).

    Args:
        channels: d, of the identity branch.
        classes: C.
        reads: How many channels z has, more than d if branches are concatenated; None: d.
        axes: Of the maps that W and P are convolved with; 0: they multiply vectors.
        kernel: The size of W in each of these axes, odd; its padding keeps the size of maps.
        shortcut: Makes x of what goes into a layer without a residual addition; None: the network has one.

    Attributes:
        gate: W, linear from d to d without bias, or a convolution.
        head: P, linear from d to C without bias, or a convolution of size 1; None after `strip()`.
        addition: Passes on x + r of the block that predicts, for hooks.
        shortcut: As given.
    """

    head: Layer | None
    shortcut: nn.Module | None

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        reads: int | None = None,
        axes: int = 0,
        kernel: int = 1,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        reads = channels if reads is None else reads
        self.gate: Layer
        if axes:
            convolution = _CONVOLUTIONS[axes - 1]
            self.gate = convolution(reads, channels, kernel, padding=kernel // 2, bias=False)
            self.head = convolution(channels, classes, 1, bias=False)
        else:
            self.gate = nn.Linear(reads, channels, bias=False)
            self.head = nn.Linear(channels, classes, bias=False)
        self.addition = nn.Identity()
        self.shortcut = shortcut
        self._kept: _Evidence | None = None

    def equivalent_matrix(self) -> Tensor:
        """E = P W, (C, d), of masks (C, d, *kernel): what each channel contributes to each class; see `equivalent`.

        Raises:
            ValueError: if the head was stripped.
        """
        if self.head is None:
            raise ValueError("Expected a block with a head, but it was stripped: use the model from before `strip()`.")
        with torch.autocast(self.gate.weight.device.type, enabled=False):
            return equivalent(self.head.weight, self.gate.weight)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """From z (batch, d): s (batch, d), and y (batch, C) where there is a head; of masks with places behind."""
        s = self.gate(z)
        return s, None if self.head is None else self.head(s)

    @torch.no_grad()
    def evidence(self, classes: Tensor, beta: float, gamma_pos: float, gamma_neg: float) -> Tensor:
        """(batch, d), of masks (batch, d, *kernel): the channels' weights for the classes (batch,) of some samples.

            E+ = max(E, 0),    E- = max(-E, 0),    SS+ = E+ / (sum_c' E+_c' + 1e-8),    SS- likewise
            e = E+ [SS+ >= gamma+] - beta E- [SS- >= gamma-]

        Source: MHEX, section 3.4. E is computed again only when a weight has changed.
        """
        kept = self._evidence()
        chosen = kept.matrix[classes]
        positive, negative = chosen.clamp(min=0), (-chosen).clamp(min=0)
        positive = positive.where(positive / (kept.positive + 1e-8) >= gamma_pos, 0)
        negative = negative.where(negative / (kept.negative + 1e-8) >= gamma_neg, 0)
        return positive - beta * negative

    def _evidence(self) -> "_Evidence":
        weights = [linear.weight for linear in (self.gate, self.head) if linear is not None]
        if self._kept is None or not self._kept.is_of(weights):
            matrix = self.equivalent_matrix()
            matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
            sums = matrix.clamp(min=0).sum(0), (-matrix).clamp(min=0).sum(0)
            self._kept = _Evidence([weight.detach().clone() for weight in weights], matrix, *sums)
        return self._kept

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}


@dataclass(frozen=True)
class _Evidence:
    """The equivalent matrix of some weights, and the sums over classes of its positive and negative parts."""

    weights: list[Tensor]
    matrix: Tensor
    positive: Tensor
    negative: Tensor

    def is_of(self, weights: list[Tensor]) -> bool:
        """Were they computed from these values? `Tensor._version` misses what is written through `.data`."""
        return all(
            mine.device == now.device and mine.dtype == now.dtype and mine.shape == now.shape and torch.equal(mine, now)
            for mine, now in zip(self.weights, weights, strict=True)
        )
