"""Attention map: where the last attention of a transformer looks."""

from torch import Tensor

from adapters.recording import AttentionMatrices

from ._attention_attribution import AttentionAttribution


class AttentionMap(AttentionAttribution):
    """How much the class token attends to each token in the last block, the mean over the heads.

        S_i = mean_h A_h[class, i],    A_h = softmax(q_h k_h^T / sqrt(d_h))

    It is the same for every target, and sums to 1 over all tokens. Fused attention stays on: only the last attention's
    weights are computed, and of these only the class token's row.

    Source: Brocki et al., Class-Discriminative Attention Maps for Vision Transformers, TMLR 2024, equation 1.
    Differs from the paper: without a class token that the output reads (average pooling, attention pooling), the mean
    over the rows of the patches is taken. With a second class token (DeiT's), only the first one's row is.

    Args:
        forward_func: A model, or any function that returns its output. The model runs in evaluation mode and is left
            unchanged.
        output: Which tensor to explain, where the model returns several: a name, an index, a tuple of them or a
            name with dots for what is nested, or a function of what it returns. None: by name, as `logits`; several
            that could be meant are an error, which lists them.

    Raises:
        TypeError: if `forward_func` is not callable.
        ValueError: if the model is compiled in place.

    Example:
        >>> import timm, torch
        >>> from captum_ext import AttentionMap
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> AttentionMap(model).attribute(torch.randn(2, 3, 224, 224)).shape
        torch.Size([2, 1, 14, 14])
    """

    _of_gradients = False
    _last_only = True

    @staticmethod
    def _formula(found: AttentionMatrices) -> Tensor:
        """The row of the last weights, each the mean over the heads, (batch, tokens)."""
        return found.matrices[-1].after(found.row)
