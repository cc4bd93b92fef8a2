"""What the CDAM family must answer, by plain automatic differentiation."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .question import RandomModel


@dataclass
class Read:
    """One read of tokens: which module, and its how manieth call."""

    site: nn.Module
    call: int
    tokens: Tensor


def reads_of(random_model: RandomModel) -> list[Read]:
    """All reads of one run, in their order in time."""
    seen: list[Read] = []

    def hook(module, args, output):
        call = sum(read.site is module for read in seen)
        seen.append(Read(module, call, output.detach().clone()))

    with random_model.evaluated(), hooked(random_model.read_at, hook):
        random_model.run()
    return seen


@contextmanager
def hooked(modules, hook):
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_at(random_model: RandomModel, read: Read, tokens: Tensor) -> Tensor | None:
    """The score's gradient where the tokens are put in the place of those that were read; None: autograd has none.

    A checkpointed block runs again in the backward pass, the last call first.
    """
    leaf = tokens.clone().requires_grad_()
    calls, backward = 0, False

    def hook(module, args, output):
        nonlocal calls
        calls += 1
        return leaf.clone() if backward or calls == read.call + 1 else None

    with random_model.evaluated(), hooked([read.site], hook):
        score = random_model.score()
        backward = True
        try:
            (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True)
        except RuntimeError as error:  # no graph at all
            if "does not require grad" not in str(error):
                raise
            return None
    return gradient


def reference(
    random_model: RandomModel,
    kind: str = "cdam",
    *,
    steps: int = 4,
    samples: int = 3,
    deviation: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """The map (batch, tokens) by plain autograd; None: it has no gradient, or one that is not finite.

    Args:
        random_model: What is explained.
        kind: "cdam", "integrated" or "smooth".
        steps: Of the path, for "integrated".
        samples: Of the noise, for "smooth".
        deviation: Of the noise.
        generator: Of the noise.
    """
    read = reads_of(random_model)[-1]
    tokens, batch_axis = read.tokens, getattr(read.site, "batch_axis", 0)
    total = torch.zeros_like(tokens)
    if kind == "cdam":
        pairs = [(tokens, tokens, 1.0)]
    elif kind == "integrated":
        pairs = [(tokens * (k / steps), tokens, 1 / steps) for k in range(1, steps + 1)]
    else:
        shape = tokens.select(batch_axis, 0).shape
        noises = [torch.empty(shape, dtype=tokens.dtype).normal_(generator=generator) for _ in range(samples)]
        noisy = [tokens + deviation * noise.unsqueeze(batch_axis) for noise in noises]
        pairs = [(one, one, 1 / samples) for one in noisy]
    for point, factor, weight in pairs:
        gradient = gradient_at(random_model, read, point)
        if gradient is None:
            return None
        total += weight * factor * gradient
    scores = total.sum(-1).movedim(batch_axis, 0)
    return scores if bool(scores.isfinite().all()) else None
