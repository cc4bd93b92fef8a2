"""Relevance propagation: attention times its gradient, followed through all layers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ._attention_attribution import AttentionAttribution, through
from ._targets import Target
from ._token_attribution import Tensors


class RelevancePropagation(AttentionAttribution):
    """How much each token speaks for a target by being attended to, in all layers.

        R <- R + A^_l R  for l = 1 ... L,  from R = I,    A^_l = mean_h((df/dA_lh * A_lh)+);    S = R[class]

    `f` is a logit, or the similarity to a concept. The scores are at least 0: what speaks against it is cut off.

    Source: Chefer et al., Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers, ICCV 2021, equations 5 and 6 (self-attention).
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
        >>> from captum_ext import RelevancePropagation
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> RelevancePropagation(model).attribute(torch.randn(2, 3, 224, 224), target=[7, 3]).shape
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
                finite, if no attention has a gradient, or if an attention is not known here (LoRA, hooks on it,
                quantised); the message names it.
        """
        answer: Tensors = self._of_gradients(
            propagated, inputs, target, additional_forward_args, return_tokens=return_tokens, last_only=False
        )
        return answer


def propagated(parts: Sequence[Tensor], row: Tensor) -> Tensor:
    """A row of `R = (I + A^_L) ... (I + A^_1)`, which the update multiplies out to, (batch, tokens)."""
    for part in reversed(parts):
        row = row + through(row, part)
    return row
