"""Why one class and not another."""

from typing import Any


class ContrastTarget:
    """The score of one target minus that of another: why a, and not b.

    `f_a - f_b`, of logits; CDAM, Smooth CDAM and Integrated CDAM are linear in the score, so that their map is the
    difference of two maps. Of probabilities `p_a - p_b` with `p = softmax(f)`, by its own gradient. Source: the score
    `f` of Brocki et al. 2024, equations 2 to 6, is any function of the output.

    Args:
        a: What speaks for the map, as for `attribute`: a class, a list of them, a tuple, a function or a concept.
        b: What speaks against it.
        probabilities: Compare probabilities of classes, the softmax over the output's last axis, not logits.

    Raises:
        TypeError: if a target is itself a contrast, or probabilities are to be compared of what is no class.

    Example:
        >>> import timm, torch
        >>> from captum_ext import CDAM, ContrastTarget
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> CDAM(model).attribute(torch.randn(2, 3, 224, 224), target=ContrastTarget(3, 5)).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(self, a: Any, b: Any, *, probabilities: bool = False) -> None:
        for one in (a, b):
            if isinstance(one, ContrastTarget):
                raise TypeError("Expected `a` and `b` to be targets that are no contrasts themselves.")
            if probabilities and (one is None or callable(one) or hasattr(one, "score")):
                raise TypeError(f"Expected classes where probabilities are compared, got {one!r}.")
        self.a, self.b, self.probabilities = a, b, probabilities

    def __repr__(self) -> str:
        return f"ContrastTarget({self.a!r}, {self.b!r}, probabilities={self.probabilities})"
