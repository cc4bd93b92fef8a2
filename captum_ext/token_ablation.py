"""Token ablation: the exact effect of leaving each token out of the last attention."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from adapters.recording import LastAttention, ReplayedGame, RowGame, TokenPass, effects

from ._checks import OnError
from ._targets import Score, Target
from ._token_attribution import FROM_TOKENS, Request, Tensors, TokenAttribution
from ._token_scores import reader


class TokenAblation(TokenAttribution):
    """The exact effect of each token on a target: the score less the score without the token in the last attention.

    `S_i = f - f_{-i}`, where in `f_{-i}` token `i` is neither key nor value of the last attention, whose result for a
    row is `o_{-i} = (o - a_i v_i) / (1 - a_i)` then, in each head. Positive where the token speaks for the target.
    Residual paths and queries are kept, and so is what earlier layers brought from the token into others. Where a row
    has nothing left to attend to, the attention gives it 0. In half precision what follows the tokens is computed in
    float32; an effect below the rounding of the score is 0.

    Nothing is approximated. Where the output reads a few rows of the attention, as a class token's, all tokens together
    cost about as much as one more layer. Elsewhere, as with average pooling, the layers behind the tokens run once for
    each token; `path` says which.

    Args:
        forward_func: A model, or any function that returns its output: a tensor, tuple, dictionary or ModelOutput.
            The model runs in evaluation mode and is restored afterwards.
        layer: The module whose output is the tokens, or its name: (batch, tokens, channels) or a feature map
            (batch, channels, height, width), in front of an attention. None: they are what the last attention reads.
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
        >>> from captum_ext import TokenAblation
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> TokenAblation(model).attribute(torch.randn(2, 3, 224, 224), target=[7, 3]).shape
        torch.Size([2, 1, 14, 14])
    """

    _general_way: ClassVar[str] = FROM_TOKENS
    _reads: ClassVar[str] = "an effect"

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
            return_tokens: Return the effects of all tokens, prefix tokens first, for images too.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            For images (batch, 1, height, width), one effect a patch; for sequences, or with `return_tokens`,
            (batch, tokens). Signed, in the unit of the score explained, in float32 or wider. A tuple holding it if
            `inputs` is a tuple, as Captum's metrics expect.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if a target is missing, of the wrong length or out of range, if inputs or scores are not
                finite, if no patch has an effect, if the keys of the attention belong to no single tokens, or if
                samples share a prediction.
        """
        request = Request(inputs, [target], additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        answer: Tensors = self._attribute_one(request, _Effects())
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
        """Explain several targets of each sample at the price of one.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            targets: A list of targets, each as for `attribute`.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the effects of all tokens, prefix tokens first, for images too.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            (batch, targets, height, width); for sequences, or with `return_tokens`, (batch, targets, tokens).

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: as for `attribute`.
        """
        request = Request(inputs, targets, additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        answer: Tensors = self._attribute_many(request, _Effects())
        return answer


class _Effects:
    """The formula."""

    def by_autograd(self, run: TokenPass, scores: Sequence[Score]) -> Tensor:
        return effects(ReplayedGame(run), reader(scores))

    def in_closed_form(self, last: LastAttention, scores: Sequence[Score]) -> Tensor:
        return effects(RowGame(last), reader(scores))
