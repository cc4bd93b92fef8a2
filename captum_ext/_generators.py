"""Random numbers that leave the user's random state alone."""

import torch
from torch import Tensor


def check_generator(generator: object) -> None:
    """See whether an argument is a generator or None.

    Raises:
        TypeError: if it is something else.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"Expected `generator` to be a torch.Generator or None, got {type(generator)}.")


def generator_on(tokens: Tensor, generator: torch.Generator | None) -> torch.Generator:
    """The generator, or for None a fresh one that `torch.manual_seed` governs.

    Raises:
        ValueError: if it is on another device than the tokens.
    """
    if generator is None:
        return torch.Generator(tokens.device).manual_seed(torch.initial_seed())
    if generator.device.type != tokens.device.type:
        raise ValueError(
            f"Expected `generator` on the tokens' device {tokens.device}, got one on {generator.device}. Make it with "
            f"torch.Generator({str(tokens.device)!r})."
        )
    return generator
