"""The last attention as a game of its tokens: what the model returns when some of them only take part in it."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .continuation import NotReplayableError
from .last_attention import LastAttention
from .operations import NotInClosedFormError, Replacement
from .prediction import DifferentOutputError, Prediction
from .projections import Projection
from .softmax_without import MASKED, replacements_without
from .token_pass import TokenPass
from .wide_types import WideTypes

Read = Callable[[Prediction], Tensor]
_ROOM = 13  # memory of a chunk in multiples of the tokens' own
_LITTLE = 2**22  # numbers that a chunk may always use


class TokenGame(ABC):
    """What a model returns when some tokens only take part in its last attention.

    A token that is left out is neither key nor value there: the weights of each row are normalised over the others.
    Where a row has nothing left to attend to, the attention gives it 0. Residual paths and queries stay as they were.

    Args:
        run: The pass.

    Attributes:
        run: The pass.
        everybody: (1, tokens), the coalition of all tokens.
    """

    def __init__(self, run: TokenPass) -> None:
        self.run = run
        self.everybody = torch.ones(1, run.count, dtype=torch.bool, device=run.tokens.device)

    @torch.no_grad()
    def values(self, coalitions: Tensor, read: Read) -> Tensor:
        """What coalitions are worth, (..., coalitions, batch), in float32 or wider.

        Args:
            coalitions: (coalitions, tokens), True where a token takes part, for all samples.
            read: From a prediction for several copies of the batch to numbers (..., copies * batch).
        """
        with torch.inference_mode(False):
            return torch.cat(
                [
                    read(self._prediction(some)).unflatten(-1, (len(some), -1))
                    for some in coalitions.split(self._at_once)
                ],
                -2,
            )

    @property
    @abstractmethod
    def _at_once(self) -> int:
        """How many coalitions are evaluated together."""

    @abstractmethod
    def _prediction(self, coalitions: Tensor) -> Prediction:
        """What the model returns for some coalitions, copy after copy of the batch."""

    def _check_samples(self) -> None:
        """See whether each sample has a prediction of its own.

        Raises:
            ValueError: if samples share one.
        """
        count = torch.atleast_1d(self.run.prediction.outputs).shape[0]
        if count != self.run.batch:
            raise ValueError(
                f"The model makes {count} prediction(s) of {self.run.batch} samples together, so that leaving out a "
                "token of each at once is not the effect of one. Take CDAM, or explain one sample at a time."
            )


class RowGame(TokenGame):
    """Of a model whose output reads a few rows of the attention: what follows is run for these alone.

    With products `s_i = scale q.k_i + mask_i` and values `v_i`, the attention gives a row of coalition `C`

        o_C = sum_{i in C} exp(s_i) v_i / sum_{i in C} exp(s_i),    which without token i is (o - a_i v_i) / (1 - a_i).

    Args:
        last: The attention, taken apart.

    Raises:
        NotInClosedFormError: if it does not give what the model returned.
        ValueError: if samples share a prediction, or depend on each other.
    """

    def __init__(self, last: LastAttention) -> None:
        super().__init__(last.run)
        self._check_samples()
        self._last = last
        with torch.inference_mode(False), torch.no_grad(), WideTypes():
            tokens = _wide(last.tokens)
            self._rows = last.own_rows(tokens)
            keys, self._values = _features(last.key, tokens), _features(last.value, tokens)
            products = last.scale * last.query(self._rows) @ keys.mT
            if last.mask is not None:
                mask = last.mask.to(products)
                products = products + mask.masked_fill(mask <= MASKED, -torch.inf)
            self._products = products
        self._check()

    @property
    def _at_once(self) -> int:
        batch, count, channels = self._last.tokens.shape
        row = 24 * channels + self._last.heads * (3 * count + 2 * self._values.shape[-1])
        numbers = self._last.query_rows * row + self.run.prediction.outputs[0].numel()
        return max(1, int(max(_ROOM * count * channels, _LITTLE // batch) // numbers))

    def _prediction(self, coalitions: Tensor) -> Prediction:
        with WideTypes():
            return self._predicted(self._attended(coalitions))

    def _attended(self, coalitions: Tensor) -> Tensor:
        """What the attention gives, (coalitions, batch, heads, rows, width)."""
        copies, rows = len(coalitions), self._products.shape[2]
        products = self._products[:, :, None].masked_fill(~coalitions[:, None], -torch.inf)
        nothing = (products == -torch.inf).all(-1, keepdim=True)
        weights = products.softmax(-1).masked_fill_(nothing, 0).flatten(2, 3)
        mixed: Tensor = (weights @ self._values).unflatten(2, (copies, rows))
        return mixed.movedim(2, 0)

    def _predicted(self, attended: Tensor) -> Prediction:
        copies = len(attended)
        return self._last.predict(attended.flatten(0, 1), self._rows.repeat(copies, 1, 1))

    def _check(self) -> None:
        """See whether all tokens give what the model returned, and no sample's output depends on another sample."""
        batch = self.run.batch
        with torch.no_grad(), torch.inference_mode(False), WideTypes():
            attended = self._attended(self.everybody)
            odd = (torch.arange(batch, device=attended.device) % 2 == 1).view(1, batch, 1, 1, 1)
            others = [attended.masked_fill(half, 0) for half in (odd, ~odd)] if batch > 1 else []
            outputs, latents = self._predicted(torch.cat([attended, *others]))
        own, *other = outputs.split(batch)
        try:
            self.run.check(Prediction(own, latents))
        except DifferentOutputError:
            raise NotInClosedFormError("taken apart, the model returns something else") from None
        if other:
            check_independent(own, torch.where(odd.view(-1, *[1] * (own.dim() - 1)), other[1], other[0]))


