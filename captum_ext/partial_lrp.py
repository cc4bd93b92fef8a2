"""Partial LRP: attention times its gradient in the last layer."""

from torch import Tensor

from adapters.recording import AttentionMatrices

from ._attention_attribution import AttentionAttribution


class PartialLRP(AttentionAttribution):
    """How much each token speaks for a target by being attended to in the last layer.

        S_i = mean_h((df/dA_h[class, i] * A_h[class, i])+)

    `f` is a logit, or the similarity to a concept, and `A_h` the last layer's attention. The scores are at least 0.

    Source: Voita et al., Analyzing Multi-Head Self-Attention, ACL 2019, as a baseline of Chefer et al., CVPR 2021.
    Differs from the paper: relevance is gradient times attention. Without a class token that the output reads (average
    pooling, attention pooling), the mean over the rows of the patches is taken. With a second class token (DeiT's),
    only the first one's row is.

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
        >>> from captum_ext import PartialLRP
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> PartialLRP(model).attribute(torch.randn(2, 3, 224, 224), target=[7, 3]).shape
        torch.Size([2, 1, 14, 14])
    """

    _of_gradients = True
    _last_only = True

    @staticmethod
    def _formula(found: AttentionMatrices) -> Tensor:
        """The row of the last part, (batch, tokens)."""
        return found.matrices[-1].after(found.row)
