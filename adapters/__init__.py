"""Everything that runs or knows a model: its passes watched, its tokens, its wrappers."""

import importlib.metadata
import warnings

from ._borrow import borrowed as borrowed
from ._borrow import uncompiled as uncompiled
from ._cnn_anatomy import cnn_anatomy as cnn_anatomy
from ._forward import root_module as root_module
from .attention_matrices import AttentionMatrices as AttentionMatrices
from .attention_matrices import mean_weights as mean_weights
from .attention_matrices import weights_and_gradients as weights_and_gradients
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
from .recording import DifferentOutputError as DifferentOutputError
from .recording import Grid as Grid
from .recording import HookPoint as HookPoint
from .recording import LastAttention as LastAttention
from .recording import NotInClosedFormError as NotInClosedFormError
from .recording import Projection as Projection
from .recording import Readout as Readout
from .recording import TokenPass as TokenPass
from .recording import latents_of as latents_of
from .reshape_transform import ReshapeTransform as ReshapeTransform
from .reshape_transform import reshape_transform_for as reshape_transform_for
from .reshape_transform import target_layer_for as target_layer_for

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
