"""What is wrong with inputs that a model does not take: found by trying it with those that new users mean."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..checks import INPUTS, ONE_SAMPLE
from ..models import evaluation_mode, placement_of

UNBATCHED = {"conv1d": 2, "conv2d": 3, "conv3d": 4}  # axes of what a convolution takes for a single sample


def no_batch_axis(inputs: Tensor) -> str:
    """The message about inputs without a batch axis."""
    kinds = INPUTS | {3: f"{INPUTS[3]} or embeddings (batch, tokens, channels)", 5: f"{INPUTS[5]} or videos"}
    return f"Expected {kinds[inputs.dim() + 1]}, got shape {tuple(inputs.shape)}.{ONE_SAMPLE}"


def input_advice(forward: Callable[..., Any], arguments: tuple[Any, ...], root: nn.Module | None) -> str | None:
    """The message about inputs that the model failed with, if it runs with others that are meant; else None.

    Args:
        forward: What failed, as a function of the arguments.
        arguments: The arguments, the inputs first.
        root: The model.
    """
    for message, change in _changes(arguments[0], placement_of(root).dtype):
        changed = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), arguments)
        if message.endswith(ONE_SAMPLE):
            changed = pytree.tree_map_only(Tensor, change, changed)
        else:
            changed = (change(changed[0]), *changed[1:])
        try:
            with torch.inference_mode(False), torch.no_grad(), evaluation_mode(forward):
                forward(*changed)
        except Exception:  # of any kind: models check shapes in many ways
            continue
        return message
    return None


def _changes(inputs: Tensor, dtype: torch.dtype | None) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    shape, kind = tuple(inputs.shape), inputs.dtype
    if inputs.dim() in UNBATCHED.values() and inputs.is_floating_point():
        yield no_batch_axis(inputs), lambda x: x[None]
    if dtype is not None and kind is not dtype and (kind is torch.uint8 or inputs.is_floating_point()):
        scaled = ", after scaling and normalising them as in the model's training" if kind is torch.uint8 else ""
        yield (
            f"Expected inputs of {dtype}, as the model's weights are, got {kind}: `inputs.to({dtype})`{scaled}.",
            (lambda x: x.to(dtype)),
        )
    if inputs.dim() == 4 and shape[-1] in (1, 3, 4):
        yield (
            f"Expected {INPUTS[4]}, got shape {shape}: channels lie last. `inputs.permute(0, 3, 1, 2)`.",
            (lambda x: x.permute(0, 3, 1, 2)),
        )
