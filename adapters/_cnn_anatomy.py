"""Where the stages of a convolutional network end, and where it averages the last one's features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._average_pooling import AveragePooling, WatchAverages
from ._borrow import evaluation_mode, watch_calls
from ._example_inputs import example_inputs
from ._outputs import bare_output

_OF_WHOLE_NETWORKS = 3  # sizes of feature maps; a block has at most two


@dataclass(frozen=True)
class Stage:
    """A module whose output is a feature map."""

    name: str
    channels: int
    channels_last: bool

    def size(self, features: Tensor) -> torch.Size:
        """Height and width of its features."""
        return features.shape[1:3] if self.channels_last else features.shape[2:]


@dataclass(frozen=True)
class CNNAnatomy:
    """The stages of a network, the module that averages the last one, and the number of its logits.

    `pooling` is the innermost module in whose call the average is taken; "" if that is the one that calls the stages.
    """

    stages: tuple[Stage, ...]
    pooling: str
    classes: int


@dataclass
class _Run:
    """What was seen while a network ran once."""

    model: nn.Module
    outputs: dict[str, Any]  # by name, in the order in which modules returned
    pooling: AveragePooling
    pooled_in: str  # the name of the innermost module that runs when the last average is taken
    logits: Tensor

    @property
    def pooled(self) -> str:
        """The outermost module inside the container of all stages that returned what is averaged; "" if none did."""
        named = [name for name, output in self.outputs.items() if output is self.pooling.features]
        small = [name for name in named if len(self.sizes_in(name)) < _OF_WHOLE_NETWORKS]
        return min(small, key=lambda name: name.count("."), default="")

    def size(self, name: str) -> tuple[int, int] | None:
        """Height and width of a module's output, if it is a map."""
        output = self.outputs.get(name)
        if not isinstance(output, Tensor) or output.dim() != 4:
            return None
        stage = self.stage(name)
        height, width = stage.size(output)
        return height, width

    def children(self, name: str) -> list[str]:
        """The modules directly inside one, in the order in which they returned."""
        prefix = name + "." if name else ""
        inside = [n for n in self.outputs if n.startswith(prefix) and n != name]
        return [n for n in inside if "." not in n[len(prefix) :]]

    def sizes_in(self, name: str) -> set[tuple[int, int]]:
        """The sizes of the maps that the modules directly inside one return."""
        return {size for child in self.children(name) if (size := self.size(child)) is not None}

    def stage(self, name: str) -> Stage:
        """A module as a stage.

        Raises:
            ValueError: if it did not run or did not return a map.
        """
        if name not in self.outputs:
            known = any(name == n for n, _ in self.model.named_modules())
            near = ", ".join(self.children("")[:12])
            raise ValueError(
                f"{type(self.model).__name__} has no stage {name!r}: "
                + ("this module does not run, or runs several times. " if known else "no module has this name. ")
                + f"Modules that return something are {near} and those inside them."
            )
        output = self.outputs[name]
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise ValueError(
                f"Stage {name!r} is not a feature map: expected an output (batch, channels, height, width) or with "
                f"channels last, got {_shape(output)}."
            )
        _, first, second, third = output.shape
        if (first == second) == (second == third):  # a map as wide as deep: as what is averaged
            return Stage(name, third if self.pooling.channels_last else first, self.pooling.channels_last)
        return Stage(name, third if first == second else first, first == second)


def cnn_anatomy(model: nn.Module, names: Sequence[str] | None = None) -> CNNAnatomy:
    """Find the stages of a network, or look at those that are given, by running it once on an empty image.

    Args:
        model: Maps images to logits, and averages its last feature map on the way.
        names: The stages' names. None: those of torchvision's and timm's ResNets and ConvNeXts, those in a timm model's
            `feature_info`, else the last module at each resolution.

    Raises:
        TypeError: if something is not of the right kind.
        ValueError: if there is nothing to find, or a stage is not one.
    """
    run = _run_once(model)
    if names is None:
        found = [name for name in _known(model) or _last_of_each_size(run) if run.size(name) is not None]
        chosen = _up_to_the_pooled(run, found)
    else:
        chosen = list(names)
        _check_order(run, chosen)
    stages = tuple(run.stage(name) for name in chosen)
    last = run.outputs[chosen[-1]]
    if last.shape != run.pooling.features.shape:
        pooled = f", that is {run.pooled!r}" if run.pooled else ""
        raise ValueError(
            f"Expected the last stage to be the map that {type(model).__name__} averages, of shape "
            f"{tuple(run.pooling.features.shape)}{pooled}; {chosen[-1]!r} returns {tuple(last.shape)}."
        )
    around = run.pooled_in
    if any(name == around or name.startswith(around + ".") for name in chosen):
        around = ""
    return CNNAnatomy(stages, around, run.logits.shape[-1])


