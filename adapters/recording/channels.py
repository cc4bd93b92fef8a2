"""Which axis of the tokens holds their channels."""

from .batch_layout import BatchLayout
from .continuation import Continuation
from .operation_names import ELEMENTWISE
from .operations import Operation
from .recorder import Recorder

_LAST = frozenset(["linear", "addmm", "layer_norm", "rms_norm", "embedding"])
_SECOND = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "batch_norm",
        "group_norm",
        "instance_norm",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_max_pool2d",
        "interpolate",
        "pixel_shuffle",
    ]
)


def channel_axis(recorder: Recorder, found: Continuation, layout: BatchLayout, *, at_layer: bool) -> int:
    """The axis, told by the layers that read the tokens, or else by what made them.

    Args:
        recorder: The recording.
        found: How the pass continues from the tokens.
        layout: How samples lie in them.
        at_layer: Are they the output or input of a layer that was given?
    """
    axes = found.tokens.dim()
    axis = _told_axis(recorder, found) if axes >= 3 else None
    if axis is None:
        axis = 1 if axes == 4 and at_layer else axes - 1
    return axis if axes < 3 else layout.axis_in_batch(axis, axes)


def _told_axis(recorder: Recorder, found: Continuation) -> int | None:
    shape = found.tokens.shape
    alike = {found.slot}
    for operation in found.operations:
        read = alike.intersection(operation.inputs)
        if read and (told := _told_by(operation, len(shape))) is not None:
            return told
        if read and operation.name in ELEMENTWISE:
            alike.update(slot for slot in operation.outputs if recorder.shapes[slot] == shape)
    slot = found.slot
    while recorder.writers[slot]:
        operation = recorder.writers[slot][0]
        if (told := _told_by(operation, len(shape))) is not None:
            return told
        followed = [one for one in operation.inputs if recorder.follows[one] and recorder.shapes[one] == shape]
        if not followed:
            break
        slot = followed[0]
    return None


def _told_by(operation: Operation, axes: int) -> int | None:
    """The axis of the channels in what an operation reads, and in what a layer makes."""
    if operation.name in _LAST:
        return axes - 1
    return 1 if operation.name in _SECOND else None
