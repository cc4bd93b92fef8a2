"""What a detector or a segmentation model returned: class logits of its queries, boxes, logits of pixels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters.models import OutputChoice, output_tensor

_CLASS_LOGITS = ("class_queries_logits", "pred_logits", "decoder_class_logits", "logits")
_BOXES = ("pred_boxes", "decoder_coord_logits")
_TORCHVISION = frozenset(["boxes", "labels", "scores"])
Size = tuple[int, int]


def class_logits(output: Any, choice: OutputChoice = None) -> Tensor:
    """The logits (batch, queries, classes) of a detector.

    Args:
        output: What the model returned.
        choice: Which tensor of it, if not one of the usual names.

    Raises:
        ValueError: if it returned none.
    """
    if isinstance(output, list) and output and is_detections(output[0]):
        raise ValueError(
            "This detector returns a list of detections, as torchvision's, which are CNNs without attention. Give "
            "the target to a method of pytorch-grad-cam: `GradCAM(model, [layer])(images, targets=[target])`."
        )
    name = _name(output, _CLASS_LOGITS) if choice is None else choice
    found = output_tensor(output, name)
    if found.dim() != 3:
        raise ValueError(
            f"Expected the model to return logits (batch, queries, classes) of a detector, got shape "
            f"{tuple(found.shape)}. Choose them by `output`; of a model that segments explain a MaskTarget, of one "
            "that classifies a class."
        )
    return found


def pixel_logits(output: Any, choice: OutputChoice = None) -> Tensor:
    """The logits (batch, labels, height, width) of a model that segments, or the semantic scores of its queries' masks.

    Args:
        output: What the model returned.
        choice: Which tensor of it.

    Raises:
        ValueError: if it returned none.
    """
    if choice is None and _name(output, ("class_queries_logits",)) and _name(output, ("masks_queries_logits",)):
        return _semantic_scores(output["class_queries_logits"], output["masks_queries_logits"])
    found = output_tensor(output, choice)
    if found.dim() != 4:
        masks = _name(output, ("pred_masks", "masks_queries_logits"))
        raise ValueError(
            f"Expected the model to return logits (batch, labels, height, width) of pixels, got shape "
            f"{tuple(found.shape)}. "
            + (
                f"Choose the masks of its queries by `output={masks!r}`; the label is then the query's number."
                if masks
                else "Choose them by `output`; of a detector explain a DetectionTarget or a BoxTarget."
            )
        )
    return found


def _semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """`sum_q p_q(label) m_q(pixel)`, probabilities of classes but the last, which is none, times those of masks."""
    probabilities = classes.log_softmax(-1).exp()[..., :-1]  # a softmax would read as the weights of an attention
    return torch.einsum("bqc,bqhw->bchw", probabilities, masks.sigmoid())


def boxes_of(output: Any, size: Size | None) -> Tensor:
    """The boxes (..., queries, 4) of a detector, left, top, right and bottom in pixels.

    Args:
        output: What the model returned; of one image, or of a batch.
        size: Height and width in pixels that relative boxes refer to.

    Raises:
        ValueError: if it returned none, or they are relative and `size` is None.
    """
    if is_detections(output):
        return output["boxes"].detach()  # type: ignore[no-any-return]
    name = _name(output, _BOXES)
    if name is None:
        raise ValueError(
            "Expected the model to return boxes, as `pred_boxes` (batch, queries, 4), to find the query of a BoxTarget."
            " Without them give the query's number: DetectionTarget(query, label)."
        )
    if size is None:
        raise ValueError(
            "The boxes of this model are relative to the image. Say its size in pixels: "
            "`BoxTarget(label, box, size=(height, width))`."
        )
    height, width = size
    center, extent = output[name].detach().double().split(2, -1)
    corners = torch.cat([center - extent / 2, center + extent / 2], -1)
    return corners * corners.new_tensor([width, height, width, height])


def overlaps(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of a box (4,) and others (boxes, 4)."""
    box = box.to(boxes)
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    intersection = sides.clamp(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return intersection / ((box[2:] - box[:2]).prod() + areas - intersection)


def is_detections(output: Any) -> bool:
    """Is this what torchvision's detectors return of one image?"""
    return isinstance(output, Mapping) and set(output) >= _TORCHVISION


def _name(output: Any, names: tuple[str, ...]) -> str | None:
    """Which of these names a dictionary or ModelOutput has."""
    return next((name for name in names if isinstance(output, Mapping) and output.get(name) is not None), None)
