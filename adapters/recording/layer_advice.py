"""Which layer to pass where no tokens are found."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..models import evaluation_mode, modules_of, root_module, uncompiled
from ..models.hooks import watch_outputs
from .hook_point import HookPoint
from .opaque import is_foreign
from .watched_pass import Forward, WatchedPass


def none_found(one: WatchedPass, forward: Forward, arguments: tuple[Any, ...], point: HookPoint | None) -> str:
    """The message where a pass has no tokens."""
    if point is not None:
        return (
            f"The layer {point} did not run in the forward pass of this thread. Is it part of the model? A "
            "model that is spread over devices (nn.DataParallel) must be passed as its `.module`."
        )
    foreign = next((f"`{op.func}`" for op in one.recorder.operations if is_foreign(op)), None)
    return (
        "No attention was seen in this forward pass: no softmax of products of queries and keys that weights values. "
        + (
            f"The model runs {foreign}, which cannot be looked into; is it the attention? Then load the model with "
            'another one (of transformers: `attn_implementation="sdpa"`). '
            if foreign
            else ""
        )
        + "Of a convolutional network use captum.attr.LayerGradCam or a method of pytorch-grad-cam, or "
        f"{layer_advice(forward, arguments)}."
    )


def layer_advice(forward: Forward, arguments: tuple[Any, ...]) -> str:
    """What to do, for a message: the last layer that holds a vector for each place or word, by its name."""
    root, batch = root_module(uncompiled(forward)), arguments[0].shape[0]
    found: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 3:
            places = output.shape[2:] if output.dim() > 3 else output.shape[1:2]
            if output.shape[0] == batch and places.numel() > 1:
                found.append((module, output))

    copies = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), arguments)
    with watch_outputs(modules_of(root), note), torch.no_grad(), evaluation_mode(forward):
        returned = [x for x in pytree.tree_leaves(forward(*copies)) if isinstance(x, Tensor)]
    names = {} if root is None else {module: name for name, module in root.named_modules()}
    shapes = {x.shape for x in returned}
    fits = [names[module] for module, made in found if made.shape not in shapes]
    fits = [name for name in fits if name]
    if not fits:
        return "pass `layer=` the module whose output times gradient you want"
    return f'pass `layer=` the module whose output times gradient you want, as `model.get_submodule("{fits[-1]}")`'
