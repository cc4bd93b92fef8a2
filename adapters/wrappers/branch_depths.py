"""How many layers lie on the way to a tensor, which tells a residual branch from the identity branch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")


class Depths(TorchFunctionMode):
    """Inside, counts the convolutions and linear maps on the longest way to each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> int:
        """How many lie on the way to a tensor."""
        count: int = self._counts.get(tensor, 0)
        return count

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        before = max((self.of(one) for one in given), default=0)
        result = func(*args, **(kwargs or {}))
        count = before + (getattr(func, "__name__", "") in _LAYERS)
        for one in pytree.tree_leaves(result):
            if isinstance(one, Tensor):
                self._counts[one] = count
        return result
