"""Which layers lie on the way to a tensor, and who reads it: what tells an identity branch from a residual one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")


@dataclass(frozen=True)
class Branches:
    """Two tensors that are joined.

    Attributes:
        terms: Both.
        shorter: Which one has fewer layers on its way, 0 or 1; 1 if they have equally many.
        read: Which of them were read before, or what they are made of element by element, as a scaled identity branch:
            the residual branch starts from it.
    """

    terms: tuple[Tensor, Tensor]
    shorter: int
    read: tuple[bool, bool]


class Depths(TorchFunctionMode):
    """Inside, counts the convolutions and linear maps on the longest way to each tensor, and notes which are read."""

    def __init__(self) -> None:
        super().__init__()
        self._counts, self._reads = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self._sources = WeakTensorKeyDictionary()  # of what is made element by element

    def of(self, first: Tensor, second: Tensor) -> Branches:
        """What is known of two tensors that are just being joined."""
        counts = self._counts.get(first, 0), self._counts.get(second, 0)
        return Branches((first, second), int(counts[0] >= counts[1]), (self._read(first), self._read(second)))

    def _read(self, one: Tensor) -> bool:
        """Did anything read it, or what it is made of element by element, but on the way to it?"""
        allowed = 0
        while one is not None:
            if self._reads.get(one, 0) > allowed:
                return True
            one, allowed = self._sources.get(one), 1
        return False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        before = max((self._counts.get(one, 0) for one in given), default=0)
        result = func(*args, **(kwargs or {}))
        layer = getattr(func, "__name__", "") in _LAYERS
        made = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        for one in made:
            self._counts[one] = before + layer
            alike = [source for source in given if source.numel() == one.numel()]
            if not layer and len(alike) == 1 and alike[0] is not one:
                self._sources[one] = alike[0]
        changed = {id(one) for one in made}
        for one in given if made else ():  # not by what asks for a shape, nor by what writes over it
            self._reads[one] = self._reads.get(one, 0) + (id(one) not in changed)
        return result
