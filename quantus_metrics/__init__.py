"""Scores of explanations as Quantus metrics, and as functions of tensors; importing registers them with Quantus."""

from adapters import _lazy

try:
    import quantus as quantus
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("quantus_metrics needs Quantus: pip install 'xai-discern[quantus]'.") from error

from ._registration import register as register
from ._registration import unregister as unregister
from .average_drop import AverageDrop as AverageDrop
from .average_drop import AverageGain as AverageGain
from .average_drop import AverageIncrease as AverageIncrease
from .average_drop import average_drop as average_drop
from .average_drop import average_gain as average_gain
from .average_drop import average_increase as average_increase
from .box_sensitivity import BoxSensitivity as BoxSensitivity
from .box_sensitivity import box_sensitivity as box_sensitivity
from .class_discrimination import ClassDiscrimination as ClassDiscrimination
from .class_discrimination import class_discrimination as class_discrimination
from .compactness import Compactness as Compactness
from .compactness import compactness as compactness
from .effective_average_drop import EffectiveAverageDrop as EffectiveAverageDrop
from .effective_average_drop import area_weight as area_weight
from .effective_average_drop import effective_average_drop as effective_average_drop
from .explain_func import explain_func as explain_func
from .fidelity import Fidelity as Fidelity
from .fidelity import fidelity as fidelity
from .insertion import Deletion as Deletion
from .insertion import Insertion as Insertion
from .insertion import deletion as deletion
from .insertion import insertion as insertion
from .removal_drop import RemovalDrop as RemovalDrop
from .removal_drop import removal_drop as removal_drop
from .soft_average_drop import SoftAverageDrop as SoftAverageDrop
from .soft_average_drop import soft_average_drop as soft_average_drop
from .token_faithfulness import TokenFaithfulness as TokenFaithfulness
from .token_faithfulness import token_faithfulness as token_faithfulness

register()

__getattr__ = _lazy.lazy_names(__name__, {})
