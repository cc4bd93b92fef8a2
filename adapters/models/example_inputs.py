"""Empty inputs on which a model can be run to see what it does."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIDES = (224, 64, 32, 28)  # of images to try a network with, where it does not say its own
_SIZES: dict[type[nn.Module], list[tuple[int, ...]]] = {
    nn.Conv1d: [(length,) for length in (1024, *_SIDES)],
    nn.Conv2d: [(side, side) for side in _SIDES],
    nn.Conv3d: [(64, 64, 64), (16, 224, 224), (32, 32, 32), (28, 28, 28)],
}
_TOKENS = 4


def example_inputs(model: nn.Module) -> Iterator[dict[str, Tensor] | Tensor]:
    """Inputs to try, one after the other: token ids by name, or images (1, channels, height, width).

    For networks whose first convolution has one or three axes, signals (1, channels, length) or volumes.

    Raises:
        TypeError: if it is not a model.
        ValueError: if nothing says what it reads.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model, a torch.nn.Module, got {type(model)}.")
    config: Any = getattr(model, "config", None)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if hasattr(config, "vocab_size") and not hasattr(config, "image_size"):
        yield {"input_ids": torch.ones(1, _TOKENS, dtype=torch.long, device=device)}
        return
    first = next((m for m in model.modules() if isinstance(m, _CONVOLUTIONS)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution: expected a network that reads images.")
    sizes = next(sizes for kind, sizes in _SIZES.items() if isinstance(first, kind))
    for size in dict.fromkeys([*own_sizes(model, len(sizes[0])), *sizes]):
        yield torch.zeros(1, first.in_channels, *size, dtype=first.weight.dtype, device=device)


def own_sizes(model: nn.Module, axes: int = 2) -> Iterator[tuple[int, ...]]:
    """The image sizes that a model says it is made for; of signals and volumes those with as many axes."""
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name in ("img_size", "image_size"):
                size = getattr(holder, name, None)
                if isinstance(size, int) and not isinstance(size, bool) and axes == 2:
                    yield size, size
                elif isinstance(size, tuple | list) and len(size) == axes and all(isinstance(one, int) for one in size):
                    yield tuple(size)
    yield from _of_fixed_grids(model, axes)
    for module in model.modules():
        settings = getattr(module, "pretrained_cfg", None)
        if isinstance(settings, dict) and len(settings.get("input_size") or ()) == 1 + axes:
            yield tuple(settings["input_size"][1:])


def _of_fixed_grids(model: nn.Module, axes: int) -> Iterator[tuple[int, ...]]:
    """The size of MONAI's UNETR, which says how many patches of which size it reads."""
    grid, patch = getattr(model, "feat_size", None), getattr(model, "patch_size", None)
    if isinstance(grid, tuple) and isinstance(patch, tuple) and len(grid) == len(patch) == axes:
        yield tuple(count * side for count, side in zip(grid, patch, strict=True))


def run_on(model: nn.Module, example: dict[str, Tensor] | Tensor) -> Any:
    """What a model returns for one of these inputs.

    Raises:
        RuntimeError: if it does not take it, whatever it says then.
    """
    try:
        return model(**example) if isinstance(example, dict) else model(example)
    except Exception as error:  # of any kind: models check sizes in many ways
        raise RuntimeError(str(error) or type(error).__name__) from error


def cannot_be_run(model: nn.Module, failures: list[str]) -> str:
    """A message: on which of these inputs, and what to do."""
    return (
        f"{type(model).__name__} could not be run on an empty input: {'; '.join(failures)}. If it takes another size, "
        "tell it: `model.image_size = (height, width)`, of volumes `(depth, height, width)`."
    )
