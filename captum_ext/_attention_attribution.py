"""What the maps of attention weights share: the run, the row that is read, the shape of the result."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor
from torch.autograd.graph import GradientEdge

from adapters.models import OutputChoice, root_module, uncompiled
from adapters.prompts import answered_prompts, logits_of_answers
from adapters.recording import (
    AttentionMatrices,
    Prediction,
    mean_weights,
    rows_of_score,
    weights_and_gradients,
)

from ._advice import check_model, warn_of_others
from ._answer_attribution import AnswerAttribution, Asked
from ._answers import place
from ._checks import Failures, OnError, checked_inputs, further_arguments
from ._features import full_precision
from ._grids import grid_for
from ._located import Question, question_of
from ._targets import Score, Target, latent_of, scores_of
from ._token_attribution import Tensors


class AttentionAttribution(AnswerAttribution, Attribution):  # type: ignore[misc] # captum is untyped
    """Base of the maps of attention weights: a formula of matrices, one a layer, and of the row that is read.

    Args:
        forward_func: The model, a method of it or a partial of one.
        output: Which tensor of what the model returns is explained.
    """

    _of_gradients: ClassVar[bool]  # are the matrices `positive_relevance` of a target, and not the mean weights?
    _last_only: ClassVar[bool]  # is the last layer enough?

    def __init__(self, forward_func: Callable[..., Any], *, output: OutputChoice = None) -> None:
        check_model(forward_func)
        root_module(uncompiled(forward_func))  # one that is compiled in place is refused
        super().__init__(forward_func)
        self.output = output

    @staticmethod
    @abstractmethod
    def _formula(found: AttentionMatrices) -> Tensor:
        """The scores of all tokens, (batch, tokens)."""

    @log_usage()  # type: ignore[untyped-decorator] # captum is untyped
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        return_tokens: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors:
        """Explain one target for each sample.

        Args:
            inputs: (batch, channels, height, width) images or (batch, tokens) token ids, as the model takes them; a
                tuple for models of several inputs.
            target: What to explain, as in Captum: a class for all samples, a list or 1-D tensor with one for each, a
                tuple of indices for outputs of more dimensions, None for outputs of one value; a function of one
                sample's output that returns a number, or a list with one for each sample; or a ConceptTarget.
                AttentionMap and AttentionRollout accept any: attention does not depend on it. But where an image has
                several predictions, as of queries, the row is read that the target names.
            additional_forward_args: Further arguments of the model, such as an attention mask.
            return_tokens: Return the scores of all tokens, prefix tokens first, for images too.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            For images (batch, 1, height, width), one score a patch; for sequences, or with `return_tokens`,
            (batch, tokens). At least 0, in float32 or wider. A tuple holding it if `inputs` is a tuple.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: if inputs are not finite, or if an attention that is read has no matrix of weights for each
                sample and head (windows, pooled keys); the message says which. Where the target matters: if it is
                missing, of the wrong length or out of range, or if no attention has a finite gradient.
        """
        failures = Failures(on_error)
        given: tuple[Tensor, ...] = checked_inputs(inputs, failures)
        arguments = (*given, *further_arguments(self.forward_func, additional_forward_args))
        with torch.inference_mode(False), torch.enable_grad():
            question = question_of([target], self.forward_func, arguments, self.output, failures)
            score = _score_of_image(question, given[0])
            options: dict[str, Any] = {"output": question.output, "attention": question.attention}
            options["last_only"] = self._last_only
            if self._of_gradients:
                found = self._relevances(given, question.targets, arguments, failures, options)
            else:
                found = mean_weights(self.forward_func, arguments, len(given), **options)
            warn_of_others(found.run)
            if score is not None:
                score.check(found.run.prediction)
                found = replace(found, row=rows_of_score(found.run, found.matrices[-1].shape[1], score))
        with torch.no_grad(), full_precision(found.row):
            tokens = self._formula(found)
        failures.add(
            ~torch.isfinite(tokens).all(-1),
            "The model's attention or its gradient is NaN or infinite for sample(s) {}, although the inputs are finite."
            " Are the weights finite? In float16 the model may overflow: use bfloat16 or float32.",
        )
        tokens = failures.as_nan(tokens, stacklevel=4)
        grid = None if return_tokens else grid_for(found.run, given[0])
        answer = tokens if grid is None else grid.arranged(tokens)
        answer = answer[:, None] if grid is not None and len(grid.sizes) == 2 else answer
        return (answer,) if isinstance(inputs, tuple) else answer

    def _of_answers(self, asked: Asked, answers: list[list[int]], options: Mapping[str, Any]) -> Tensor:
        """A pass for each token, of which the model reads what is in front of it: maps are read from its last row."""
        found = []
        for number in range(max(map(len, answers))):
            prompts = answered_prompts(asked.model, asked.inputs, [answer[: number + 1] for answer in answers])
            explainer = copy.copy(self)
            explainer.forward_func, explainer.output = logits_of_answers(asked.model, prompts, rows=1), None
            target = [place(0, answer[-1], asked.score) for answer in prompts.answers]
            found.append(prompts.of_prompt(explainer.attribute(prompts.ids, target, return_tokens=True, **options)))
        return torch.stack(found, 1)

    def _relevances(
        self,
        given: tuple[Tensor, ...],
        targets: Sequence[Target],
        arguments: tuple[Any, ...],
        failures: Failures,
        options: dict[str, Any],
    ) -> AttentionMatrices:
        (score,) = scores_of(targets, len(given[0]), given[0].device)
        return weights_and_gradients(
            self.forward_func,
            arguments,
            len(given),
            lambda prediction, edges: _gradients(score, prediction, edges, failures, len(given[0])),
            positive_relevance,
            latent=latent_of([score]),
            **options,
        )


def _score_of_image(question: Question, images: Tensor) -> Score | None:
    """The score of a target that is one of several predictions for an image; None for one of a class."""
    (target,) = question.targets
    first = target[0] if isinstance(target, list) and target else target
    if not question.located and not (images.dim() > 3 and isinstance(first, tuple) and len(first) > 1):
        return None
    return scores_of([target], len(images), images.device)[0]


def positive_relevance(weights: Tensor, gradient: Tensor) -> Tensor:
    """`(gradient * weights)+`, in the gradient's memory."""
    return gradient.mul_(weights).clamp_(min=0)


def _gradients(
    score: Score, prediction: Prediction, edges: Sequence[GradientEdge | None], failures: Failures, batch: int
) -> list[Tensor | None]:
    """Those of the score, at some places of the graph."""
    score.check(prediction)
    with torch.enable_grad():
        values = score(prediction)
    failures.check_independent(len(values), batch)
    places = [edge for edge in edges if edge is not None]
    if not values.requires_grad:
        places = []
    found = iter(torch.autograd.grad(values.sum(), places, allow_unused=True) if places else ())
    gradients = [next(found, None) if edge is not None else None for edge in edges]
    some = torch.zeros(batch, dtype=torch.bool, device=values.device)
    for gradient in gradients:
        if gradient is not None:
            some |= (gradient != 0).reshape(batch, -1).any(1)
    if len(values) < batch and bool(some.any()):
        return gradients  # of several inputs to one prediction, some may not matter
    failures.add(
        ~some,
        "No attention has a gradient for sample(s) {}, and the map would be blank. Usual causes: the head's weights for"
        " this target are zero (an untrained head), or gradients are cut (torch.no_grad or detach in the model's "
        "forward, or reentrant gradient checkpointing).",
    )
    return gradients
