"""One MHEX block: an attention gate and a classifier at a residual addition."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class MHEXBlock(nn.Module):
    """What a block learns.

        z = ReLU(mean x + mean r),    s = W z,    y = P s

    Source: Sun and Liò 2025 (MHEX), section 3.2. The identity branch is multiplied by sigmoid(s), or, in transformers,
    the sum of both branches.

    Args:
        channels: d.
        classes: C.

    Attributes:
        gate: W, linear from d to d without bias.
        head: P, linear from d to C without bias; None after `strip()`.
        addition: Passes on x + r of the block that predicts, for hooks.
    """

    head: nn.Linear | None

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, channels, bias=False)
        self.head = nn.Linear(channels, classes, bias=False)
        self.addition = nn.Identity()
        self._kept: _Evidence | None = None

    def equivalent_matrix(self) -> Tensor:
        """(C, d), E = P W: what each channel contributes to each class.

        Raises:
            ValueError: if the head was stripped.
        """
        if self.head is None:
            raise ValueError("Expected a block with a head, but it was stripped: use the model from before `strip()`.")
        with torch.autocast(self.gate.weight.device.type, enabled=False):
            return self.head.weight @ self.gate.weight

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """From z (batch, d): s (batch, d), and y (batch, C) where there is a head."""
        s = self.gate(z)
        return s, None if self.head is None else self.head(s)

    @torch.no_grad()
    def evidence(self, classes: Tensor, beta: float, gamma_pos: float, gamma_neg: float) -> Tensor:
        """(batch, d): the channels' weights for the classes (batch,) of some samples.

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
