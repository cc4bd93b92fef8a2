"""Everything that knows a model family: where its tokens are, and how to run it from there on."""

import importlib.metadata
import warnings

from ._anatomy import find_anatomy as find_anatomy
from ._anatomy import known_classes as known_classes
from ._attention import Attention as Attention
from ._attention import Projection as Projection
from ._attention import UnsuitableError as UnsuitableError
from ._borrow import borrowed as borrowed
from ._borrow import uncompiled as uncompiled
from ._cnn_anatomy import cnn_anatomy as cnn_anatomy
from ._forward import root_module as root_module
from ._layout import TokenLayout as TokenLayout
from ._layout import token_layout as token_layout
from ._recognition import attention_tail_of as attention_tail_of
from ._site import Site as Site
from ._site import TokenAnatomy as TokenAnatomy
from .attention_tail import AttentionTail as AttentionTail
from .attention_weights import AttentionWeights as AttentionWeights
from .ca_stream import CAStream as CAStream
from .collaboration import collaboration as collaboration
from .collaboration import spatial_collaboration as spatial_collaboration
from .deep_supervision import deep_supervision_loss as deep_supervision_loss
from .mhex import MHEX as MHEX
from .mhex_cam import MHEXCAM as MHEXCAM
from .mhex_maps import MHEXSettings as MHEXSettings
from .mhex_maps import mhex_maps as mhex_maps
from .raw_attention_cam import RawAttentionCAM as RawAttentionCAM
from .raw_attention_cam import raw_attention as raw_attention
from .reshape_transform import ReshapeTransform as ReshapeTransform
from .reshape_transform import reshape_transform_for as reshape_transform_for
from .token_tail import Readout as Readout
from .token_tail import TokenTail as TokenTail
from .token_tail import read_latents as read_latents

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
