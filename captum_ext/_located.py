"""Targets of detectors and of models that segment: which output they read, and which query a box means."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adapters.models import OutputChoice, evaluation_mode, output_tensor
from adapters.recording import BY_QUERIES

from ._advice import warn_of_features
from ._checks import Failures
from ._detections import Size, boxes_of, class_logits, pixel_logits
from .box_target import BoxTarget
from .contrast_target import ContrastTarget
from .detection_target import DetectionTarget
from .mask_target import MaskTarget

PREDICTED = "predicted"


class Question(NamedTuple):
    """What a call asks, with each box replaced by the query that is meant.

    Attributes:
        targets: The targets.
        output: Which tensor of what the model returns they read.
        attention: Which attention is explained; None: the last.
    """

    targets: Any
    output: OutputChoice
    attention: str | None = None

    @property
    def located(self) -> bool:
        """Are they targets of a detector or of a model that segments?"""
        return self.attention is not None


def question_of(
    targets: Any,
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    output: OutputChoice,
    failures: Failures,
) -> Question:
    """What is asked of a model.

    Args:
        targets: A list of targets, or a tensor.
        forward: The model, or any function that returns its output.
        arguments: Its arguments, the images first.
        output: Which tensor the user chose.
        failures: Images in which no box is found are noted there.

    Raises:
        ValueError: if there are no images, targets of both kinds, as many as there are no images, no box is found, or
            the images are padded and what boxes are relative to is not said.
    """
    parts = list(_parts(targets)) if isinstance(targets, list | tuple) else []
    warn_of_features(forward, parts)
    if any(isinstance(one, str) for one in parts):
        targets = _without_words(targets, parts, forward, arguments, output)
    queries = [one for one in parts if isinstance(one, DetectionTarget | BoxTarget)]
    masks = [one for one in parts if isinstance(one, MaskTarget)]
    if not queries and not masks:
        return Question(targets, output)
    if queries and masks:
        raise ValueError("Targets of queries and of masks read different outputs of the model; take a call for each.")
    images = arguments[0]
    if images.dim() < 4 or not images.is_floating_point():
        raise ValueError(
            f"Expected images (batch, channels, height, width) as the first input of a detector, got shape "
            f"{tuple(images.shape)} of {images.dtype}. Bind what comes before them: "
            "`functools.partial(model, input_ids)`."
        )
    size = (images.shape[-2], images.shape[-1])
    for mask in masks:
        if tuple(mask.region.shape) != size:
            raise ValueError(f"Expected the region of a MaskTarget to be {size}, as the images are; got {mask}.")
    if any(isinstance(one, BoxTarget) for one in queries):
        found = _outputs(forward, arguments)
        class_logits(found, output)
        _check_sizes(queries, forward, arguments)
        targets = [_found(one, found, _Images(len(images), size, failures)) for one in targets]
    return Question(targets, partial(class_logits if queries else pixel_logits, choice=output), BY_QUERIES)


def _parts(targets: Sequence[Any]) -> Iterator[Any]:
    """All targets in lists and contrasts."""
    for one in targets:
        if isinstance(one, list):
            yield from _parts(one)
        elif isinstance(one, ContrastTarget):
            yield from _parts([one.a, one.b])
        else:
            yield one


def _check_sizes(queries: list[Any], forward: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Of padded images it is not seen whether boxes are relative to the padded size, as some were trained, or not."""
    mask = _named(forward, arguments).get("pixel_mask")
    if not isinstance(mask, Tensor) or bool(mask.all()):
        return
    unsaid = next((one for one in queries if isinstance(one, BoxTarget) and one.size is None), None)
    if unsaid is not None:
        raise ValueError(
            "Some pixels are hidden by `pixel_mask`: are the model's boxes relative to the padded images, or to what "
            "is not padding, as those of DETR's published weights are? Say it for each image, by a list of "
            f"targets: BoxTarget(label, box, size=(height, width)). Got {unsaid}, pixels {tuple(mask.shape[-2:])}, and "
            f"without padding {[tuple(_extent(one)) for one in mask]}."
        )


def _named(forward: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments that are given or bound, by name."""
    bound: dict[str, Any] = {}
    while isinstance(forward, partial):
        arguments, bound = (*forward.args, *arguments), forward.keywords | bound
        forward = forward.func
    called = forward.forward if isinstance(forward, nn.Module) else forward
    return inspect.signature(called).bind(*arguments, **bound).arguments


def _extent(mask: Tensor) -> list[int]:
    """Height and width of what a mask shows."""
    shown = mask.bool().nonzero()
    return [] if not len(shown) else (shown.amax(0) + 1).tolist()


def _without_words(
    targets: Sequence[Any],
    parts: list[Any],
    forward: Callable[..., Any],
    arguments: tuple[Any, ...],
    output: OutputChoice,
) -> list[Any]:
    """The targets with the classes that are predicted, from one more pass without gradients."""
    word = next((one for one in parts if isinstance(one, str) and one != PREDICTED), None)
    if word is not None:
        raise TypeError(
            f"Expected `target` to be the number of a class, or {PREDICTED!r}, got {word!r}. Of a model of "
            f"transformers it is `model.config.label2id[{word!r}]`."
        )
    found = output_tensor(_outputs(forward, arguments), output, arguments[0])
    if found.dim() != 2 or len(found) != len(arguments[0]):
        raise ValueError(
            f"{PREDICTED!r} means the class of the largest logit of (batch, classes), and this output has shape "
            f"{tuple(found.shape)}. Give the indices, such as (row, class)."
        )
    classes = found.argmax(1).tolist()

    def known(one: Any) -> Any:
        if isinstance(one, ContrastTarget):
            return ContrastTarget(known(one.a), known(one.b), probabilities=one.probabilities)
        return classes if isinstance(one, str) else one

    return [known(one) for one in targets]


def _outputs(forward: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What the model returns, which is given copies."""
    copies = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), arguments)
    with torch.no_grad(), evaluation_mode(forward):
        return forward(*copies)


class _Images(NamedTuple):
    """How many images there are, their size, and where those are noted in which a box is not found."""

    batch: int
    size: Size
    failures: Failures


def _found(target: Any, output: Any, images: _Images) -> Any:
    """A target with the queries that its boxes mean, in each image."""
    if isinstance(target, ContrastTarget):
        a, b = (_found(one, output, images) for one in (target.a, target.b))
        return ContrastTarget(a, b, probabilities=target.probabilities)
    targets = target if isinstance(target, list) else [target] * images.batch
    if not any(isinstance(one, BoxTarget) for one in targets):
        return target
    if len(targets) != images.batch:
        raise ValueError(f"Expected one `target` per sample, {images.batch} for this batch, got {len(targets)}.")
    return [_of_sample(one, output, sample, images) for sample, one in enumerate(targets)]


def _of_sample(target: Any, output: Any, sample: int, images: _Images) -> Any:
    if not isinstance(target, BoxTarget):
        return target
    boxes = boxes_of(output, target.size or images.size)[sample]
    try:
        return target.query_in(boxes)
    except ValueError as error:
        images.failures.add(torch.arange(images.batch) == sample, f"In sample(s) {{}}: {error}")
        return DetectionTarget(0, target.label)  # whose map is not shown
