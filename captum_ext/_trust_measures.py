"""The numbers by which a map is judged."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.checks import integer
from adapters.maps_on_grid import on_grid, spearman
from adapters.recording import BY_QUERIES, Grid, HookPoint, NoTokensError, TokenPass, stream_norms

from ._attention_attribution import AttentionAttribution
from ._checks import Failures, checked_inputs, further_arguments
from ._located import question_of
from ._randomised import STAGES, check_weights, randomised
from ._token_attribution import TokenAttribution
from .token_ablation import TokenAblation

_OUTLIER = 3.0  # times the median norm
_OURS = (TokenAttribution, AttentionAttribution)
_AT_INPUT = "attribute_to_layer_input"
_COUNTS = ("n_steps", "nt_samples", "n_samples")


@dataclass(frozen=True)
class _Asked:
    """What is explained, by what.

    Attributes:
        explainer: The attribution.
        inputs: Its inputs.
        arguments: Its target and further arguments of the model.
        options: Further arguments of `attribute`.
    """

    explainer: Any
    inputs: Any
    arguments: tuple[Any, Any]
    options: Mapping[str, Any]

    def takes(self, name: str) -> bool:
        """Has `attribute` this argument?"""
        return name in inspect.signature(self.explainer.attribute).parameters

    def scores(self, explainer: Any = None, **options: Any) -> Any:
        """What `attribute` returns, of all tokens where it can."""
        explainer = self.explainer if explainer is None else explainer
        named = {"target": self.arguments[0], "additional_forward_args": self.arguments[1]}
        tokens = {"return_tokens": True} if self.takes("return_tokens") else {}
        return explainer.attribute(self.inputs, **named, **tokens, **{**self.options, **options})


@dataclass(frozen=True)
class _Places:
    """Where the tokens lie.

    Attributes:
        grid: On what grid; None for words, and where there are no tokens.
        count: How many tokens there are; 0 without any.
        norms: Their norms on the residual path, (batch, tokens), if seen.
    """

    grid: Grid | None
    count: int
    norms: Tensor | None

    def compared(self, scores: Tensor) -> Tensor:
        """(batch, places): scores of tokens on their places, maps of pixels averaged over them, others as they are."""
        if self.grid is None:
            return scores.flatten(1).double()
        if scores.dim() == 2 and scores.shape[1] == self.count:
            return self.grid.arranged(scores).flatten(1).double()
        if scores.dim() == 2 and scores.shape[1] == math.prod(self.grid.sizes):  # the patches alone, one by one
            return scores.double()
        return on_grid(scores, self.grid.sizes).flatten(1)


def measured(
    explainer: Any, inputs: Any, target: Any, additional: Any, repeats: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a Trust."""
    if not callable(getattr(explainer, "attribute", None)) or isinstance(explainer, type):
        raise TypeError(f"Expected an attribution with a method `attribute`, as CDAM(model), got {explainer!r}.")
    if integer("repeats", repeats) < 2:
        raise ValueError(f"Expected `repeats` of at least 2, to be compared, got {repeats}.")
    asked = _Asked(explainer, inputs, (_settled(explainer, inputs, target, additional), additional), options)
    notes: list[str] = []
    with _seeded():
        first = _plain(asked, asked.scores())
        places = _places(asked, notes)
        compared = places.compared(first)

        def like(again: Tensor) -> Tensor:
            return spearman(compared, places.compared(again))

        found = {
            "agreement": _agreement(asked, places, like, notes),
            "stability": _stability(asked, first, places, repeats),
            "steps": _steps(asked, like),
            **_randomisation(asked, like, notes),
            **_shares(first, places),
            "completeness": _completeness(asked),
        }
    return found | {"notes": tuple(notes), "places": compared.shape[1]}


def _settled(explainer: Any, inputs: Any, target: Any, additional: Any) -> Any:
    """The target, with what this model predicts or finds in a box: a random model would choose something else."""
    if not isinstance(explainer, _OURS):
        return target
    forward, given = explainer.forward_func, checked_inputs(inputs)
    arguments = (*given, *further_arguments(forward, additional))
    return question_of([target], forward, arguments, explainer.output, Failures("raise")).targets[0]


def _plain(asked: _Asked, scores: Any) -> Tensor:
    """(batch, tokens), or maps (batch, ...) without channels: of pixels or words with several, their sum."""
    scores = scores[0] if isinstance(scores, tuple) else scores
    given = asked.inputs[0] if isinstance(asked.inputs, tuple) else asked.inputs
    found: Tensor = scores.detach()
    of_tokens = found.dim() == 3 and not (given.is_floating_point() and given.dim() == 3)
    return found.sum(-1) if of_tokens else found.sum(1) if found.dim() > 2 else found


