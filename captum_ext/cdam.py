"""CDAM: class-discriminative attention map."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adapters.recording import LastAttention, TokenPass

from ._autograd import gradient_relevance
from ._checks import OnError
from ._closed_form import closed_form_relevance
from ._perturbed_tokens import InterpolatedTokens
from ._targets import Score, Target
from ._token_attribution import Request, Tensors, TokenAttribution


class CDAM(TokenAttribution):
    """Class-discriminative attention map: how much each token that enters the last attention speaks for a target.

    `S_i = sum_j T_ij * df/dT_ij`, where `T` are the tokens behind the norm in front of the last attention and `f` is a
    logit, or the similarity to a concept. The scores are signed; nothing is clamped or normalised.

    Source: Brocki et al., Class-Discriminative Attention Maps for Vision Transformers, TMLR 2024, equations 2 and 4.
    Differs from the paper: none. Works for any number of prefix tokens, and for text.

    Args:
        forward_func: A model, or any function that returns its output: a tensor, tuple, dictionary or ModelOutput.
            The model runs in evaluation mode and is restored afterwards.
        layer: The module whose output is the tokens, or its name: (batch, tokens, channels) or a feature map
            (batch, channels, height, width). None: they are what the last attention reads, found in each call.
        attention: Another attention than the last: its number in time (from the end if negative), or a module in which
            it runs, or its name.
        output: Which tensor to explain, where the model returns several: a name, an index, a tuple of them or a
            name with dots for what is nested, or a function of what it returns. None: by name, as `logits`; several
            that could be meant are an error, which lists them.

    Raises:
        TypeError: if `forward_func` is not callable or `layer` not a module.
        ValueError: if `layer` or `attention` is no part of the model. That there is no attention is an error of
            `attribute`, whose message names a layer.

    Example:
        >>> import timm, torch
        >>> from captum.attr import LayerAttribution
        >>> from captum_ext import CDAM
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> heat = CDAM(model).attribute(torch.randn(2, 3, 224, 224), target=[7, 3])
        >>> heat.shape
        torch.Size([2, 1, 14, 14])
        >>> LayerAttribution.interpolate(heat, (224, 224), "bilinear").shape
        torch.Size([2, 1, 224, 224])
    """

    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors:
        """Explain one target for each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: What to explain, as in Captum: a class for all samples, a list or 1-D tensor with one for each, a
                tuple of indices for outputs of more dimensions, None for outputs of one value; a function of one
                sample's output that returns a number, or a list with one for each sample; or a ConceptTarget.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            For images (batch, 1, height, width), one score a patch; for sequences, or with `return_tokens`,
            (batch, tokens). Signed, in the unit of the score explained, in float32 or wider. A tuple holding it if
            `inputs` is a tuple, as Captum's metrics expect.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if a target is missing, of the wrong length or out of range, if inputs or gradients are not
                finite, or if no patch has a gradient.
        """
        request = Request(inputs, [target], additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        answer: Tensors = self._attribute_one(request, _Gradient())
        return answer

    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors:
        """Explain several targets of each sample from one pass through the model.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            targets: A list of targets, each as for `attribute`.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            (batch, targets, height, width); for sequences, or with `return_tokens`, (batch, targets, tokens).

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if a target is missing, of the wrong length or out of range, if inputs or gradients are not
                finite, or if no patch has a gradient.
        """
        request = Request(inputs, targets, additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        answer: Tensors = self._attribute_many(request, _Gradient())
        return answer


class _Gradient:
    """The formula."""

    def by_autograd(self, run: TokenPass, scores: Sequence[Score]) -> Tensor:
        return gradient_relevance(run, scores)

    def in_closed_form(self, last: LastAttention, scores: Sequence[Score]) -> Tensor:
        return closed_form_relevance(last, scores, InterpolatedTokens(alphas=[1.0], weights=[1.0]))
