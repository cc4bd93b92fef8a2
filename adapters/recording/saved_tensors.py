"""What the graph of a pass keeps of a tensor, and whether it was changed since."""

from torch import Tensor


def as_it_is(tensor: Tensor) -> tuple[Tensor, int]:
    """What a graph keeps of a tensor, whatever the model's code wants kept (a checkpoint would run it all again)."""
    return tensor.detach(), version_of(tensor)  # detached, or what an operation returns would be kept by its own graph


def unchanged(kept: tuple[Tensor, int]) -> Tensor:
    """The tensor again.

    Raises:
        RuntimeError: if it was changed in place, as torch itself does.
    """
    tensor, version = kept
    if version_of(tensor) != version:
        raise RuntimeError(
            f"A tensor of shape {tuple(tensor.shape)} that the gradient needs was changed in place by the model."
        )
    return tensor


def version_of(tensor: Tensor | None) -> int:
    """How often it was changed in place, as far as torch counts that."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version  # noqa: SLF001 # there is no other


def is_of_views(error: RuntimeError) -> bool:
    """Does torch refuse to change a view in place that was made without gradients?"""
    return "view was created in no_grad mode" in str(error)
