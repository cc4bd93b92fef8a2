"""MHEX CAM in the form of a pytorch-grad-cam method."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..wrappers.mhex import MHEX
from ..wrappers.mhex_maps import MHEXSettings, mhex_maps
from .cam import CAM, categories


class MHEXEvidenceCAM(CAM[MHEX]):
    """MHEX CAM as an object of pytorch-grad-cam's form; `captum_ext.MHEXCAM` is Captum's.

    Source: Sun and Liò 2025 (MHEX), section 3.4. As pytorch-grad-cam does, negative values become 0 before scaling.
    Models that segment take `SemanticSegmentationTarget`, too.

    Args:
        model: An adapters.MHEX with its heads.
        target_layers: Accepted so that the class sits in a list with others; not used.
        reshape_transform: Accepted for the same reason; not used.
        settings: `alpha`, `beta`, `gamma_pos`, `gamma_neg` and `activation` of `captum_ext.MHEXCAM.attribute`.

    Raises:
        TypeError: if the model is not an MHEX.
        ValueError: if a setting is out of its range.

    Example:
        >>> import torch, torchvision
        >>> from adapters import MHEX, MHEXEvidenceCAM
        >>> model = MHEX(torchvision.models.resnet18(), num_classes=8)
        >>> MHEXEvidenceCAM(model)(torch.randn(2, 3, 64, 64)).shape
        (2, 64, 64)
    """

    wrapper = MHEX

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module] | None = None,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)
        self.settings = MHEXSettings(**settings)
        if self.settings.per_layer:
            raise ValueError(
                "`per_layer` is not supported here; use captum_ext.MHEXCAM, which returns a map of each block."
            )

    def maps(self, images: Tensor, targets: Sequence[Any] | None) -> Tensor:
        """The maps of the targets' classes, of models that segment inside the targets' masks."""
        asked: Any = categories(targets, len(images))
        masks = [getattr(target, "mask", None) for target in targets or ()]
        if any(mask is not None for mask in masks):
            if self.model.task != "segmentation":
                raise ValueError(
                    "Expected ClassifierOutputTarget, as the model predicts no masks; got a target with a mask."
                )
            pairs = zip(asked.tolist(), masks, strict=True)
            asked = [cls if mask is None else (cls, _region(mask)) for cls, mask in pairs]
        return mhex_maps(self.model, (images,), asked, self.settings).clamp(min=0)


def _region(mask: Any) -> Tensor:
    """Where the mask of a SemanticSegmentationTarget is 1.

    Raises:
        ValueError: if it weighs places otherwise.
    """
    region = torch.as_tensor(mask)
    if not bool(((region == 0) | (region == 1)).all()):
        raise ValueError("Expected masks of zeros and ones in SemanticSegmentationTarget, got other values.")
    return region == 1


MHEXCAM = MHEXEvidenceCAM  # the name it had before
