"""Box sensitivity: do the sums of a map in random boxes correlate with the change that blurring them makes?"""

import functools
import itertools
from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from adapters.checks import positive_int

from ._blur import blurred
from ._metric import Options, TensorMetric
from ._outputs import Model
from ._predictions import Predictions
from ._probabilities import Activation
from ._scores import Scores
from ._targets import Targets


def box_sensitivity(
    model: Model,
    x: Tensor,
    y: Targets,
    a: Tensor,
    *,
    box_sizes: Sequence[int] | None = None,
    num_boxes: int = 100,
    blur_sigma: float | None = None,
    seed: int = 0,
    normalise_area: bool = True,
    softmax: bool = False,
    activation: Activation = "softmax",
    batch_size: int = 64,
) -> Tensor:
    """The correlation of a map's sums inside random boxes with the logit's change when the box is blurred.

        D_b = f(x) - f(x with box b blurred),    S_b = sum of m inside b,    f_box(s) = Pearson(S, D)

    over square boxes of `s` pixels, each anywhere inside the image with equal probability; the score is the area under
    `f_box` over the sizes. Source: CDAM, section 3.4, where it is not divided by the range of sizes. Higher is better;
    from -1 to 1. The boxes are the same for all images and maps, so scores do not depend on the batch. For a size at
    which all `S` or all `D` are equal (but for rounding) the correlation is 0.

    Args:
        model: Maps inputs to logits.
        x: (batch, channels, height, width); signals (batch, channels, length); or volumes, with a depth before height.
        y: (batch,), the class that is evaluated; or a function of one sample's output, or one for each sample.
        a: (batch, [1 or channels,] and the inputs' other axes), the raw maps, with signs; channels are summed.
        box_sizes: In pixels, ascending. None: 1/14, 2/14 ... 8/14 of the shorter side, 16 to 128 for 224.
        num_boxes: Boxes of each size, at least 2.
        blur_sigma: The blur's standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.
        seed: Random seed of the boxes.
        normalise_area: Divide the area by the range of sizes.
        softmax: Measure the probability instead of the logit.
        activation: What makes probabilities of the outputs: "softmax", "sigmoid", "identity" or a function of them.
        batch_size: Batch size for perturbed images.

    Returns:
        (batch,) scores.

    Raises:
        TypeError: if an input is not a tensor, or a size not an integer.
        ValueError: if shapes do not match, something is not finite, or a box is larger than the image.

    Example:
        >>> import torch
        >>> from quantus_metrics import box_sensitivity
        >>> weights = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> model = lambda x: torch.stack([(x * weights).sum((1, 2, 3)), x.sum((1, 2, 3))], 1)
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
        >>> bool(box_sensitivity(model, image, [0], weights[None] * (image - image.mean())) > 0.9)
        True
    """
    metric = BoxSensitivity(box_sizes, num_boxes, blur_sigma, seed, normalise_area, activation=activation)
    return metric.of_tensors(model, x, y, a, batch_size=batch_size, softmax=softmax)


