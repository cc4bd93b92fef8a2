"""Attribution classes with Captum's interface: class-discriminative attention maps."""

from .cdam import CDAM as CDAM
from .concept_target import ConceptTarget as ConceptTarget
from .integrated_cdam import IntegratedCDAM as IntegratedCDAM
from .smooth_cdam import SmoothCDAM as SmoothCDAM