def _check_order(run: _Run, names: list[str]) -> None:
    if not names:
        raise ValueError("Expected at least one stage, got none.")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Expected the names of modules as stages, got {type(name)}.")
        run.stage(name)
        if names.count(name) > 1:
            raise ValueError(f"Expected different stages, got {name!r} {names.count(name)} times.")
        outer = [other for other in names if name.startswith(other + ".")]
        if outer:
            raise ValueError(f"Expected stages one after the other, but {name!r} lies inside {outer[0]!r}.")
    order = sorted(names, key=list(run.outputs).index)
    if order != names:
        raise ValueError(f"Expected stages in the order in which they run, {order}, got {names}.")


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


def _last_of_each_size(run: _Run) -> list[str]:
    last = {run.size(name): name for name in _expanded(run, "")}
    order = list(run.outputs)
    return sorted(last.values(), key=order.index)


def _expanded(run: _Run, name: str) -> Iterator[str]:
    """The modules with maps inside one, those that hold a whole network taken apart."""
    for child in run.children(name):
        if len(run.sizes_in(child)) >= _OF_WHOLE_NETWORKS:
            yield from _expanded(run, child)
        elif run.size(child) is not None:
            yield child


def _up_to_the_pooled(run: _Run, names: list[str]) -> list[str]:
    """Stages that end with the map that is averaged."""
    order, features = list(run.outputs), run.pooling.features
    ends = [i for i, name in enumerate(names) if run.outputs[name] is features] or [
        i for i, name in enumerate(names) if not run.pooled and run.outputs[name].shape == features.shape
    ]
    if ends:
        return names[: ends[-1] + 1]
    pooled = run.pooled
    if not pooled:
        raise ValueError(
            f"Cannot tell which module returns the map of shape {tuple(features.shape)} that "
            f"{type(run.model).__name__} averages. Pass the names of its `stages`."
        )
    earlier = [name for name in names if order.index(name) < order.index(pooled) and not name.startswith(pooled + ".")]
    if earlier and run.size(earlier[-1]) == run.size(pooled):
        earlier.pop()  # as a convolution follows the last stage in front of the average
    return [*earlier, pooled]


def _run_once(model: nn.Module) -> _Run:
    failures = []
    for image in example_inputs(model):
        if isinstance(image, dict):
            raise ValueError(f"{type(model).__name__} reads texts: expected a convolutional network.")
        try:
            return _watched(model, image)
        except RuntimeError as error:
            failures.append(f"{tuple(image.shape)}: {str(error).splitlines()[0]}")
    raise ValueError(f"{type(model).__name__} could not be run on an image of {'; '.join(failures)}.")


def _watched(model: nn.Module, image: Tensor) -> _Run:
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[str, Any] = {}
    calls: list[str] = []
    running: list[str] = []
    poolings: list[tuple[AveragePooling, tuple[str, ...]]] = []

    def after(module: nn.Module, _: Any, output: Any) -> None:
        name = names.get(module)
        if name is not None:
            running.pop()
            calls.append(name)
            outputs[name] = output

    def before(module: nn.Module) -> None:
        if module in names:
            running.append(names[module])

    def see(pooling: AveragePooling) -> None:
        poolings.append((pooling, tuple(running)))

    with torch.no_grad(), evaluation_mode(), watch_calls(before, after), WatchAverages(see):
        logits = bare_output(model(image))
    maps = [(pooling, where[-1]) for pooling, where in poolings if not any(_is_map(outputs[name]) for name in where)]
    if not maps or logits.dim() != 2:
        raise ValueError(
            f"{type(model).__name__} has no pooling step that can be replaced: expected a global average over a "
            "feature map (as by nn.AdaptiveAvgPool2d(1) or mean((2, 3))) in front of a classifier that returns logits "
            f"(batch, classes); it returns {tuple(logits.shape)}."
        )
    once = {name: output for name, output in outputs.items() if calls.count(name) == 1}
    return _Run(model, once, *maps[-1], logits)


def _is_map(output: Any) -> bool:
    """Is a pooling in front of this output one of a gate, as in squeeze-and-excitation, that gives a map again?"""
    return isinstance(output, Tensor) and output.dim() == 4 and sorted(output.shape[1:])[-2] > 1


def _shape(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else str(type(output))