class BoxSensitivity(TensorMetric):
    """Box sensitivity: the area under `f_box(s)`, the Pearson correlation over random boxes of `s` pixels.

    Correlated are the map's sum inside the box and the change of the logit when the box is blurred. Source: CDAM,
    section 3.4. Higher is better; from -1 to 1, without `normalise_area` times the range of sizes. Undefined, and a
    correlation of 0: sizes at which all sums or all changes are equal. The curve `f_box` is in `curves`, and plotted by
    `plot`.

    The boxes do not depend on the map: on one instance, the explanations of the same images share their predictions.

    Args:
        box_sizes: In pixels, ascending. None: 1/14, 2/14 ... 8/14 of the shorter side, 16 to 128 for 224.
        num_boxes: Boxes of each size, at least 2.
        blur_sigma: The blur's standard deviation in pixels. None: 14 at 224 pixels, in proportion to the shorter side.
        seed: Random seed of the boxes.
        normalise_area: Divide the area by the range of sizes.
        **options: As for every Quantus metric.

    Example:
        >>> import quantus, quantus_metrics
        >>> quantus.BoxSensitivity(box_sizes=[16, 32, 64], seed=1).num_boxes
        100
    """

    name = "Box Sensitivity"

    def __init__(
        self,
        box_sizes: Sequence[int] | None = None,
        num_boxes: int = 100,
        blur_sigma: float | None = None,
        seed: int = 0,
        normalise_area: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.box_sizes = None if box_sizes is None else [positive_int("box_sizes", size) for size in box_sizes]
        self.num_boxes = positive_int("num_boxes", num_boxes)
        if self.num_boxes < 2:
            raise ValueError("Expected `num_boxes` of at least 2, as one has no correlation; got 1.")
        if self.box_sizes is not None and (not self.box_sizes or sorted(set(self.box_sizes)) != self.box_sizes):
            raise ValueError(f"Expected `box_sizes` in ascending order, without repetition, got {box_sizes}.")
        self.blur_sigma = blur_sigma
        self.seed = seed
        self.normalise_area = normalise_area

    def scores(self, predictions: Predictions, x: Tensor, y: Tensor, a: Tensor) -> Scores:
        """See `box_sensitivity`."""
        sides = tuple(x.shape[2:])
        sizes = self._sizes(sides)
        corners = [_corners(size, sides, self.num_boxes, self.seed) for size in sizes]
        boxes = torch.cat([torch.stack([c, c + s], 1) for s, c in zip(sizes, corners, strict=True)]).to(x.device)
        changes, tiny = self._changes(predictions, x, y, boxes, tuple(sizes))
        sums, rounding = _sums(a, boxes)
        by_size = len(sizes), -1
        curve, undefined = _pearson(
            sums.unflatten(1, by_size), changes.double().unflatten(1, by_size), rounding, tiny.double()
        )
        if len(sizes) == 1:
            area = curve[:, 0]
        else:
            area = torch.trapezoid(curve, torch.tensor(sizes, dtype=curve.dtype, device=curve.device))
            area = area / (sizes[-1] - sizes[0]) if self.normalise_area else area
        axis = "box size in pixels", sizes
        return Scores(area.to(changes.dtype), undefined.any(1), {"correlation": curve}, axis)

    def passes(self, shape: Sequence[int]) -> int:
        """The number of boxes of all sizes."""
        return self.num_boxes * len(self._sizes(shape[1:]))

    def _sizes(self, sides: Sequence[int]) -> list[int]:
        shorter = min(sides)
        sizes = self.box_sizes or sorted({max(1, round(k * shorter / 14)) for k in range(1, 9)})
        if sizes[-1] > shorter:
            raise ValueError(
                f"A box of {sizes[-1]} pixels is larger than the images of {' x '.join(map(str, sides))} pixels."
            )
        return sizes

    def _changes(
        self, predictions: Predictions, x: Tensor, y: Tensor, boxes: Tensor, sizes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """The change (batch, boxes) of the answer by each box, and (batch,) what is less than rounding."""
        probability = predictions.softmax
        along = _along(boxes, x.shape[2:])

        def compute(missing: Tensor) -> Tensor:
            images = x[missing]
            smooth = blurred(images, self.blur_sigma)

            def make(indices: Tensor) -> Tensor:
                image, box = indices // len(boxes), indices % len(boxes)
                inside = functools.reduce(torch.logical_and, (one[box] for one in along))
                if len(images) == 1:
                    return torch.where(inside, smooth, images)  # the same without a copy
                return torch.where(inside, smooth[image], images[image])

            classes = y[missing].repeat_interleave(len(boxes))
            return predictions.perturbed(make, classes, probability=probability).view(-1, len(boxes))

        settings = sizes, self.num_boxes, self.blur_sigma, self.seed, probability
        after = predictions.shared(settings, x, y, compute)
        before = predictions.of(x, y, probability=probability)
        scale = torch.maximum(after.abs().amax(1), before.abs())
        return before[:, None] - after, 8 * torch.finfo(after.dtype).eps * scale


def _corners(size: int, sides: Sequence[int], count: int, seed: int) -> Tensor:
    """(count, axes): the first (upper left) corners of boxes, sampled for each size independently."""
    draw = np.random.default_rng([seed, size])
    return torch.from_numpy(draw.integers(0, [side - size + 1 for side in sides], (count, len(sides))))


def _along(boxes: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """For each axis which places are inside the boxes (boxes, 2, axes): (boxes, 1, ..., side, ...)."""
    found = []
    for axis, side in enumerate(sides):
        places = torch.arange(side, device=boxes.device)
        low, high = boxes[:, :, axis, None].unbind(1)
        shape = len(boxes), 1, *(side if other == axis else 1 for other in range(len(sides)))
        found.append(((places >= low) & (places < high)).view(shape))
    return found


def _sums(maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The maps' sums (batch, boxes) inside the boxes, all from one table of sums, and (batch,) what is rounding."""
    flat = maps.double().flatten(1)
    middle = (flat.amin(1) + flat.amax(1)) / 2  # the same for all boxes of a size, which no correlation sees
    largest = flat.abs().amax(1)  # nor a factor, and squares of any map are numbers then
    by_map = len(maps), *[1] * (maps.dim() - 1)
    centred = (maps.double() - middle.view(by_map)) / torch.where(largest > 0, largest, 1).view(by_map)
    axes = boxes.shape[2]
    table = torch.nn.functional.pad(centred, (1, 0) * axes)
    for axis in range(1, axes + 1):
        table = table.cumsum(axis)
    sums = torch.zeros(len(maps), len(boxes), dtype=table.dtype, device=table.device)
    for ends in itertools.product((0, 1), repeat=axes):  # of each axis the lower or upper one
        corner = [boxes[:, end, axis] for axis, end in enumerate(ends)]
        sums += (-1.0) ** (axes - sum(ends)) * table.movedim(0, -1)[tuple(corner)].T
    return sums, 1e-13 * centred.abs().flatten(1).sum(1)


def _pearson(s: Tensor, d: Tensor, tiny_s: Tensor, tiny_d: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, sizes): correlations of (batch, sizes, boxes) values, 0 where all are equal, and where that is so."""
    s, d = s - s.mean(2, keepdim=True), d - d.mean(2, keepdim=True)
    undefined = (s.abs().amax(2) <= tiny_s[:, None]) | (d.abs().amax(2) <= tiny_d[:, None])
    norm = torch.where(undefined, 1, s.norm(dim=2) * d.norm(dim=2))
    return torch.where(undefined, 0, (s * d).sum(2) / norm).clamp(-1, 1), undefined
