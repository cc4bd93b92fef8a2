"""The layers of a wrapped model that a CAM of pytorch-grad-cam reads, and whether its prediction depends on them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from ..models.hooks import watch_outputs


class TargetLayers:
    """Those of one pass, told by the hooks that pytorch-grad-cam puts on them.

    Args:
        model: What runs.
        offered: What to read instead of a layer behind the prediction, for the message.
    """

    def __init__(self, model: nn.Module, offered: str) -> None:
        self._layers = read_by_cams(model)
        self._behind = dict(self._layers)
        self._reached, self._offered = False, offered

    def watched(self) -> AbstractContextManager[None]:
        """Inside, it is seen which of them run."""
        return watch_outputs(list(self._layers), self._returned) if self._layers else nullcontext()

    def reach(self) -> None:
        """The prediction is made: what runs from now on is behind it."""
        self._reached = True

    def check(self, prediction: Tensor) -> None:
        """Have the gradient of the prediction say so, if a layer is behind it; methods without gradients may read it.

        Raises:
            ValueError: if channels of such a layer are to be ablated, which would change nothing.
        """
        if not self._behind:
            return
        message = (
            f"The prediction does not depend on the target layer(s) {list(self._behind.values())}, as they run behind "
            f"what it is made of. {self._offered}"
        )
        ablating = [
            (module, number)
            for module in self._behind
            for number, owner in _hooks_of_cams(module)
            if type(owner).__name__.startswith("Ablation")
        ]
        for module, number in ablating:  # its owner would leave it, as the error comes before it takes it away
            del module._forward_hooks[number]  # noqa: SLF001
        if ablating:
            raise ValueError(message)
        if prediction.requires_grad:

            def refuse(_: Tensor) -> None:
                raise ValueError(message)

            prediction.register_hook(refuse)

    def _returned(self, module: nn.Module, _: tuple[Any, ...], __: Any) -> None:
        if not self._reached:
            self._behind.pop(module, None)


def read_by_cams(model: nn.Module) -> dict[nn.Module, str]:
    """The modules on which a CAM of pytorch-grad-cam has hooks, with their names."""
    return {module: name for name, module in model.named_modules() if any(_hooks_of_cams(module))}


def is_of_cams(thing: object) -> bool:
    """Is this an object of pytorch-grad-cam, as the layer that AblationCAM puts in another one's place?"""
    return type(thing).__module__.split(".")[0] == "pytorch_grad_cam"


def ablated(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of these modules that cannot be run, as AblationCAM has its own layer in place of them or around them."""
    layers = [name for name, module in model.named_modules() if is_of_cams(module)]
    return [name for name in names if any(f"{name}.".startswith(f"{layer}.") for layer in layers)]


def _hooks_of_cams(module: nn.Module) -> Iterator[tuple[int, object]]:
    """The numbers and owners of its hooks that pytorch-grad-cam put there."""
    for number, hook in module._forward_hooks.items():  # noqa: SLF001 # torch has no other way to list them
        owner = getattr(hook, "__self__", None)
        if is_of_cams(owner):
            yield number, owner
