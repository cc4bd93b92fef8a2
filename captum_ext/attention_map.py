"""Attention map: where the last attention of a transformer looks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._attention_attribution import AttentionAttribution, through
from ._token_attribution import Tensors


class AttentionMap(AttentionAttribution):
    """How much the class token attends to each token in the last block, the mean over the heads.

        S_i = mean_h A_h[class, i],    A_h = softmax(q_h k_h^T / sqrt(d_h))

    It is the same for every target. Fused attention stays on: only the last attention's weights are computed, and of
    these only the class token's row.

    Source: Brocki et al., Class-Discriminative Attention Maps for Vision Transformers, TMLR 2024, equation 1.
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
        >>> from captum_ext import AttentionMap
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> AttentionMap(model).attribute(torch.randn(2, 3, 224, 224)).shape
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
            ValueError: if they are not finite or no images, or if the last attention is not known here (LoRA, hooks on
                it, quantised); the message names it.
        """
        answer: Tensors = self._of_weights(
            last_attention, inputs, additional_forward_args, return_tokens=return_tokens, last_only=True
        )
        return answer


def last_attention(means: Sequence[Tensor], row: Tensor) -> Tensor:
    """The row of the last weights, each the mean over the heads, (batch, tokens)."""
    return through(row, means[-1])
