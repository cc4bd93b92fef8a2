"""Where the stages of a convolutional network end, and where it averages the last one's features."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..models.outputs import OutputChoice
from .network_trace import NetworkTrace, run_once

_NO_MODULE = "No module returns it: have the network pass it through an nn.Identity, which is then the last stage."


@dataclass(frozen=True)
class Stage:
    """A module whose output is a feature map.

    Attributes:
        name: The module's.
        channels: How many.
        channels_last: Is the map (batch, height, width, channels)?
        changed: Do modules that follow change it in place?
    """

    name: str
    channels: int
    channels_last: bool
    changed: bool


@dataclass(frozen=True)
class CNNAnatomy:
    """The stages of a network and its pooling.

    Attributes:
        stages: In the order in which they run; the last one is what is averaged.
        pooling: The innermost module in whose call the average is taken; "" if that is the one that calls the stages.
        skip: How many other averages of maps are taken between the last stage and this one, in the call of `pooling`.
        classes: The number of logits.
        image: The empty image (1, channels, height, width), or signal or volume, on which the network ran.
    """

    stages: tuple[Stage, ...]
    pooling: str
    skip: int
    classes: int
    image: Tensor


def cnn_anatomy(model: nn.Module, names: Sequence[str] | None = None, output: OutputChoice = None) -> CNNAnatomy:
    """Find the stages of a network, or look at those that are given, by running it once on an empty image.

    Args:
        model: Maps images to logits, and averages its last feature map on the way.
        names: The stages' names. None: those of torchvision's and timm's ResNets and ConvNeXts, those in a timm model's
            `feature_info`, else the last module at each resolution.
        output: Which tensor of what the model returns are the logits, as for `output_tensor`.

    Raises:
        TypeError: if something is not of the right kind.
        ValueError: if there is nothing to find, or a stage is not one.
    """
    run = run_once(model, output)
    if names is None:
        known = _known(model)
        whole = bool(known) and all(run.is_map(one) for one in known)  # else some return several maps, as in HRNet
        chosen = _up_to_the_pooled(run, known if whole else run.last_of_each_size())
    else:
        chosen = list(names)
        _check(run, chosen)
    _check_last(run, chosen[-1])
    around = run.last.where[-1]
    if any(name == around or name.startswith(around + ".") for name in chosen):
        around = ""
    between = range(run.returned[chosen[-1]], run.last.time)
    skip = sum(one.time in between and around in ("", *one.where) for one in run.averages if one is not run.last)
    return CNNAnatomy(_stages(run, chosen), around, skip, run.logits.shape[-1], run.image)


def _stages(run: NetworkTrace, names: list[str]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    told = {name: run.channels_last(name) for name in names}
    wider = run.on_a_wider_image() if None in told.values() else None  # where a map is as wide as deep
    channels_last = run.last.pooling.channels_last
    for name in reversed(names):
        if told[name] is None and wider is not None:
            told[name] = wider.channels_last(name)
        known = told[name]
        channels_last = channels_last if known is None else known  # or as the stage that follows
        channels = run.outputs[name].shape[-1 if channels_last else 1]
        stages.insert(0, Stage(name, channels, channels_last, name in run.changed))
    return tuple(stages)


def _check(run: NetworkTrace, names: list[str]) -> None:
    if not names:
        raise ValueError("Expected at least one stage, got none.")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Expected the names of modules as stages, got {type(name)}.")
        _check_map(run, name)
        if names.count(name) > 1:
            raise ValueError(f"Expected different stages, got {name!r} {names.count(name)} times.")
        outer = [other for other in names if name.startswith(other + ".")]
        if outer:
            raise ValueError(f"Expected stages one after the other, but {name!r} lies inside {outer[0]!r}.")
    order = sorted(names, key=lambda name: run.returned[name])
    if order != names:
        raise ValueError(f"Expected stages in the order in which they run, {order}, got {names}.")


def _check_map(run: NetworkTrace, name: str) -> None:
    if name not in run.outputs:
        known = any(name == n for n, _ in run.model.named_modules())
        near = ", ".join(run.children("")[:12])
        raise ValueError(
            f"{type(run.model).__name__} has no stage {name!r}: "
            + ("this module does not run, or runs several times. " if known else "no module has this name. ")
            + f"Modules that return something are {near} and those inside them."
        )
    if not run.is_map(name):
        output = run.outputs[name]
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else str(type(output))
        raise ValueError(
            f"Stage {name!r} is not a feature map: expected an output (batch, channels, height, width) or with "
            f"channels last, got {got}."
        )


def _check_last(run: NetworkTrace, name: str) -> None:
    """Is a stage what is averaged, or what becomes it by a function, as a ReLU?"""
    features, output = run.last.pooling.features, run.outputs[name]
    between = range(run.returned[name] + 1, run.last.time + 1)
    later = [n for n in run.outputs if run.returned[n] in between and run.outputs[n] is not output and run.is_map(n)]
    as_it = [n for n in later if run.outputs[n].shape == features.shape]
    if output is features or (not run.pooled and output.shape == features.shape and not as_it):
        return
    right = [run.pooled] if run.pooled else as_it or _of_shape(run, features)
    raise ValueError(
        f"Expected the last stage to be the map that {type(run.model).__name__} averages, of shape "
        f"{tuple(features.shape)}; {name!r} returns shape {tuple(output.shape)}. "
        + (f"Pass {right[-1]!r} as the last one." if right else _NO_MODULE)
    )


def _of_shape(run: NetworkTrace, features: Tensor) -> list[str]:
    return [name for name in run.outputs if run.is_map(name) and run.outputs[name].shape == features.shape]


def _known(model: nn.Module) -> list[str]:
    """The names of the stages where a family's own are known."""
    library, name = type(model).__module__.split(".")[0], type(model).__name__
    if library in ("torchvision", "timm") and name == "ResNet":
        return ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    if library == "torchvision" and name == "ConvNeXt":
        return [f"features.{i}" for i in (0, 1, 3, 5, 7)]
    info = getattr(model, "feature_info", ())
    names = [entry["module"] for entry in getattr(info, "info", info)]
    return ["stem", *names] if library == "timm" and name == "ConvNeXt" else names


def _up_to_the_pooled(run: NetworkTrace, names: list[str]) -> list[str]:
    """Stages that end with the map that is averaged."""
    features = run.last.pooling.features
    ends = [i for i, name in enumerate(names) if run.outputs[name] is features] or [
        i for i, name in enumerate(names) if not run.pooled and run.outputs[name].shape == features.shape
    ]
    if ends:
        return names[: ends[-1] + 1]
    pooled = run.pooled
    if not pooled:
        right = _of_shape(run, features)
        raise ValueError(
            f"Cannot tell which module returns the map of shape {tuple(features.shape)} that "
            f"{type(run.model).__name__} averages. "
            + (f"Pass the names of its `stages`, the last one {right[-1]!r}." if right else _NO_MODULE)
        )
    before = run.returned[pooled]
    earlier = [name for name in names if run.returned[name] < before and not name.startswith(pooled + ".")]
    if earlier and run.size(earlier[-1]) == run.size(pooled):
        earlier.pop()  # as a convolution follows the last stage in front of the average
    return [*earlier, pooled]
