"""One label of the detection at a place as a target."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.checks import integer, number

from ._detections import Size, boxes_of, is_detections, overlaps
from .detection_target import DetectionTarget


class BoxTarget:
    """The logit of a label in the detection whose box overlaps most with a given one.

    `f = z[q, label]` with `q = argmax_q IoU(box_q, box)`, a DetectionTarget whose query is found in each image. The
    classes of captum_ext take the boxes from one more forward pass, without gradients; they are no part of `f`.

    It can also be called with the output of one image, as targets of pytorch-grad-cam are. Differs from its
    FasterRCNNBoxScoreTarget, which adds the IoU to the score, and its gradient to the map, and is 0 where nothing
    overlaps.

    Args:
        label: The number of the label.
        box: Left, top, right and bottom in pixels of the image tensor that is given to the model.
        iou: The least intersection over union, from 0 to 1.
        size: Height and width in pixels of what the model's boxes are relative to; None: the image tensor. For images
            that are padded by a model whose boxes refer to what is not padding.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the box is empty or `iou` no fraction; when it is explained, if no detection overlaps enough.

    Example:
        >>> import torch
        >>> from transformers import YolosConfig, YolosForObjectDetection
        >>> from captum_ext import CDAM, BoxTarget
        >>> sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = YolosForObjectDetection(YolosConfig(**sizes, image_size=[64, 64])).eval()
        >>> target = BoxTarget(label=1, box=(16, 16, 48, 48), iou=0.1)  # random weights
        >>> CDAM(model).attribute(torch.randn(2, 3, 64, 64), target).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self, label: int, box: Sequence[float] | Tensor, iou: float = 0.5, *, size: Size | None = None
    ) -> None:
        self.label = integer("label", label)
        if self.label < 0:
            raise ValueError(f"Expected `label` of at least 0, got {label}.")
        self.box = torch.as_tensor(box, dtype=torch.double).detach().cpu()
        if self.box.shape != (4,) or not bool(torch.isfinite(self.box).all() and (self.box[2:] > self.box[:2]).all()):
            raise ValueError(f"Expected `box` to be left, top, right > left and bottom > top in pixels, got {box}.")
        self.iou = number("iou", iou)
        if not 0 < self.iou <= 1:
            raise ValueError(f"Expected `iou` to be above 0 and at most 1, got {iou}.")
        if size is not None and (len(size) != 2 or not all(math.isfinite(side) and side > 0 for side in size)):
            raise ValueError(f"Expected `size` to be height and width in pixels, got {size}.")
        self.size = size

    def query_in(self, boxes: Tensor, among: Tensor | None = None) -> DetectionTarget:
        """The detection that is meant, in one image.

        Args:
            boxes: (queries, 4), in pixels of the image tensor.
            among: The numbers of those that count; None: all.

        Raises:
            ValueError: if none overlaps enough.
        """
        among = torch.arange(len(boxes), device=boxes.device) if among is None else among
        found = overlaps(self.box, boxes[among]).nan_to_num()
        best = None if not len(found) or found.max() < self.iou else int(found.argmax())
        if best is None:
            most = "there are none"
            if len(found):
                most = f"the most is {float(found.max()):.2f}, of {boxes[among[found.argmax()]].round().tolist()}"
            raise ValueError(
                f"No detection overlaps with {self} enough: of {len(found)} {most}. Boxes are left, top, right and "
                "bottom in pixels of the image tensor. Take another box or a lower `iou`, or name the query: "
                "DetectionTarget(query, label)."
            )
        return DetectionTarget(int(among[best]), self.label)

    def __call__(self, output: Any) -> Tensor:
        """The score in the output of one image.

        Args:
            output: A dictionary with `logits` and `pred_boxes`, as PerImage makes them, for which `size` must be given;
                or with the `boxes`, `labels` and `scores` of torchvision's detectors, of which only those of this label
                count.

        Returns:
            A number: a logit, or torchvision's score, from 0 to 1.

        Raises:
            ValueError: if no detection overlaps enough.
        """
        among = (output["labels"] == self.label).nonzero()[:, 0] if is_detections(output) else None
        return self.query_in(boxes_of(output, self.size), among)(output)

    def __repr__(self) -> str:
        size = "" if self.size is None else f", size={self.size}"
        return f"BoxTarget(label={self.label}, box={self.box.tolist()}, iou={self.iou}{size})"
