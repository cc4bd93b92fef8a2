"""Partial LRP: attention times its gradient in the last layer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._attention_attribution import AttentionAttribution, through
from ._targets import Target
from ._token_attribution import Tensors


class PartialLRP(AttentionAttribution):
    """How much each token speaks for a target by being attended to in the last layer.

        S_i = mean_h((df/dA_h[class, i] * A_h[class, i])+)

    `f` is a logit, or the similarity to a concept, and `A_h` the last layer's attention. The scores are at least 0.

    Source: Voita et al., Analyzing Multi-Head Self-Attention, ACL 2019, as a baseline of Chefer et al., CVPR 2021.
    Differs from the paper: relevance is gradient times attention. Without a class token that the output reads (average
    pooling, attention pooling), the mean over the rows of the patches is taken. With a second class token (DeiT's),
    only the first one's row is.

    Args:
        forward_func: A transformer of timm, torchvision, transformers or DINO, alone or in a module around it; a method
            of it or a partial. It runs in evaluation mode and is left as found.

    Raises:
        TypeError: if `forward_func` is not callable.
        ValueError: if the transformer is not known, or compiled in place.

    Example:
        >>> import timm, torch
        >>> from captum_ext import PartialLRP
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> PartialLRP(model).attribute(torch.randn(2, 3, 224, 224), target=[7, 3]).shape
        torch.Size([2, 1, 14, 14])
    """

    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_tokens: bool = False,
    ) -> Tensors:
        """Explain one target for each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: What to explain, as for CDAM: a class for all samples, a list or 1-D tensor with one for each, a
                tuple of indices for outputs of more dimensions, None for outputs of one value; or a ConceptTarget.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.

        Returns:
            For images (batch, 1, height, width), one score a patch; for sequences, or with `return_tokens`,
            (batch, tokens). At least 0, in float32 or wider. A tuple holding it if `inputs` is a tuple.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if a target is missing, of the wrong length or out of range, if inputs or gradients are not
                finite, if no attention has a gradient, or if the last attention is not known here (LoRA, hooks on it,
                quantised); the message names it.
        """
        answer: Tensors = self._of_gradients(
            last_relevance, inputs, target, additional_forward_args, return_tokens=return_tokens, last_only=True
        )
        return answer


def last_relevance(parts: Sequence[Tensor], row: Tensor) -> Tensor:
    """The row of the last part, (batch, tokens)."""
    return through(row, parts[-1])
