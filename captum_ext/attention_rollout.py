"""Attention rollout: attention followed through all layers."""

from torch import Tensor

from adapters.recording import AttentionMatrices

from ._attention_attribution import AttentionAttribution


class AttentionRollout(AttentionAttribution):
    """How much of each token arrives at the class token, if attention and the residual path carry half of it each.

        S = A^_L ... A^_2 A^_1 [class],    A^_l = (mean_h A_lh + I) / 2

    It is the same for every target, and sums to 1 over all tokens. Only a row vector passes through the layers, from
    the last one down.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020, section 3 (attention rollout).
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
        >>> from captum_ext import AttentionRollout
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> AttentionRollout(model).attribute(torch.randn(2, 3, 224, 224)).shape
        torch.Size([2, 1, 14, 14])
    """

    _of_gradients = False
    _last_only = False

    @staticmethod
    def _formula(found: AttentionMatrices) -> Tensor:
        """A row of the product of all `(mean + I) / 2`, later layers on the left, (batch, tokens).

        An attention that pools has no residual path: its mean itself is the first factor.
        """
        row, layers = found.row, found.matrices
        if found.pools:
            row, layers = layers[-1].after(row), layers[:-1]
        for mean in reversed(layers):
            row = (mean.after(row) + row) / 2
        return row
