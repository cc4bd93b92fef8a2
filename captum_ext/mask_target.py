"""One label inside a region as a target, for models that segment."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.checks import integer

from ._detections import pixel_logits


class MaskTarget:
    """The mean logit of a label inside a region: what the model looks at when it segments this.

    `f = sum_yx w z[label, y, x] / sum_yx w`, with the logits `z` of a model that segments, and the share `w` of each of
    their pixels that lies in the region. Of models that predict classes and masks of queries (MaskFormer) `z`
    are the semantic scores `sum_q p_q(label) m_q(y, x)`, with the softmax `p_q` without its last class, which is none,
    and the sigmoid `m_q`. Source: Vinogradova et al., Towards Interpretable Semantic Segmentation via Gradient-weighted
    Class Activation Mapping, AAAI 2020; the semantic scores: Cheng et al. 2021 (arXiv:2107.06278), section 3.4.
    Differs: a mean instead of a sum, so that the size of the region does not matter.

    It can also be called with the output of one image, as targets of pytorch-grad-cam are.

    Args:
        label: The number of the label.
        region: (height, width) booleans of the size of the image tensor.

    Raises:
        TypeError: if the region is not boolean, or the label no integer.
        ValueError: if the region is empty, or not (height, width); when it is explained, if it is not of the image's
            size, or the label is out of range.

    Example:
        >>> import torch
        >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation
        >>> from captum_ext import CDAM, MaskTarget
        >>> sizes = {"hidden_sizes": [16] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
        >>> model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=5)).eval()
        >>> region = torch.zeros(64, 64, dtype=torch.bool)
        >>> region[16:48, 16:48] = True
        >>> CDAM(model).attribute(torch.randn(2, 3, 64, 64), MaskTarget(label=2, region=region)).shape
        torch.Size([2, 1, 2, 2])
    """

    def __init__(self, label: int, region: Tensor | npt.NDArray[np.bool_]) -> None:
        self.label = integer("label", label)
        if self.label < 0:
            raise ValueError(f"Expected `label` of at least 0, got {label}.")
        self.region = torch.as_tensor(region).detach()
        if self.region.dtype is not torch.bool:
            raise TypeError(f"Expected `region` to be booleans, got {self.region.dtype}. Compare: `scores > 0`.")
        if self.region.dim() != 2 or not bool(self.region.any()):
            raise ValueError(
                f"Expected `region` (height, width) with at least one pixel, got shape {tuple(self.region.shape)} with "
                f"{int(self.region.sum())} pixels. Of several images give a list with one target for each."
            )

    def __call__(self, output: Any) -> Tensor:
        """The mean in the output of one image.

        Args:
            output: Logits (labels, height, width), or a dictionary with these, as PerImage makes them.

        Returns:
            A number.

        Raises:
            ValueError: if there is no such label.
        """
        logits = output if isinstance(output, Tensor) else pixel_logits({k: v[None] for k, v in output.items()})[0]
        if logits.dim() != 3 or self.label >= len(logits):
            raise ValueError(f"{self} is out of range: the logits of one image have shape {tuple(logits.shape)}.")
        region = self.region.to(torch.promote_types(logits.dtype, torch.float32))[None, None]
        shares = F.adaptive_avg_pool2d(region, (logits.shape[1], logits.shape[2]))[0, 0].to(logits)
        return (logits[self.label] * shares).sum() / shares.sum()

    def __repr__(self) -> str:
        return f"MaskTarget(label={self.label}, region={int(self.region.sum())} pixels of {tuple(self.region.shape)})"
