"""A place where a network joins two branches, and which of them a wrapper takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .joins import Join

Placement = Literal["all", "downsample"] | Sequence[str]


@dataclass(frozen=True)
class Residual:
    """A block that joins two branches, x and r.

    Attributes:
        name: The module's in whose call it happens; "" is the network itself.
        channels: How many x has.
        on_tokens: Does it add tokens (batch, tokens, channels), or maps (batch, channels, height, width)?
        axes: How many these have.
        channels_last: Are maps (batch, height, width, channels)? Tokens always have their channels last.
        identity: Which of the two is x, the identity branch or the decoder's part, 0 or 1.
        projected: Is it computed for the addition alone, as a down-sampling is? The residual branch does not read it.
        order: Which of the joins of tensors of this kind in the module's call it is.
        alike: How many of them there are.
        skip: How many channels r has, if it is concatenated; 0: it is added.
        part: Which one it is, where the module has several; None: it has one.
        added: Is there no addition in the network, so that the wrapper makes one behind the module?
        entering: How many channels go into the module then.
    """

    name: str
    channels: int
    on_tokens: bool
    axes: int
    channels_last: bool
    identity: int
    projected: bool
    order: int
    alike: int
    skip: int = 0
    part: int | None = None
    added: bool = False
    entering: int = 0

    @property
    def label(self) -> str:
        """Its name, which tells several of one module apart."""
        return self.name if self.part is None else f"{self.name}:{self.part}"

    def same_kind(self, join: Join) -> bool:
        """Are tensors of this one's channels and axes joined, and in the same way?"""
        if join.first.dim() != self.axes or (join.kind == "cat") != bool(self.skip):
            return False
        place = -1 if self.channels_last else 1
        widths = tuple(one.shape[place] for one in join.terms)
        x = self.channels
        return widths == ((x, x) if not self.skip else (x, self.skip) if self.identity == 0 else (self.skip, x))

    def mean(self, one: Tensor) -> Tensor:
        """Of a map over its places, (batch, channels)."""
        return one.mean(tuple(range(1, self.axes - 1) if self.channels_last else range(2, self.axes)))

    def shaped(self, vectors: Tensor) -> Tensor:
        """Vectors (batch, channels), as they multiply a map."""
        axes = [1] * (self.axes - 2)
        return vectors.view(len(vectors), *([*axes, -1] if self.channels_last else [-1, *axes]))


@dataclass(frozen=True)
class ResidualAnatomy:
    """The residual blocks of a model, in the order in which they run, its number of logits, the axes of its images.

    That is 3 for signals, 5 for volumes, 0 for texts and graphs. `closed` are the names of further modules, whose joins
    are their own and belong to no block around them.
    """

    blocks: tuple[Residual, ...]
    classes: int
    axes: int
    closed: tuple[str, ...] = ()


def placed(model: nn.Module, blocks: Sequence[Residual], placement: Placement) -> tuple[Residual, ...]:
    """The blocks that a placement means: "all", "downsample" (those with a projected identity branch), or by name.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it matches no block.
    """
    if not isinstance(placement, Sequence):
        raise TypeError(f"Expected `placement` to be 'all', 'downsample' or a list of names, got {placement!r}.")
    if placement == "all":
        return tuple(blocks)
    names = [one.label for one in blocks]
    if placement == "downsample":
        chosen = tuple(one for one in blocks if one.projected)
        if not chosen:
            raise ValueError(
                f"{type(model).__name__} has no residual block with a down-sampling identity branch. Its blocks are "
                f"{names}: pass their names, or placement='all'."
            )
        return chosen
    if isinstance(placement, str) or not all(isinstance(name, str) for name in placement):
        raise ValueError(f"Expected `placement` to be 'all', 'downsample' or a list of names, got {placement!r}.")
    unknown = [name for name in placement if name not in names]
    if unknown or not placement or len(set(placement)) < len(placement):
        raise ValueError(f"Expected different names of residual blocks out of {names}, got {list(placement)}.")
    return tuple(one for one in blocks if one.label in placement)
