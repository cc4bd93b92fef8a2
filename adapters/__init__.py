"""Everything that runs or knows a model: its passes watched, its tokens, its wrappers."""

import importlib.metadata
import typing
import warnings

from . import _lazy

if typing.TYPE_CHECKING:
    from .grad_cam.mhex_cam import MHEXEvidenceCAM as MHEXEvidenceCAM
    from .grad_cam.per_image import PerImage as PerImage
    from .grad_cam.raw_attention_cam import RawAttentionCAM as RawAttentionCAM
    from .grad_cam.raw_attention_cam import raw_attention as raw_attention
    from .grad_cam.reshape_transform import ReshapeTransform as ReshapeTransform
    from .grad_cam.reshape_transform import reshape_transform_for as reshape_transform_for
    from .grad_cam.reshape_transform import target_layer_for as target_layer_for
    from .wrappers.ca_stream import CAStream as CAStream
    from .wrappers.collaboration import collaboration as collaboration
    from .wrappers.collaboration import spatial_collaboration as spatial_collaboration
    from .wrappers.deep_supervision import deep_supervision_loss as deep_supervision_loss
    from .wrappers.mhex import MHEX as MHEX
    from .wrappers.mhex_maps import MHEXSettings as MHEXSettings
    from .wrappers.mhex_maps import mhex_maps as mhex_maps

    MHEXCAM = MHEXEvidenceCAM

_WHERE = {
    "MHEXEvidenceCAM": ".grad_cam.mhex_cam",
    "PerImage": ".grad_cam.per_image",
    "RawAttentionCAM": ".grad_cam.raw_attention_cam",
    "raw_attention": ".grad_cam.raw_attention_cam",
    "ReshapeTransform": ".grad_cam.reshape_transform",
    "reshape_transform_for": ".grad_cam.reshape_transform",
    "target_layer_for": ".grad_cam.reshape_transform",
    "CAStream": ".wrappers.ca_stream",
    "collaboration": ".wrappers.collaboration",
    "spatial_collaboration": ".wrappers.collaboration",
    "deep_supervision_loss": ".wrappers.deep_supervision",
    "MHEX": ".wrappers.mhex",
    "MHEXSettings": ".wrappers.mhex_maps",
    "mhex_maps": ".wrappers.mhex_maps",
    "MHEXCAM": ".grad_cam.mhex_cam",  # the name it had before; captum_ext.MHEXCAM is another class
}
"""Imported when they are asked for: huggingface_hub and pytorch-grad-cam take as long as all the rest."""


__getattr__ = _lazy.lazy_names(__name__, _WHERE)


def __dir__() -> list[str]:
    """All names."""
    return sorted({*globals(), *_WHERE})


__all__ = [*_WHERE]


try:
    importlib.metadata.version("adapters")
except importlib.metadata.PackageNotFoundError:
    pass
else:
    warnings.warn(
        "Two distributions bring an import package named `adapters`: xai-discern, which this is, and `adapters` (the "
        "add-on for transformers). The files of one lie over those of the other: keep them in separate environments.",
        stacklevel=2,
    )
