"""What maps of MHEX explain: a class of each sample, and of masks where."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .mhex import MHEX

_FORMS = "a class, `(class, region)` with booleans of the images' size, or `(class, row, column)`"


@dataclass(frozen=True)
class Explained:
    """What is explained of each sample.

    Attributes:
        classes: (batch,); one for each graph or node.
        regions: (batch, ...) of the images' size, 1 inside; None: no sample has one.
        everywhere: (batch,), which samples have none, if others have one.
    """

    classes: Tensor
    regions: Tensor | None = None
    everywhere: Tensor | None = None


def explained(model: MHEX, target: Any, inputs: Tensor, count: int) -> Explained:
    """Read a target.

    Args:
        model: The wrapped model.
        target: A class for all samples, or a list or tensor of one for each. Of masks also a tuple, `(class, region)`
            or `(class, row, column)`, for all samples, or a list with one for each.
        inputs: The images.
        count: How many samples, graphs or nodes there are.

    Raises:
        TypeError: if it is of none of these kinds.
        ValueError: if something is out of range, of another size, or empty.
    """
    if model.task != "segmentation":
        return Explained(classes_of(model, target, inputs, count))
    if target is None:
        raise ValueError(f"Expected a `target` for masks, which have no one predicted class: {_FORMS}.")
    size, everywhere = inputs.shape[2:], torch.zeros(count, dtype=torch.bool)
    if isinstance(target, tuple):
        each = [target] * count
        if len(target) == 2 and _region(target[1]).dim() == len(size) + 1:
            regions = _region(target[1])
            _check_count(len(regions), count)
            each = [(target[0], one) for one in regions]
    elif isinstance(target, list) and any(isinstance(one, tuple) for one in target):
        _check_count(len(target), count)
        each = [one if isinstance(one, tuple) else (one, torch.ones(size, dtype=torch.bool)) for one in target]
        everywhere = torch.tensor([not isinstance(one, tuple) for one in target])
    else:
        return Explained(classes_of(model, target, inputs, count))
    pairs = [_class_and_region(one, size) for one in each]
    classes = classes_of(model, [cls for cls, _ in pairs], inputs, count)
    regions = torch.stack([region for _, region in pairs])
    return Explained(classes, regions.to(inputs.device), everywhere.to(inputs.device))


def _check_count(found: int, count: int) -> None:
    if found != count:
        raise ValueError(f"Expected one target for each of {count} samples, got {found}.")


def _region(given: Any) -> Tensor:
    return torch.as_tensor(given) if isinstance(given, Tensor | np.ndarray) else torch.zeros(())


def _class_and_region(target: tuple[Any, ...], size: torch.Size) -> tuple[Any, Tensor]:
    """The class, and where: (height, width) of zeros and ones."""
    if len(target) == 2 and isinstance(target[1], Tensor | np.ndarray):
        region = _region(target[1])
        if region.dtype is not torch.bool:
            raise TypeError(f"Expected a region of booleans in `target`, got {region.dtype}. Compare: `mask == 2`.")
        if region.shape != size or not bool(region.any()):
            raise ValueError(
                f"Expected a region of the images' size {tuple(size)} with at least one place in `target`, got shape "
                f"{tuple(region.shape)} with {int(region.sum())} places."
            )
        return target[0], region.float()
    point = target[1:]
    whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in point)
    if len(point) != len(size) or not whole:
        raise TypeError(f"Expected a `target` of masks to be {_FORMS}; got {target!r}.")
    if any(not 0 <= int(one) < length for one, length in zip(point, size, strict=True)):
        raise ValueError(f"Expected a place in images of size {tuple(size)} in `target`, got {tuple(map(int, point))}.")
    region = torch.zeros(size)
    region[tuple(int(one) for one in point)] = 1
    return target[0], region


def classes_of(model: MHEX, target: int | Sequence[int] | Tensor, inputs: Tensor, count: int | None = None) -> Tensor:
    """The classes (batch,) that a target asks for; `count` of them, where not as many as there are inputs.

    Raises:
        TypeError: if they are no integers.
        ValueError: if they are out of range or do not fit the batch.
    """
    count = len(inputs) if count is None else count
    listed: Any = target.tolist() if isinstance(target, Tensor | np.ndarray | np.generic) else target
    each: list[Any] = list(listed) if isinstance(listed, list | tuple) else [listed]
    if not all(isinstance(one, Integral) and not isinstance(one, bool) for one in each):
        raise TypeError(f"Expected classes as `target`, an int or one for each sample; got {target!r}.")
    if any(not 0 <= one < model.num_classes for one in each):
        raise ValueError(f"Expected classes from 0 to {model.num_classes - 1}, got {sorted(set(each))}.")
    given = torch.as_tensor(int(listed) if isinstance(listed, Integral) else [int(one) for one in each])
    classes = given.expand(count) if given.dim() == 0 or (isinstance(target, Tensor) and len(given) == 1) else given
    if classes.shape != (count,):
        raise ValueError(f"Expected one target for each of {count} samples, got shape {tuple(given.shape)}.")
    return classes.to(inputs.device)
