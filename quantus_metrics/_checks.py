"""Validation of the inputs of a score: images or token ids, classes and maps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.checks import number


def checked(x: Tensor, y: Tensor | Sequence[int], a: Tensor, *, texts: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, classes (batch,) and maps with one channel, on the inputs' device.

    Args:
        x: (batch, channels, ...): signals, images or volumes of one, two or three axes; or token ids (batch, tokens).
        y: (batch,), the class that is evaluated for each sample.
        a: (batch, ...) or (batch, 1 or channels, ...), channels are summed; or (batch, tokens).
        texts: Whether token ids are accepted.

    Raises:
        TypeError: if `x` or `a` is not a tensor, or `y` not of integers.
        ValueError: if shapes do not match, or something is not finite.
    """
    for name, value in (("x", x), ("a", a)):
        if not isinstance(value, Tensor):
            raise TypeError(f"Expected `{name}` to be a tensor, got {type(value)}. Use torch.as_tensor.")
    classes = torch.as_tensor(y)
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise TypeError(f"Expected `y` to be class indices of an integer type, got {classes.dtype}.")
    check_shapes(tuple(x.shape), tuple(classes.shape), tuple(a.shape), texts=texts)
    check_finite("inputs", x)
    check_finite("maps", a)
    maps = a.to(x.device).detach()
    if x.dim() > 2 and a.dim() == x.dim():
        maps = maps.sum(1)
    if x.dim() > 2 and not x.is_floating_point():
        x = x.float()
    return x.detach(), classes.to(x.device, torch.long), maps.to(torch.promote_types(maps.dtype, torch.float32))


def check_shapes(x: tuple[int, ...], y: tuple[int, ...], a: tuple[int, ...], *, texts: bool) -> None:
    """Raise a ValueError that names both, if the shapes of inputs, classes and maps do not match."""
    if len(x) not in ((2, 3, 4, 5) if texts else (3, 4, 5)) or 0 in x:
        or_texts = ", or token ids (batch, tokens)" if texts else ""
        raise ValueError(
            "Expected images (batch, channels, height, width), signals (batch, channels, length) or volumes (batch, "
            f"channels, depth, height, width){or_texts}; got inputs of shape {x}."
        )
    if y != x[:1]:
        raise ValueError(f"Expected one class for each input: inputs have shape {x}, classes {y}.")
    fitting = {x, (x[0], *x[2:]), (x[0], 1, *x[2:])} if len(x) > 2 else {x}
    if a not in fitting:
        raise ValueError(
            f"Expected maps of the inputs' size: inputs have shape {x}, maps {a}."
            + (" Resize them first, as by captum.attr.LayerAttribution.interpolate." if len(x) > 2 else "")
        )


def check_finite(name: str, value: Tensor) -> None:
    """Raise a ValueError that names the samples in which something is not finite."""
    bad = not_finite(value)
    if bad:
        raise ValueError(f"Expected finite {name}, got NaN or infinity in sample(s) {bad} of {len(value)}.")


def not_finite(value: Tensor) -> list[int]:
    """The samples with a value that is not finite."""
    if not value.is_floating_point():
        return []
    return [int(i) for i in (~value.isfinite().flatten(1).all(1)).nonzero().flatten()]


def unit_fraction(name: str, value: float) -> float:
    """The value as a float from 0 to 1, or an error that names it."""
    if not 0 <= number(name, value) <= 1:
        raise ValueError(f"Expected `{name}` from 0 to 1, got {value}.")
    return float(value)
