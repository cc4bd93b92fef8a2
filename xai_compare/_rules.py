"""Captum's rules of backpropagation, for models in which they apply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captum import attr
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adapters.models.hooks import watch_calls

_RECTIFIERS = frozenset(("relu", "relu6", "hardtanh"))
_OTHER_ACTIVATIONS = frozenset(
    (
        *("celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "leaky_relu", "log_sigmoid", "logsigmoid", "mish"),
        *("prelu", "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"),
    )
)
_OTHERS = frozenset(("layer_norm", "rms_norm", "group_norm", "softmax", "scaled_dot_product_attention"))


@dataclass(frozen=True)
class Rule:
    """A method that changes how gradients pass through some layers, and gives plain gradients elsewhere.

    Attributes:
        make: Makes Captum's object for a model.
        layers: Those whose calls it changes.
        never: Functions that must not be called outside of these layers, by torch's names.
        not_alone: Functions that may be called outside of them only if one of them is called, too.
    """

    make: Callable[[nn.Module], Any]
    layers: tuple[type[nn.Module], ...]
    never: frozenset[str]
    not_alone: frozenset[str] = frozenset()

    def __call__(self, model: nn.Module) -> Any:
        """The method, for a model."""
        return _Ruled(self, model, self.make(model))


@dataclass(frozen=True)
class _Ruled:
    """A method whose maps are refused where its rule did not apply: they would be of plain gradients there."""

    rule: Rule
    model: nn.Module
    method: Any

    def attribute(self, inputs: Tensor, target: Any = None, **options: Any) -> Any:
        """The maps.

        Raises:
            ValueError: if the model called an activation to which the rule does not apply.
        """
        seen = _Activations(self.rule)
        with watch_calls(seen.enter, seen.leave), seen:
            maps = self.method.attribute(inputs, target=target, **options)
        wrong = seen.never or (seen.others if not seen.applied else [])
        if wrong:
            layers = ", ".join(layer.__name__ for layer in self.rule.layers)
            raise ValueError(
                f"Captum's {_title(self.method)} has no rule for {wrong[0]} as this {type(self.model).__name__} calls "
                f"it, only for the layers {layers}: the map would be one of plain gradients there. Use saliency or "
                "ixg, or for transformers relevance."
            )
        return maps


def _title(method: Any) -> str:
    return str(method.get_name()) if hasattr(method, "get_name") else type(method).__name__


class _Activations(TorchFunctionMode):
    """Sees the activations that a model calls outside of some layers; those of backward passes are not its own."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule
        self._depth = self._inside = 0
        self.applied = False
        self.never: list[str] = []
        self.others: list[str] = []

    def enter(self, module: nn.Module) -> None:
        self._depth += 1
        if isinstance(module, self._rule.layers):
            self._inside += 1
            self.applied = True

    def leave(self, module: nn.Module, _: Any, __: Any) -> None:
        self._depth -= 1
        self._inside -= isinstance(module, self._rule.layers)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").rstrip("_")  # in place or not
        if self._depth and not self._inside:
            self.never += [name] * (name in self._rule.never)
            self.others += [name] * (name in self._rule.not_alone)
        return func(*args, **(kwargs or {}))


GUIDED_BACKPROP = Rule(attr.GuidedBackprop, (nn.ReLU,), _RECTIFIERS, _OTHER_ACTIVATIONS)
DECONVOLUTION = Rule(attr.Deconvolution, (nn.ReLU,), _RECTIFIERS, _OTHER_ACTIVATIONS)
DEEP_LIFT = Rule(attr.DeepLift, tuple(SUPPORTED_NON_LINEAR), _RECTIFIERS | _OTHER_ACTIVATIONS | _OTHERS)