def _places(asked: _Asked, notes: list[str]) -> _Places:
    """From one more pass."""
    given = checked_inputs(asked.inputs)
    forward = asked.explainer.forward_func
    layer = getattr(asked.explainer, "layer", None) if isinstance(asked.explainer, _OURS) else None
    norms: dict[int, Tensor | None] = {}

    def note(recorder: Any, call: Any) -> None:
        norms[call.ordinal] = stream_norms(recorder, call)

    chosen = getattr(asked.explainer, "attention", None)
    try:
        run = TokenPass(
            forward,
            (*given, *further_arguments(forward, asked.arguments[1])),
            followed=len(given),
            point=None if layer is None else HookPoint(layer, bool(asked.options.get(_AT_INPUT))),
            attention=BY_QUERIES if chosen is None else chosen,
            output=_output(asked),
            on_attention=note,
        )
    except NoTokensError as error:
        notes.append(f"effects and norms of tokens: {error}")
        return _Places(None, 0, None)
    last = run.continuation.attention
    own = None if last is None else norms.get(last.ordinal)
    count = run.count
    return _Places(run.grid(), count, own if own is not None and own.shape == (run.batch, count) else None)


def _output(asked: _Asked) -> Any:
    return getattr(asked.explainer, "output", None) if isinstance(asked.explainer, _OURS) else None


def _agreement(asked: _Asked, places: _Places, like: Callable[[Tensor], Tensor], notes: list[str]) -> Tensor | None:
    """With exact effects, at the same tokens."""
    if not places.count:
        return None
    ours = isinstance(asked.explainer, _OURS)
    where = {name: getattr(asked.explainer, name, None) for name in ("layer", "attention")} if ours else {}
    ablation = TokenAblation(asked.explainer.forward_func, **where, output=_output(asked))
    try:
        at_input = {name: value for name, value in asked.options.items() if name == _AT_INPUT}
        found = ablation.attribute(asked.inputs, *asked.arguments, return_tokens=True, **at_input)
    except ValueError as error:
        notes.append(f"agreement: {error}")
        return None
    return like(found[0] if isinstance(found, tuple) else found)


def _stability(asked: _Asked, first: Tensor, places: _Places, repeats: int) -> Tensor:
    """Between maps with other seeds."""
    maps = [first]
    for seed in range(1, repeats):
        _seed(seed)
        maps.append(_plain(asked, asked.scores()))
        if torch.equal(maps[-1], first):
            return torch.ones(len(first), dtype=torch.float64)  # seeds do not matter
    pairs = itertools.combinations([places.compared(one) for one in maps], 2)
    return torch.stack([spearman(a, b) for a, b in pairs]).mean(0)


def _steps(asked: _Asked, like: Callable[[Tensor], Tensor]) -> Tensor | None:
    """With twice the steps or samples."""
    parameters = inspect.signature(asked.explainer.attribute).parameters
    name = next((one for one in _COUNTS if one in parameters), None)
    if name is None:
        return None
    count = asked.options.get(name, parameters[name].default)
    return like(_plain(asked, asked.scores(**{name: 2 * count}))) if isinstance(count, int) else None


def _randomisation(asked: _Asked, like: Callable[[Tensor], Tensor], notes: list[str]) -> dict[str, Tensor | None]:
    """With weights that are random from the head down."""
    found: dict[str, Tensor | None] = dict.fromkeys(STAGES)
    try:
        for stage, copy in randomised(asked.explainer):
            if stage == STAGES[0]:
                given = checked_inputs(asked.inputs)
                check_weights(copy, (*given, *further_arguments(copy.forward_func, asked.arguments[1])))
            _seed(0)
            found[stage] = like(_plain(asked, asked.scores(copy))).abs()
    except ValueError as error:
        notes.append(f"randomised weights: {error}")
    return found


def _shares(scores: Tensor, places: _Places) -> dict[str, Tensor | None]:
    """Of relevance on tokens that are outliers, or no patches."""
    shares: dict[str, Tensor | None] = dict.fromkeys(["outlier_tokens", "outlier_relevance", "prefix_relevance"])
    if scores.dim() != 2 or scores.shape[1] != places.count:
        return shares
    sizes = scores.abs().double()
    total = sizes.sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    patches = torch.ones(places.count, dtype=torch.bool, device=scores.device)
    if places.grid is not None:
        patches = torch.zeros_like(patches).index_fill_(0, places.grid.places.to(scores.device).flatten(), 1)
        shares["prefix_relevance"] = sizes[:, ~patches].sum(1) / total
    if places.norms is not None:
        norms = places.norms.to(scores.device)
        outlying = (norms > _OUTLIER * norms[:, patches].median(1, keepdim=True).values) & patches
        shares["outlier_tokens"] = outlying.double().mean(1)
        shares["outlier_relevance"] = (sizes * outlying).sum(1) / total
    return shares


def _completeness(asked: _Asked) -> Tensor | None:
    """The convergence delta, where there is one."""
    has = getattr(asked.explainer, "has_convergence_delta", None)
    if has is None or not has() or not asked.takes("return_convergence_delta"):
        return None
    scores, delta = asked.scores(return_convergence_delta=True)
    scores = scores[0] if isinstance(scores, tuple) else scores
    deltas: Tensor = delta.detach().double().abs().reshape(len(scores), -1).mean(1)
    total: Tensor = scores.detach().double().abs().flatten(1).sum(1)
    return deltas / total.clamp(min=torch.finfo(torch.float64).tiny)


@contextmanager
def _seeded() -> Iterator[None]:
    """Begin with a fixed seed, and leave the random state as it was."""
    theirs = np.random.get_state()  # that of Captum's and others' code
    with torch.random.fork_rng():
        try:
            _seed(0)
            yield
        finally:
            np.random.set_state(theirs)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
