"""What speaks for and against trusting a map, in words and in numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ._randomised import STAGES
from ._trust_measures import measured

Verdict = Literal["passes", "doubtful", "fails"]


class Limit(NamedTuple):
    """From where on a number speaks against a map.

    Attributes:
        number: Which of Trust's.
        above: Does it speak against the map from the limit on, or below it?
        value: The limit.
        reason: In words, with the number.
    """

    number: str
    above: bool
    value: float
    reason: str

    def broken(self, value: float, chance: float) -> bool:
        """Does a value speak against the map? A correlation with another map does if chance does not explain it."""
        if not self.above:
            return value < self.value
        return value >= (max(self.value, chance) if self.number in STAGES else self.value)


LIMITS = (
    Limit("all", True, 0.5, "It hardly changes with random weights (correlation {:.2f}): it explains no model."),
    Limit(
        "head",
        True,
        0.9,
        "It hardly changes with a random last layer (correlation {:.2f}): it does not depend on what is asked.",
    ),
    Limit("agreement", False, 0.3, "It ranks tokens unlike their exact effects (correlation {:.2f})."),
    Limit("stability", False, 0.9, "Other seeds give another map (correlation {:.2f}): take more samples."),
    Limit("steps", False, 0.9, "Twice the steps or samples give another map (correlation {:.2f}): take more."),
    Limit("outlier_relevance", True, 0.5, "{:.2f} of its relevance is on tokens of outlying norm."),
    Limit("prefix_relevance", True, 0.5, "{:.2f} of its relevance is on tokens that are no patches."),
    Limit("completeness", True, 0.1, "Its sum misses what it explains by {:.2f} of the relevance: take more steps."),
)
FAILURES = (LIMITS[0], Limit("agreement", False, 0.0, ""), Limit("stability", False, 0.3, ""))
"""What makes a map fail: it is of no model, opposed to the exact effects, or of its seed alone."""


@dataclass(frozen=True)
class Trust:
    """What `check` found of each map of a batch; each number is a tensor (batch,), or None where it has no meaning.

    Attributes:
        agreement: Spearman's correlation with the exact effects of TokenAblation at the same attention.
        stability: Spearman's correlation between repeated maps with other seeds, the mean over pairs; 1 if seeds do
            not matter.
        steps: Spearman's correlation with the map of twice the `n_steps`, or `nt_samples`, or `n_samples`.
        head: Spearman's correlation with the map of the model with a random last layer, its absolute value.
        half: The same with the upper half of its layers random.
        all: The same with all of them random.
        outlier_tokens: Share of the tokens whose norm on the residual path is above three times the median.
        outlier_relevance: Share of the sum of absolute scores on these.
        prefix_relevance: Share of the sum of absolute scores on tokens that are no patches.
        completeness: The absolute convergence delta in parts of the sum of absolute scores.
        notes: What could not be measured, and why.
        places: How many places the correlations compare. In fewer than 17 unrelated maps can have correlations above
            0.5: one with a map of random weights then speaks against a map from 1.96 / sqrt(places - 1) on.
    """

    agreement: Tensor | None
    stability: Tensor
    steps: Tensor | None
    head: Tensor | None
    half: Tensor | None
    all: Tensor | None
    outlier_tokens: Tensor | None
    outlier_relevance: Tensor | None
    prefix_relevance: Tensor | None
    completeness: Tensor | None
    notes: tuple[str, ...] = ()
    places: int | None = None

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each map: "fails" if it explains nothing, "doubtful" if anything else speaks against it."""
        found: list[Verdict] = []
        for sample, reasons in enumerate(self.reasons):
            fails = any(self._broken(limit, sample) for limit in FAILURES)
            found.append("fails" if fails else "doubtful" if reasons else "passes")
        return found

    @property
    def reasons(self) -> list[list[str]]:
        """What speaks against each map, in words."""
        return [
            [limit.reason.format(self._value(limit, sample)) for limit in LIMITS if self._broken(limit, sample)]
            for sample in range(len(self.stability))
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as lists and words, for JSON."""
        numbers = {name: None if x is None else x.tolist() for name, x in self._numbers().items()}
        return {"verdicts": self.verdicts, "reasons": self.reasons, **numbers, "notes": list(self.notes)}

    def __str__(self) -> str:
        """A few lines for each map."""
        lines = []
        for sample, (verdict, reasons) in enumerate(zip(self.verdicts, self.reasons, strict=True)):
            known = {name: x for name, x in self._numbers().items() if x is not None}
            numbers = ", ".join(f"{name.replace('_', ' ')} {float(x[sample]):.2f}" for name, x in known.items())
            lines += [f"map {sample}: {verdict} ({numbers})", *(f"  - {reason}" for reason in reasons)]
        return "\n".join([*lines, *(f"not measured: {note}" for note in self.notes)])

    def _numbers(self) -> Mapping[str, Tensor | None]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("notes", "places")}

    def _broken(self, limit: Limit, sample: int) -> bool:
        chance = 0.0 if self.places is None else 1.96 / math.sqrt(max(self.places - 1, 1))
        return self._numbers()[limit.number] is not None and limit.broken(self._value(limit, sample), chance)

    def _value(self, limit: Limit, sample: int) -> float:
        return float(getattr(self, limit.number)[sample])


def check(
    explainer: Any,
    inputs: Tensor | tuple[Tensor, ...],
    target: Any = None,
    additional_forward_args: Any = None,
    *,
    repeats: int = 3,
    **options: Any,
) -> Trust:
    """Can these maps be trusted?

    Explains the inputs again: by the exact effects of tokens, with other seeds and twice the steps, and with a copy of
    the model whose weights become random from the head down (the cascading randomisation of Adebayo et al. 2018,
    "Sanity checks for saliency maps", arXiv:1810.03292, at three stages; each tensor of weights is replaced by normal
    numbers of its own mean and standard deviation, drawn from a fixed seed). Outlier tokens are those of Darcet et al.
    2023, "Vision transformers need registers", arXiv:2309.16588, here with a norm above three times the median. A map
    that passes may still be wrong: the exact effects are those of the last block.

    Args:
        explainer: An attribution with Captum's interface, of captum_ext or Captum itself.
        inputs: As for its `attribute`.
        target: As for its `attribute`.
        additional_forward_args: As for its `attribute`.
        repeats: How many maps are compared for stability.
        **options: Further arguments of its `attribute`.

    Returns:
        Numbers, verdicts and reasons for each map. The model and the random state are left as they were.

    Raises:
        TypeError: if `explainer` has no `attribute`, or `repeats` is no integer.
        ValueError: if `repeats` is below 2, and whatever `attribute` raises.

    Example:
        >>> import timm, torch
        >>> from captum_ext import CDAM, check
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> trust = check(CDAM(model), torch.randn(1, 3, 224, 224), target=7)
        >>> trust.verdicts[0] in ("passes", "doubtful", "fails"), trust.stability.tolist()
        (True, [1.0])
    """
    return Trust(**measured(explainer, inputs, target, additional_forward_args, repeats, options))