class ReplayedGame(TokenGame):
    """Of any model: what follows the tokens is run once for each coalition, with a softmax that leaves keys out.

    Args:
        run: The pass.

    Raises:
        ValueError: if keys do not belong to single tokens, or samples share a prediction or depend on each other.
        DifferentOutputError: if the model returns something else each time.
    """

    def __init__(self, run: TokenPass) -> None:
        super().__init__(run)
        self._check_samples()
        self._without = replacements_without(run)
        with torch.inference_mode(False):
            prediction = self._prediction(self.everybody)
            run.check(prediction)
            if run.batch > 1:
                self._check_independent(prediction.outputs)
        self._warn_of_rounding(prediction.outputs)

    @property
    def _at_once(self) -> int:
        return 1

    def _prediction(self, coalitions: Tensor) -> Prediction:
        (present,) = coalitions
        return self._predicted(self.run.tokens, self._without(present))

    def _predicted(self, tokens: Tensor, replacements: dict[int, Replacement]) -> Prediction:
        run = self.run
        with torch.no_grad():
            if run.reason is None:
                try:
                    with WideTypes():
                        return _replayed(run, tokens, replacements)
                except NotReplayableError as error:
                    run.reason = str(error)
            return run.rerun(tokens.detach(), replacements)

    def _check_independent(self, own: Tensor) -> None:
        run, nobody = self.run, self._without(self.everybody[0])
        odd = (torch.arange(run.batch, device=own.device) % 2 == 1).view(-1, *[1] * (run.tokens.dim() - 1))
        moved = [self._predicted(torch.where(half, -run.tokens, run.tokens), nobody).outputs for half in (odd, ~odd)]
        check_independent(own, torch.where(odd.view(-1, *[1] * (own.dim() - 1)), moved[1], moved[0]))

    def _warn_of_rounding(self, outputs: Tensor) -> None:
        if torch.finfo(outputs.dtype).bits < 32:
            warnings.warn(
                f"The whole model runs in {outputs.dtype} for each token ({self.run.reason}), so that effects are "
                f"rounded as its scores are, by up to {float(outputs.abs().max()) * torch.finfo(outputs.dtype).eps:.2g}"
                ". Pass `model.float()` for smaller ones.",
                stacklevel=2,
            )


def game_of(run: TokenPass) -> TokenGame:
    """The game of a model's last attention, by the faster way where the model allows it.

    Raises:
        ValueError: as the games.
    """
    try:
        return RowGame(LastAttention(run))
    except NotInClosedFormError:
        return ReplayedGame(run)


def effects(game: TokenGame, read: Read) -> Tensor:
    """What each token adds: the score less the score without that token, (..., batch, tokens).

    What is smaller than the rounding of the score is 0.

    Args:
        game: The game.
        read: From a prediction for several copies of the batch to scores (..., copies * batch).
    """
    count = game.run.count
    without = ~torch.eye(count, dtype=torch.bool, device=game.everybody.device)
    found = game.values(torch.cat([game.everybody, without]), read)
    whole, parts = found[..., :1, :], found[..., 1:, :]
    difference = whole - parts
    rounding = 4 * torch.finfo(difference.dtype).eps * whole.abs()
    return difference.masked_fill(difference.abs() <= rounding, 0).mT


def check_independent(own: Tensor, found: Tensor) -> None:
    """See whether samples' outputs are the same after the other samples of their batch were changed.

    Raises:
        ValueError: if they are not.
    """
    finite = torch.isfinite(own)
    largest = torch.where(finite, own.abs(), 0).max()
    if bool(((found - own).abs() > torch.finfo(own.dtype).eps ** 0.5 * largest)[finite].any()):
        raise ValueError(
            "The prediction for a sample depends on the other samples of its batch, so that leaving out a token of "
            "each at once is not the effect of one. Explain one sample at a time."
        )


def _replayed(run: TokenPass, tokens: Tensor, replacements: dict[int, Replacement]) -> Prediction:
    one = run.watched
    wanted = [slot for slot in (one.output_slot, one.latent_slot) if slot is not None]
    return run.prediction_of(run.continuation.run(run.layout.from_batch(tokens), wanted, replacements))


def _features(projection: Projection, tokens: Tensor) -> Tensor:
    """Keys or values (batch, heads, tokens, width) as they enter the attention."""
    features = projection.of(tokens)
    if projection.bias is not None:
        features = features + projection.bias.to(features)[:, None]
    return features if projection.turn is None else projection.turn(features)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
