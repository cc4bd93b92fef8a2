"""Attribution classes with Captum's interface: class-discriminative attention maps."""

import typing

from adapters import _lazy

from .signed_overlay import overlay_figure as overlay_figure
from .signed_overlay import signed_overlay as signed_overlay
from .spectrogram_overlay import spectrogram_figure as spectrogram_figure
from .spectrogram_overlay import spectrogram_overlay as spectrogram_overlay
from .video_overlay import video_overlay as video_overlay
from .video_strip import video_strip as video_strip

if typing.TYPE_CHECKING:
    from ._token_attribution import without_closed_form as without_closed_form
    from .answer_maps import AnswerMaps as AnswerMaps
    from .attention_map import AttentionMap as AttentionMap
    from .attention_rollout import AttentionRollout as AttentionRollout
    from .box_target import BoxTarget as BoxTarget
    from .cdam import CDAM as CDAM
    from .concept_target import ConceptTarget as ConceptTarget
    from .contrast_target import ContrastTarget as ContrastTarget
    from .detection_target import DetectionTarget as DetectionTarget
    from .gif import save_gif as save_gif
    from .integrated_cdam import IntegratedCDAM as IntegratedCDAM
    from .mask_target import MaskTarget as MaskTarget
    from .mhex_cam import MHEXCAM as MHEXCAM
    from .mhex_explainer import MHEXExplainer as MHEXExplainer
    from .partial_lrp import PartialLRP as PartialLRP
    from .partial_map_warning import PartialMapWarning as PartialMapWarning
    from .raw_attention import RawAttention as RawAttention
    from .relevance_propagation import RelevancePropagation as RelevancePropagation
    from .smooth_cdam import SmoothCDAM as SmoothCDAM
    from .text_target import TextTarget as TextTarget
    from .token_ablation import TokenAblation as TokenAblation
    from .token_shapley import TokenShapley as TokenShapley
    from .trust import Trust as Trust
    from .trust import check as check

_WHERE = {
    "AnswerMaps": ".answer_maps",
    "AttentionMap": ".attention_map",
    "AttentionRollout": ".attention_rollout",
    "BoxTarget": ".box_target",
    "CDAM": ".cdam",
    "ConceptTarget": ".concept_target",
    "ContrastTarget": ".contrast_target",
    "DetectionTarget": ".detection_target",
    "save_gif": ".gif",
    "IntegratedCDAM": ".integrated_cdam",
    "MaskTarget": ".mask_target",
    "MHEXCAM": ".mhex_cam",
    "MHEXExplainer": ".mhex_explainer",
    "PartialLRP": ".partial_lrp",
    "PartialMapWarning": ".partial_map_warning",
    "RawAttention": ".raw_attention",
    "RelevancePropagation": ".relevance_propagation",
    "SmoothCDAM": ".smooth_cdam",
    "TextTarget": ".text_target",
    "TokenAblation": ".token_ablation",
    "without_closed_form": "._token_attribution",
    "TokenShapley": ".token_shapley",
    "Trust": ".trust",
    "check": ".trust",
}
"""Imported when they are asked for: all of them take longer than the one that is needed."""


__getattr__ = _lazy.lazy_names(__name__, _WHERE)


def __dir__() -> list[str]:
    """All names."""
    return sorted({*globals(), *_WHERE})


__all__ = [
    *("overlay_figure", "signed_overlay", "spectrogram_figure", "spectrogram_overlay", "video_overlay", "video_strip"),
    *(name for name in _WHERE if name != "MHEXExplainer"),  # which needs an extra
]
