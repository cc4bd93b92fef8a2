"""What MHEX does for each kind of prediction: classes of images and texts, masks, classes of graphs and of nodes."""

from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..checks import integer
from ..models.outputs import OutputChoice
from .graph_anatomy import graph_anatomy
from .mask_anatomy import mask_anatomy
from .mhex_block import MHEXBlock
from .residual import Residual, ResidualAnatomy
from .residual_anatomy import residual_anatomy
from .scaled_shortcut import ScaledShortcut

Task = Literal["classification", "segmentation", "graph", "node"]


def anatomy_of(model: nn.Module, task: Task, output: OutputChoice, *, residual: bool, example: Any) -> ResidualAnatomy:
    """Where a network joins branches, as each task looks for it.

    Raises:
        TypeError: if it is not a model.
        ValueError: if there is no such task, there are no such places, or a setting is not the task's.
    """
    if task not in get_args(Task):
        raise ValueError(f"Expected `task` to be one of {get_args(Task)}, got {task!r}.")
    if task in ("graph", "node"):
        return graph_anatomy(model, residual=residual, together=task == "graph", example=example, output=output)
    if residual or example is not None:
        name = "residual" if residual else "example"
        raise ValueError(f"Expected `{name}` for task='graph' or 'node' only, got it for task={task!r}: leave it out.")
    return mask_anatomy(model, output) if task == "segmentation" else residual_anatomy(model, output)


def checked_classes(task: Task, given: int | None, found: int) -> int:
    """How many classes the heads tell apart; `found` are the network's own.

    Raises:
        ValueError: if there are too few.
    """
    classes = found if given is None else given
    if type(classes) is not int or classes < 1:
        raise ValueError(f"Expected `num_classes` to be at least 1, got {given!r}.")
    if task == "segmentation" and classes < 2:
        raise ValueError(
            f"Expected `num_classes` of at least 2 for masks, as a pixel is of one class or another; got {classes}. "
            "For one object and its background pass num_classes=2, the background being class 0."
        )
    return classes


def block_of(residual: Residual, classes: int, axes: int, kernel_size: int) -> MHEXBlock:
    """What is learned at a place; `axes` of the maps that its gate is convolved with, 0 for vectors.

    Raises:
        TypeError: if the kernel's size is no integer.
        ValueError: if it is even or not positive, or given for vectors.
    """
    size = integer("kernel_size", kernel_size)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"Expected an odd `kernel_size` of at least 1, so that maps keep their size; got {size}.")
    if size > 1 and not axes:
        raise ValueError(f"Expected `kernel_size` for task='segmentation' only, got {size}: leave it out.")
    shortcut = ScaledShortcut(residual.entering, residual.channels) if residual.added else None
    reads = residual.channels + residual.skip
    return MHEXBlock(residual.channels, classes, reads=reads, axes=axes, kernel=size, shortcut=shortcut)


def check_labels(size: tuple[int, ...], labels: Tensor) -> None:
    """See whether masks (batch, ...) are of the images' size.

    Raises:
        ValueError: if they are of another.
    """
    if tuple(labels.shape[1:]) != size:
        raise ValueError(f"Expected masks (batch, ...) of the images' size {size}, got shape {tuple(labels.shape)}.")
