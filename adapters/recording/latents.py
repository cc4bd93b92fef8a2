"""What a model's head reads."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models import OutputChoice, evaluation_mode, modules_of, output_tensor, root_module, uncompiled
from .token_pass import MOST_PASSES
from .watched_pass import Forward, is_scripted, watched


def latents_of(
    forward: Forward, arguments: tuple[Any, ...], output: OutputChoice = None, latent: bool | nn.Module = True
) -> Tensor:
    """What a model's head reads, (batch, channels), or what a module returns; without a head, the output itself.

    Args:
        forward: The model, or any function that calls it.
        arguments: Its positional arguments.
        output: Which tensor of what it returns is its output.
        latent: True: what the head reads; False: the output; or a module.
    """
    forward = uncompiled(forward)
    root = root_module(forward)
    read = partial(output_tensor, choice=output, given=arguments[0])
    scripted = is_scripted(forward, modules_of(root))
    with torch.inference_mode(False), evaluation_mode(forward):
        options: dict[str, Any] = {}
        for _ in range(MOST_PASSES):
            one = watched(forward, arguments, read, latent=latent, root=root, copies=scripted, **options)
            again = one.again() if one.latent is None else None
            if again is None:
                break
            options = again
    return (one.output if one.latent is None else one.latent).detach()
