"""A model, an input for it, and where the specification says its tokens are."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 5
WIDTH = 32
PATCH = 8


CLOSED_FORM, AUTOGRAD = "closed form", "autograd from the tokens"  # as `CDAM(model).path(inputs).way` has it


@dataclass(frozen=True)
class Entry:
    """A case that is not built yet, and what is expected of it.

    Args:
        make: Builds it.
        way: The way that CDAM takes.
        average: Does the output read the average of the patches, or a maximum over them, and not the first token?
        layers: How many attentions the output depends on.
        pools: Does the last attention make one token of all?
        no_matrices: Why maps of attention weights are not compared.
        quick: Is it among the few that quick runs try too?
    """

    make: Callable[[], "Case"]
    way: str = CLOSED_FORM
    average: bool = False
    layers: int = 2
    pools: bool = False
    no_matrices: str = ""
    quick: bool = False


@dataclass
class Case:
    """A model, an input for it, and where its tokens are.

    Args:
        model: What CDAM gets.
        inputs: Images or token ids.
        site: The module that `T` leaves or, with `enters`, that it enters.
        prefix: Number of tokens in front of the patches.
        grid: Rows and columns of patches; None for text.
        latents: Runs the model and returns what its head receives for a concept.
        enters: True where the residual path reads the same value and must keep it.
        extra: Further arguments of the model.
    """

    model: nn.Module
    inputs: Tensor
    site: nn.Module
    prefix: int
    grid: tuple[int, int] | None
    latents: Callable[[], Tensor]
    enters: bool = False
    extra: tuple = ()

    @property
    def forward_args(self):
        return self.extra or None

    def logits(self):
        output = self.model(self.inputs, *self.extra)
        if isinstance(output, tuple):
            return output[0]
        if isinstance(output, Tensor):
            return output
        return next(output[key] for key in ("logits", "image_embeds", "scores") if key in output)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def images(height=32, width=32, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((count, 3, height, width), generator=generator, dtype=torch.float64)


@contextmanager
def hooked(handle):
    try:
        yield
    finally:
        handle.remove()


def output_of(module, run):
    seen = []
    with hooked(module.register_forward_hook(lambda _module, _args, output: seen.append(output))):
        run()
    return seen[-1]


def input_of(module, run):
    seen = []
    with hooked(module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))):
        run()
    return seen[-1]


def class_token_of(module, run):
    return output_of(module, run)[:, 0]
