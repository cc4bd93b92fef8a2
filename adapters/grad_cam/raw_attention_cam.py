"""The attention of a CA-Stream's last stage in the form of a pytorch-grad-cam method."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import check_batch, integer
from ..models.evaluation_mode import evaluated
from ..wrappers.ca_stream import CAStream
from .cam import CAM


def raw_attention(model: CAStream, images: Tensor, stage: int = -1) -> Tensor:
    """The attention (batch, height, width) of a CA-Stream's stage, from one forward pass in evaluation mode.

    Raises:
        TypeError: if the model is not a CAStream, or `stage` no int.
        ValueError: if it has no such stage, or the inputs are not finite.
    """
    if not isinstance(model, CAStream):
        raise TypeError(f"Expected an adapters.CAStream, whose attention is a map; got {type(model)}.")
    check_batch(images)
    count = len(model.stages)
    stage = integer("stage", stage)
    if not -count <= stage < count:
        raise ValueError(
            f"Expected `stage` from {-count} to {count - 1}, as the model has {count} stages; got {stage}."
        )
    with evaluated(model, (images,)) as (given,), torch.no_grad():
        return model.forward_with_attention(given)[1][stage]


class RawAttentionCAM(CAM[CAStream]):
    """The attention `a_L` of a CA-Stream, the class-agnostic map that comes with its prediction.

    Source: Torres et al. 2024 (CA-Stream), equation 4. It is the same for every class, without `class_specific`.

    Args:
        model: An adapters.CAStream.
        target_layers: Accepted so that the class sits in a list with others; not used.
        reshape_transform: Accepted for the same reason; not used.

    Raises:
        TypeError: if the model is not a CAStream.

    Example:
        >>> import torch, torchvision
        >>> from adapters import CAStream, RawAttentionCAM
        >>> model = CAStream(torchvision.models.resnet18())
        >>> RawAttentionCAM(model)(torch.randn(2, 3, 64, 64)).shape
        (2, 64, 64)
    """

    wrapper = CAStream

    def maps(self, images: Tensor, targets: Sequence[Any] | None) -> Tensor:
        """The attention of the last stage."""
        return raw_attention(self.model, images)
