"""Maps that need no hooks in the form of pytorch-grad-cam's CAM objects."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..models import placement_of
from ..wrappers.resizing import upsampled

W = TypeVar("W", bound=nn.Module)


class CAM(ABC, Generic[W]):
    """Can be called, and used in a `with` block, as the classes of pytorch-grad-cam.

    Args:
        model: The wrapped model.
        target_layers: Accepted so that the class sits in a list with others; not used.
        reshape_transform: Accepted for the same reason; not used.

    Raises:
        TypeError: if the model is not of the wrapper's class.
    """

    wrapper: type[W]
    uses_gradients = compute_input_gradient = False

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module] | None = None,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(model, self.wrapper):
            raise TypeError(f"Expected an adapters.{self.wrapper.__name__}, which makes the maps; got {type(model)}.")
        self.model = model
        self.target_layers = list(target_layers or [])
        self.reshape_transform = reshape_transform

    @abstractmethod
    def maps(self, images: Tensor, targets: Sequence[Any] | None) -> Tensor:
        """Maps (batch, height, width) of any size and scale."""

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Any] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Maps (batch, height, width) of the input's size, from 0 to 1 in each image, as pytorch-grad-cam scales them.

        Args:
            input_tensor: (batch, channels, height, width).
            targets: One `ClassifierOutputTarget` for each image. None: the likeliest class.
            aug_smooth: Not supported.
            eigen_smooth: Not supported.

        Raises:
            TypeError: if the input is no tensor, or targets are no list of such targets.
            ValueError: if a smoothing is asked for, or inputs or targets do not fit.
        """
        if not isinstance(input_tensor, Tensor):
            raise TypeError(f"Expected `input_tensor` to be a tensor, got {type(input_tensor)}.")
        if aug_smooth or eigen_smooth:
            raise ValueError(f"{type(self).__name__} has no `aug_smooth` and no `eigen_smooth`: leave both False.")
        maps = _scaled(self.maps(placement_of(self.model).moved(input_tensor), targets).float())
        result: npt.NDArray[np.float32] = _scaled(upsampled(maps, input_tensor.shape[2:])).cpu().numpy()
        return result

    @property
    def device(self) -> torch.device | None:
        """The model's, which SESS asks for."""
        return placement_of(self.model).device

    @property
    def activations_and_grads(self) -> "_NoLayers":
        """What SESS releases and FinerCAM calls."""
        return _NoLayers(type(self).__name__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _NoLayers:
    """In place of pytorch-grad-cam's ActivationsAndGradients, as these maps need none."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, _: Tensor) -> NoReturn:
        raise TypeError(
            f"{self._name} reads no gradients at layers, by which FinerCAM compares classes. Use FinerCAM with "
            "base_method=GradCAM, or this class alone, or with SESS or RefineCAM."
        )

    def release(self) -> None:
        """There is nothing to release."""


def _scaled(maps: Tensor) -> Tensor:
    axes = tuple(range(1, maps.dim()))
    maps = maps - maps.amin(axes, keepdim=True)
    return maps / (1e-7 + maps.amax(axes, keepdim=True))


def categories(targets: Sequence[Any] | None, count: int) -> Tensor | None:
    """The classes (count,) that pytorch-grad-cam's targets ask for.

    Raises:
        TypeError: if a target is not a `ClassifierOutputTarget`.
        ValueError: if there is not one for each image.
    """
    if targets is None:
        return None
    listed = list(targets) if isinstance(targets, Sequence) else [targets]
    wrong = [target for target in listed if not hasattr(target, "category")]
    if wrong or not isinstance(targets, Sequence):
        got = repr(wrong[0]) if wrong else "one that is not in a list"
        raise TypeError(
            f"Expected a list of pytorch-grad-cam's ClassifierOutputTarget, as [ClassifierOutputTarget(3)] for one "
            f"image, got {got}."
        )
    if len(targets) != count:
        raise ValueError(f"Expected one target for each of {count} images, got {len(targets)}.")
    return torch.tensor([int(target.category) for target in targets])
