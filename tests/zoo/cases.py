"""A model with an input and a target for it, and how both are made without any download."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5
LENGTH = 16
VOCABULARY = 64
IMAGE_TOKEN = 7
END = 2


@dataclass
class Case:
    """A model with an input and a target.

    Args:
        model: In evaluation mode, float64 where the model allows it.
        inputs: What `forward` takes first; a tuple for models of several inputs.
        additional: Further arguments of `forward`, or None.
        target: What to explain, as for Captum.
        forward: What CDAM gets: the model, or a module around it.
    """

    model: nn.Module
    inputs: Tensor | tuple[Tensor, ...]
    additional: Any
    target: Any
    forward: nn.Module

    def run(self) -> Any:
        inputs = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        return self.forward(*inputs, *(self.additional or ()))


@dataclass(frozen=True)
class Entry:
    group: str
    name: str
    make: Callable[[], Case]


def built(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model in evaluation mode, with noise on every weight so that none is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = parameter.shape[1:].numel()
            size = min(0.1, max(inputs, 1) ** -0.5)  # a wide layer's output stays of its size
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def token_ids(*image_positions: int) -> Tensor:
    """Random token ids; the last one ends the sequence, and those at `image_positions` stand for an image."""
    ids = torch.randint(IMAGE_TOKEN + 1, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = END
    ids[:, list(image_positions)] = IMAGE_TOKEN
    return ids


def case(model: nn.Module, inputs: Any, target: Any = 1, additional: Any = None, forward: Any = None) -> Case:
    return Case(model, inputs, additional, target, forward or model)
