"""Attention rollout: attention followed through all layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._attention_attribution import AttentionAttribution, through
from ._token_attribution import Tensors


class AttentionRollout(AttentionAttribution):
    """How much of each token arrives at the class token, if attention and the residual path carry half of it each.

        S = A^_L ... A^_2 A^_1 [class],    A^_l = (mean_h A_lh + I) / 2

    It is the same for every target. Only a row vector passes through the layers, from the last one down.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, section 3 (attention rollout).
    Differs from the paper: without a class token that the output reads (average pooling, attention pooling), the mean
    over the rows of the patches is taken. With a second class token (DeiT's), only the first one's row is.

    Args:
        forward_func: A transformer of timm, torchvision, transformers or DINO, alone or in a module around it; a method
            of it or a partial. It runs in evaluation mode and is left as found.

    Raises:
        TypeError: if `forward_func` is not callable.
        ValueError: if the transformer is not known, or compiled in place.

    Example:
        >>> import timm, torch
        >>> from captum_ext import AttentionRollout
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> AttentionRollout(model).attribute(torch.randn(2, 3, 224, 224)).shape
        torch.Size([2, 1, 14, 14])
    """

    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        return_tokens: bool = False,
    ) -> Tensors:
        """The map of each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: Accepted as in all of Captum's classes; the attention does not depend on it.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.

        Returns:
            For images (batch, 1, height, width), one score a patch; for sequences, or with `return_tokens`,
            (batch, tokens). At least 0, over all tokens with sum 1, in float32 or wider. A tuple holding it if
            `inputs` is a tuple.

        Raises:
            TypeError: if the inputs are not tensors.
            ValueError: if they are not finite or no images, or if an attention is not known here (LoRA, hooks on it,
                quantised); the message names it.
        """
        answer: Tensors = self._of_weights(
            rollout, inputs, additional_forward_args, return_tokens=return_tokens, last_only=False
        )
        return answer


def rollout(means: Sequence[Tensor], row: Tensor) -> Tensor:
    """A row of the product of all `(mean + I) / 2`, later layers on the left, (batch, tokens)."""
    for mean in reversed(means):
        row = (through(row, mean) + row) / 2
    return row
