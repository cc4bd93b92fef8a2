"""Token faithfulness: does a map rank the patches as their exact effects in the last attention do?"""

from typing import ClassVar

import torch
from torch import Tensor

from adapters.maps_on_grid import on_grid, spearman
from adapters.recording import NoTokensError, Prediction, TokenPass, effects, game_of

from ._maps import is_constant
from ._metric import TensorMetric
from ._outputs import Model, running
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets


def token_faithfulness(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    softmax: bool = False,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """Spearman's correlation of a map, averaged over each patch, with the exact effects of the patches' tokens.

        E_i = f(x) - f(x, token i left out of the last attention),    score = Spearman(mean of m over patch i, E_i)

    The effects are those of `captum_ext.TokenAblation`: no image is perturbed, and they cost about one forward pass
    where the output reads a class token. They are of the last block alone; what earlier layers brought from a patch
    into other tokens stays. Higher is better; from -1 to 1. Undefined, and then 0: maps or effects that are the same
    everywhere.

    Args:
        model: A transformer that returns logits (batch, classes), or any output for functions.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the classes; or a function of one sample's output that returns a number, or a list of them.
        a: (batch, [1 or channels,] height, width), channels are summed. Maps are average-pooled to the grid of tokens;
            those that Captum interpolated from this grid are read back exactly.
        softmax: Effects on the probability, not the logit.
        activation: What makes probabilities of outputs.
        batch_size: How many samples run through the model at once.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if shapes do not match, something is not finite, or the model has no tokens on a grid.

    Example:
        >>> import timm, torch
        >>> from captum.attr import LayerAttribution
        >>> from captum_ext import TokenAblation
        >>> from quantus_metrics import token_faithfulness
        >>> model, images = timm.create_model("vit_tiny_patch16_224").eval(), torch.randn(1, 3, 224, 224)
        >>> maps = LayerAttribution.interpolate(TokenAblation(model).attribute(images, 7), (224, 224))
        >>> round(token_faithfulness(model, images, torch.tensor([7]), maps).item(), 3)
        1.0
    """
    metric = TokenFaithfulness(activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size, softmax=softmax)


class TokenFaithfulness(TensorMetric):
    """Token faithfulness: Spearman's correlation of a map with the exact effects of the patches' tokens.

    The effect of a token is the logit less the logit with the token left out of the last attention, as by
    `captum_ext.TokenAblation`; maps are average-pooled to the grid of tokens. Higher is better; from -1 to 1.
    Undefined, and then 0: maps or effects that are the same everywhere. Models without tokens on a grid are a
    ValueError, and `xai-compare --metrics all` leaves this one out.

    Args:
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.TokenFaithfulness().name
        'Token Faithfulness'
    """

    name = "Token Faithfulness"
    reads_tokens: ClassVar[bool] = True

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `token_faithfulness`."""
        found = predictions.shared(
            ("token effects", predictions.softmax), x, y, lambda missing: _effects(predictions, x[missing], y[missing])
        )
        maps = on_grid(a, tuple(found.shape[1:]))
        return Scores(spearman(maps, found), is_constant(maps) | is_constant(found))


def _effects(predictions: Predictions, x: Tensor, y: Tensor) -> Tensor:
    """Those of the tokens on their grid, (batch, *sizes)."""
    parts = zip(x.split(predictions.batch_size), y.split(predictions.batch_size), strict=True)
    return torch.cat([_of_batch(predictions, *one) for one in parts])


def _of_batch(predictions: Predictions, x: Tensor, y: Tensor) -> Tensor:
    probability = predictions.softmax

    def read(prediction: Prediction) -> Tensor:
        outputs = prediction.outputs
        return predictions.asked(outputs, y.repeat(len(outputs) // len(y)), probability=probability)

    with running(predictions.model) as run:
        one = _watched(lambda images: predictions.outputs(run, images, probability=probability), x)
        grid = one.grid()
        if grid is None:
            raise ValueError(
                "Token Faithfulness compares maps with the effects of patches, but how the tokens of this model, of "
                f"shape {tuple(one.tokens.shape)}, lie on inputs of shape {tuple(x.shape)} cannot be told. Leave this "
                "metric out for this model."
            )
        return grid.arranged(effects(game_of(one), read))


def _watched(forward: Model, x: Tensor) -> TokenPass:
    try:
        return TokenPass(forward, (x,))
    except NoTokensError as error:
        raise ValueError(
            "Token Faithfulness compares maps with the effects of tokens, and this model has none: no attention was "
            "seen in its forward pass. Leave this metric out for this model."
        ) from error
