"""Relevance propagation: attention times its gradient, followed through all layers."""

from torch import Tensor

from adapters.recording import AttentionMatrices

from ._attention_attribution import AttentionAttribution


class RelevancePropagation(AttentionAttribution):
    """How much each token speaks for a target by being attended to, in all layers.

        R <- R + A^_l R  for l = 1 ... L,  from R = I,    A^_l = mean_h((df/dA_lh * A_lh)+);    S = R[class]

    `f` is a logit, or the similarity to a concept. The scores are at least 0: what speaks against it is cut off.

    Source: Chefer et al., Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers, ICCV 2021, equations 5 and 6 (self-attention).
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
        >>> from captum_ext import RelevancePropagation
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> RelevancePropagation(model).attribute(torch.randn(2, 3, 224, 224), target=[7, 3]).shape
        torch.Size([2, 1, 14, 14])
    """

    _of_gradients = True
    _last_only = False

    @staticmethod
    def _formula(found: AttentionMatrices) -> Tensor:
        """A row of `R = (I + A^_L) ... (I + A^_1)`, which the update multiplies out to, (batch, tokens).

        An attention that pools has no residual path: its part itself is the first factor.
        """
        row, layers = found.row, found.matrices
        if found.pools:
            row, layers = layers[-1].after(row), layers[:-1]
        for part in reversed(layers):
            row = row + part.after(row)
        return row
