"""A place in a model where a tensor passes, and what is known about the tokens that pass there."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Site:
    """The output of a module, or its first input."""

    module: nn.Module
    at_input: bool = False


@dataclass(frozen=True)
class TokenAnatomy:
    """Where a transformer's tokens enter its last attention, and how they lie on the image.

    Attributes:
        family: The name of the model family, for messages.
        tokens: Where the tokens (batch, tokens, channels) enter the last attention.
        latent: Where the final representation passes on its way to the head: (batch, channels), or
            (batch, tokens, channels) whose first token it is.
        blocks: The transformer's blocks, in order.
        attentions: The attention module of each block; None where tokens enter something else.
        prefix: How many tokens (class, distillation, registers) stand before the patches; 0 for text.
        patch: Height and width of a patch in pixels; None for text.
        image_size: Height and width of the images the model was made for, in pixels; None if it says none.
        class_token: Is the first token a class token?
    """

    family: str
    tokens: Site
    latent: Site
    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module | None, ...]
    prefix: int = 0
    patch: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None
    class_token: bool = True

    @property
    def attention(self) -> nn.Module | None:
        """The attention module of the last block."""
        return self.attentions[-1]

    @property
    def reads_images(self) -> bool:
        """Is the input an image, so that the tokens form a grid?"""
        return self.patch is not None


def pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """A size given once or per axis, as (height, width)."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def is_a(module: nn.Module, library: str, *names: str) -> bool:
    """Is the module an instance of one of these classes, without importing the library?"""
    return any(c.__name__ in names and c.__module__.startswith(library) for c in type(module).__mro__)
