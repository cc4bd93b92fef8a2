"""The losses of several classifiers along one network."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Mode = Literal["finetune", "pretrain"]


def deep_supervision_loss(outputs: Sequence[Tensor], labels: Tensor, mode: Mode = "finetune") -> Tensor:
    """The loss of the logits `y_l` of L blocks for the labels `t`.

        finetune: sum_l CE(y_l, t)
        pretrain: CE(sum_l lambda_l y_l, t),    lambda_l = 0.5^(L - l)

    Source: Sun and Liò 2025 (MHEX), section 3.3.

    Args:
        outputs: What `MHEX.deep_forward` returned, (batch, classes) for each block.
        labels: (batch,) classes, or (batch, classes) probabilities.
        mode: As above.

    Returns:
        A scalar, the mean over the batch.

    Raises:
        ValueError: if there are no outputs, or `mode` is none of the two.

    Example:
        >>> import torch
        >>> from adapters import deep_supervision_loss
        >>> outputs = [torch.zeros(2, 4), torch.zeros(2, 4)]
        >>> deep_supervision_loss(outputs, torch.tensor([0, 3]))  # twice log 4
        tensor(2.7726)
        >>> deep_supervision_loss(outputs, torch.tensor([0, 3]), mode="pretrain")
        tensor(1.3863)
    """
    if not outputs:
        raise ValueError("Expected the logits of at least one block, got none.")
    if mode == "finetune":
        return torch.stack([F.cross_entropy(y, labels) for y in outputs]).sum()
    if mode == "pretrain":
        last = len(outputs) - 1
        return F.cross_entropy(torch.stack([0.5 ** (last - i) * y for i, y in enumerate(outputs)]).sum(0), labels)
    raise ValueError(f"Expected `mode` to be 'finetune' or 'pretrain', got {mode!r}.")
