"""Token Shapley: how the tokens of the last attention share what they add to a score together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from adapters.checks import integer
from adapters.recording import LastAttention, NotInClosedFormError, ReplayedGame, RowGame, TokenGame, TokenPass

from ._checks import OnError, as_tuple
from ._generators import check_generator, generator_on
from ._grids import grid_for
from ._players import players_of
from ._shapley import MOST_PLAYERS, Shares, Worth, exact_shares, sampled_shares
from ._targets import Score, Target
from ._token_attribution import FROM_TOKENS, Request, Tensors, TokenAttribution
from ._token_scores import reader


class TokenShapley(TokenAttribution):
    """Shapley values of the tokens in the last attention: each one's fair share of what they add to a score together.

    `phi_i = sum_{C without i} |C|! (n - |C| - 1)! / n! (v(C + i) - v(C))`, where `v(C)` is the score when of the n
    players only those in `C` take part in the last attention, as in TokenAblation. Prefix tokens of images always take
    part. The values sum to `v(all) - v(none)`, exactly, estimated ones too.

    Source: Shapley, A value for n-person games, 1953; the sampling is that of Castro et al., Polynomial calculation of
    the Shapley value based on sampling, 2009, with each order read from both ends.
    Differs from TokenAblation: of two patches that say the same, each has an effect of about 0, as the other one stays;
    they share a Shapley value.

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
        >>> from captum_ext import TokenShapley
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> images, rows = torch.randn(1, 3, 224, 224), torch.arange(14).view(14, 1) // 4
        >>> TokenShapley(model).attribute(images, 7, players=rows.expand(14, 14), n_samples=None).shape
        torch.Size([1, 1, 14, 14])
        >>> heat, errors = TokenShapley(model).attribute(images, 7, n_samples=4, return_errors=True)
        >>> heat.shape == errors.shape
        True
    """

    _general_way: ClassVar[str] = FROM_TOKENS
    _reads: ClassVar[str] = "an effect"

    @overload
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        players: Any = None,
        n_samples: int | None = 50,
        generator: torch.Generator | None = None,
        return_errors: Literal[False] = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors: ...

    @overload
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        players: Any = None,
        n_samples: int | None = 50,
        generator: torch.Generator | None = None,
        *,
        return_errors: Literal[True],
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> tuple[Tensors, Tensors]: ...

    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        players: Any = None,
        n_samples: int | None = 50,
        generator: torch.Generator | None = None,
        return_errors: bool = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors | tuple[Tensors, Tensors]:
        """Explain one target for each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: What to explain, as in Captum: a class for all samples, a list or 1-D tensor with one for each, a
                tuple of indices for outputs of more dimensions, None for outputs of one value; a function of one
                sample's output that returns a number, or a list with one for each sample; or a ConceptTarget.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the values of all tokens, prefix tokens first, for images too.
            players: Which patches play together: labels (height, width) of the grid of patches, or (tokens,) of a
                sequence; those of one label are one player, negative ones always take part. None: each for itself.
            n_samples: In how many random orders the players join, an even number, as each is also read from its end.
                None: all coalitions are evaluated, for at most 16 players; so they are where that is less work.
            generator: Source of the orders, on the device of the tokens. None: a fresh one, seeded by
                `torch.initial_seed()`: `torch.manual_seed` governs it, and the global random state is left alone.
            return_errors: Also return the standard errors of the values; zeros where they are exact.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            For images (batch, 1, height, width), each patch with its player's value; for sequences, or with
            `return_tokens`, (batch, tokens), 0 for tokens that always take part. Signed, in the unit of the score
            explained, in float32 or wider. A tuple holding it if `inputs` is a tuple, as Captum's metrics expect. With
            `return_errors` a pair, the second being their standard errors.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: as for TokenAblation, or if an argument is out of range.
        """
        request = Request(inputs, [target], additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        formula = _Shares(inputs, players, n_samples, generator)
        answer: Tensors = self._attribute_one(request, formula)
        return (answer, formula.errors_like(answer, request)) if return_errors else answer

    @overload
    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        players: Any = None,
        n_samples: int | None = 50,
        generator: torch.Generator | None = None,
        return_errors: Literal[False] = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors: ...

    @overload
    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        players: Any = None,
        n_samples: int | None = 50,
        generator: torch.Generator | None = None,
        *,
        return_errors: Literal[True],
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> tuple[Tensors, Tensors]: ...

    def attribute_targets(
        self,
        inputs: Tensors,
        targets: Sequence[Target] | Tensor,
        additional_forward_args: Any = None,
        return_tokens: bool = False,
        players: Any = None,
        n_samples: int | None = 50,
        generator: torch.Generator | None = None,
        return_errors: bool = False,
        attribute_to_layer_input: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors | tuple[Tensors, Tensors]:
        """Explain several targets of each sample from the same coalitions.

        Args:
            inputs: As for `attribute`.
            targets: A list of targets, each as for `attribute`.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: As for `attribute`, like the arguments that follow.
            players: Which patches play together.
            n_samples: In how many random orders the players join.
            generator: Source of the orders.
            return_errors: Also return the standard errors of the values.
            attribute_to_layer_input: Take the input of the given `layer` as the tokens, not its output.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            (batch, targets, height, width); for sequences, or with `return_tokens`, (batch, targets, tokens). With
            `return_errors` a pair of these.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: as for `attribute`.
        """
        request = Request(inputs, targets, additional_forward_args, attribute_to_layer_input, return_tokens, on_error)
        formula = _Shares(inputs, players, n_samples, generator)
        answer: Tensors = self._attribute_many(request, formula)
        return (answer, formula.errors_like(answer, request)) if return_errors else answer


@dataclass
class _Shares:
    """The formula with its arguments; after it has run, the standard errors (targets, batch, tokens)."""

    inputs: Any
    players: Any
    n_samples: int | None
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        check_generator(self.generator)
        if self.n_samples is not None and (integer("n_samples", self.n_samples) < 4 or self.n_samples % 2):
            raise ValueError(
                "Expected `n_samples` to be an even number of orders, at least 4, as they are read from both ends; "
                f"got {self.n_samples}. None evaluates all coalitions, for at most {MOST_PLAYERS} players."
            )

    def by_autograd(self, run: TokenPass, scores: Sequence[Score]) -> Tensor:
        return self._values(ReplayedGame(run), scores)

    def in_closed_form(self, last: LastAttention, scores: Sequence[Score]) -> Tensor:
        before = None if self.generator is None else self.generator.get_state()
        try:
            return self._values(RowGame(last), scores)
        except NotInClosedFormError:
            if self.generator is not None and before is not None:
                self.generator.set_state(before)  # the orders will be drawn again
            raise

    def _values(self, game: TokenGame, scores: Sequence[Score]) -> Tensor:
        run, read = game.run, reader(scores)
        self.grid = grid_for(run, as_tuple(self.inputs)[0], required=False)
        players = players_of(self.players, self.grid, run.count, run.tokens.device)

        def worth(coalitions: Tensor) -> Tensor:
            return game.values(players.tokens_in(coalitions), read)

        shares = self._shares(worth, players.number, run.tokens)
        self.errors = players.on_tokens(shares.errors)
        return players.on_tokens(shares.values)

    def _shares(self, worth: Worth, players: int, tokens: Tensor) -> Shares:
        few = players <= MOST_PLAYERS
        if self.n_samples is None and not few:
            raise ValueError(
                f"All coalitions are evaluated of at most {MOST_PLAYERS} players, got {players}. Give `n_samples`, or "
                "larger `players`."
            )
        if self.n_samples is None or (few and 2**players <= self.n_samples * (players - 1) + 2):
            return exact_shares(worth, players, tokens.device)
        return sampled_shares(worth, players, self.n_samples, generator_on(tokens, self.generator))

    def errors_like(self, answer: Any, request: Request) -> Any:
        """The standard errors, arranged as the values."""
        values = answer[0] if isinstance(answer, tuple) else answer
        errors = self.errors.transpose(0, 1)
        if self.grid is not None and not request.return_tokens:
            errors = self.grid.arranged(errors)
        errors = errors.reshape(values.shape).masked_fill(values.isnan(), torch.nan)
        return (errors,) if isinstance(answer, tuple) else errors
