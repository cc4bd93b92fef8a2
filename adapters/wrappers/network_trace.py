"""What is seen while a network runs once on an empty image."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.evaluation_mode import evaluation_mode
from ..models.example_inputs import cannot_be_run, example_inputs, run_on
from ..models.hooks import watch_calls
from ..models.image_layout import channels_are_last
from ..models.outputs import OutputChoice, output_tensor
from .average_pooling import AveragePooling, average_pooling

OF_WHOLE_NETWORKS = 3  # sizes of feature maps; a block has at most two


@dataclass(frozen=True)
class SeenAverage:
    """An average of a map.

    Attributes:
        pooling: What was averaged.
        where: The names of the modules that ran, outermost first.
        time: How many things had been seen before.
        result: The average.
    """

    pooling: AveragePooling
    where: tuple[str, ...]
    time: int
    result: Tensor


@dataclass
class NetworkTrace:
    """One run of a network.

    Attributes:
        model: The network.
        image: What it ran on.
        logits: What it returned.
        outputs: What each module returned that ran once, by name, in this order.
        returned: When.
        changed: The modules whose output was changed in place later.
        averages: The averages of maps, in order.
        refused: What else than an average was taken of what map, or of what average.
    """

    model: nn.Module
    image: Tensor
    logits: Tensor
    outputs: dict[str, Any]
    returned: dict[str, int]
    changed: frozenset[str]
    averages: list[SeenAverage]
    refused: list[tuple[Tensor, str]]
    last: SeenAverage = field(init=False)

    def __post_init__(self) -> None:
        in_front = [one for one in self.averages if not any(self._is_map(self.outputs.get(name)) for name in one.where)]
        name = type(self.model).__name__
        if not in_front or self.logits.dim() != 2:
            raise ValueError(
                f"{name} has no pooling step that can be replaced: expected a global average over a feature map (as by "
                "nn.AdaptiveAvgPool2d(1) or mean((2, 3))) in front of a classifier that returns logits (batch, "
                f"classes); it returns {tuple(self.logits.shape)}."
            )
        self.last = in_front[-1]
        beside = [what for one, what in self.refused if one is self.last.pooling.features or one is self.last.result]
        if beside:
            raise ValueError(
                f"{name} has no pooling step that can be replaced: it pools by more than an average, {beside[0]} too."
            )

    def _is_map(self, output: Any) -> bool:
        """Is a pooling in front of this output one of a gate, as in squeeze-and-excitation, that gives a map again?"""
        return isinstance(output, Tensor) and output.dim() == self.image.dim() and sorted(output.shape[1:])[-2] > 1

    @property
    def pooled(self) -> str:
        """The outermost module inside the container of all stages that returned what is averaged; "" if none did."""
        named = [name for name, output in self.outputs.items() if output is self.last.pooling.features]
        small = [name for name in named if len(self.sizes_in(name)) < OF_WHOLE_NETWORKS]
        return min(small, key=lambda name: name.count("."), default="")

    def is_map(self, name: str) -> bool:
        """Did a module return a map?"""
        output = self.outputs.get(name)
        return isinstance(output, Tensor) and output.dim() == self.image.dim()

    def channels_last(self, name: str) -> bool | None:
        """Is a module's map channels-last? None: its shape does not say."""
        if self.image.dim() != 4:
            return False
        return channels_are_last(self.outputs[name].shape, self.image.shape)

    def on_a_wider_image(self) -> "NetworkTrace | None":
        """The same on an image half as wide again; None if the network reads one size only."""
        height, width = self.image.shape[2:]
        try:
            wider = self.image.new_zeros(1, self.image.shape[1], height, width // 64 * 96 or width)
            return _watched(self.model, wider, lambda _: self.logits)
        except Exception:  # of any kind: networks check sizes in many ways
            return None

    def size(self, name: str) -> tuple[int, ...]:
        """Height and width of a module's map, or as many sizes as there are."""
        last = self.channels_last(name)
        sizes: torch.Size = self.outputs[name].shape[1:]
        return tuple(sizes[:-1] if (self.last.pooling.channels_last if last is None else last) else sizes[1:])

    def children(self, name: str) -> list[str]:
        """The modules directly inside one, or in lists of it that do not run, in the order in which they returned."""
        prefix = name + "." if name else ""
        inside = {n for n in self.outputs if n.startswith(prefix) and n != name}
        return [n for n in self.outputs if n in inside and not any(outer in inside for outer in _around(n))]

    def sizes_in(self, name: str) -> set[tuple[int, ...]]:
        """The sizes of the maps that the modules directly inside one return."""
        return {self.size(child) for child in self.children(name) if self.is_map(child)}

    def last_of_each_size(self) -> list[str]:
        """The last module with a map of each size, whole networks taken apart."""
        last = {self.size(name): name for name in self._expanded("")}
        return sorted(last.values(), key=lambda name: self.returned[name])

    def _expanded(self, name: str) -> Iterator[str]:
        for child in self.children(name):
            if len(self.sizes_in(child)) >= OF_WHOLE_NETWORKS or not isinstance(self.outputs[child], Tensor):
                yield from self._expanded(child)
            elif self.is_map(child):
                yield child


def _around(name: str) -> Iterator[str]:
    """The names of the modules around one."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def run_once(model: nn.Module, output: OutputChoice = None) -> NetworkTrace:
    """Run a network on an empty image, in evaluation mode.

    Args:
        model: The network.
        output: Which tensor of what it returns are the logits, as for `output_tensor`.

    Raises:
        TypeError: if it is not a model.
        ValueError: if it cannot be run, or does not average a map.
    """
    failures = []
    for image in example_inputs(model):
        if isinstance(image, dict):
            raise ValueError(f"{type(model).__name__} reads texts: expected a convolutional network.")
        try:
            return _watched(model, image, output)
        except RuntimeError as error:
            failures.append(f"{tuple(image.shape)}: {str(error).splitlines()[0]}")
    raise ValueError(cannot_be_run(model, failures))


def _watched(model: nn.Module, image: Tensor, choice: OutputChoice) -> NetworkTrace:
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[str, Any] = {}
    returned: dict[str, int] = {}
    versions: dict[str, int] = {}
    calls: list[str] = []
    running: list[str] = []

    def after(module: nn.Module, _: Any, output: Any) -> None:
        name = names.get(module)
        if name is not None:
            running.pop()
            calls.append(name)
            outputs[name] = output
            returned[name] = len(calls) + len(watch.averages)
            versions[name] = getattr(output, "_version", 0)

    def before(module: nn.Module) -> None:
        if module in names:
            running.append(names[module])

    watch = _Watch(lambda: (tuple(running), len(calls) + len(watch.averages)), image.dim())
    with torch.no_grad(), evaluation_mode(model), watch_calls(before, after), watch:
        logits = output_tensor(run_on(model, image), choice, image)
    once = {name: output for name, output in outputs.items() if calls.count(name) == 1}
    changed = frozenset(name for name, output in once.items() if getattr(output, "_version", 0) != versions[name])
    return NetworkTrace(model, image, logits, once, returned, changed, watch.averages, watch.refused)


class _Watch(TorchFunctionMode):
    """Notes averages, maxima and powers of what was averaged."""

    def __init__(self, now: Callable[[], tuple[tuple[str, ...], int]], axes: int) -> None:
        super().__init__()
        self._axes = axes
        self.averages: list[SeenAverage] = []
        self.refused: list[tuple[Tensor, str]] = []
        self._now = now

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        pooling = average_pooling(func, args, kwargs or {}, self._axes)
        where, time = self._now()
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if pooling is not None:
            self.averages.append(SeenAverage(pooling, where, time, result))
        elif ("max" in name and "soft" not in name) or "pow" in name:
            self.refused += [(one, name.strip("_")) for one in args if isinstance(one, Tensor)]
        return result
