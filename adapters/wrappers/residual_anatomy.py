"""Where a network adds the residual branches of its blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.evaluation_mode import evaluation_mode
from ..models.example_inputs import cannot_be_run, example_inputs, run_on
from ..models.hooks import watch_calls
from ..models.image_layout import channels_are_last
from ..models.outputs import OutputChoice, output_tensor
from .branch_depths import Branches, Depths
from .joins import Join, WatchJoins
from .residual import Residual, ResidualAnatomy

_SHORTCUTS = ("downsample", "shortcut", "skip")  # names of modules on the identity branch
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LISTS = (nn.Sequential, nn.ModuleList)


def residual_anatomy(model: nn.Module, output: OutputChoice = None) -> ResidualAnatomy:
    """Find the residual blocks of a model by running it once on an empty input.

    A block is a member of an nn.Sequential or nn.ModuleList that adds two tensors of one shape. Where it does so
    several times, as the blocks of transformers, it is the last addition, that of the feed-forward part. Maps have as
    many axes as the inputs; what has three in a model of images or words are tokens.

    Args:
        model: The network.
        output: Which tensor of what it returns are the logits, as for `output_tensor`.

    Raises:
        TypeError: if it is not a model.
        ValueError: if there is no such block.
    """
    return on_an_example(model, lambda example: _watched(model, example, output))


def on_an_example(
    model: nn.Module, watched: Callable[[dict[str, Tensor] | Tensor], ResidualAnatomy]
) -> ResidualAnatomy:
    """What is seen on the first empty input on which a model can be run.

    Raises:
        TypeError: if it is not a model.
        ValueError: if there is none.
    """
    failures = []
    for example in example_inputs(model):
        try:
            return watched(example)
        except RuntimeError as error:
            shape = "" if isinstance(example, dict) else f"{tuple(example.shape)}: "
            failures.append(shape + str(error).splitlines()[0])
    raise ValueError(cannot_be_run(model, failures))


def _watched(model: nn.Module, example: dict[str, Tensor] | Tensor, choice: OutputChoice) -> ResidualAnatomy:
    axes = 0 if isinstance(example, dict) else example.dim()
    names = {module: name for name, module in model.named_modules()}
    blocks = list_members(model)
    running: list[nn.Module] = []
    entered: dict[str, Any] = {}
    made_by: dict[int, tuple[str, Any]] = {}
    seen: list[tuple[str, Branches]] = []  # with the block around each
    outside: list[tuple[str, Branches]] = []  # with the module around each, where there is no such block

    def before(module: nn.Module) -> None:
        running.append(module)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running.pop()
        name = names.get(module, "")
        entered[name] = args[0] if args else None
        if entered[name] is not output:  # as an empty shortcut returns it
            made_by[id(output)] = name.rsplit(".", 1)[-1], output

    def see(join: Join) -> None:
        around = next((module for module in reversed(running) if module in blocks), None)
        within = around or next((module for module in reversed(running) if names.get(module)), None)
        if join.kind != "cat" and within is not None and is_branch(join.first, within, axes):
            (outside if around is None else seen).append((names[within], depths.of(*join.terms)))

    depths = Depths()
    with torch.no_grad(), evaluation_mode(model), watch_calls(before, after), WatchJoins(see), depths:
        given = next(iter(example.values())) if isinstance(example, dict) else example
        output = output_tensor(run_on(model, example), choice, given)
    seen = seen or outside
    if not seen:
        raise ValueError(
            f"{type(model).__name__} has no residual additions: expected blocks, in an nn.Sequential or nn.ModuleList, "
            "that add two branches of one shape, as those of ResNets and transformers."
        )
    found = (
        residual_of(name, [one for block, one in seen if block == name], entered[name], made_by, given)
        for name in dict.fromkeys(block for block, _ in seen)
    )
    return ResidualAnatomy(tuple(found), output.shape[-1], axes)


def list_members(model: nn.Module, kinds: tuple[type[nn.Module], ...] = LISTS) -> set[nn.Module]:
    """The members of all lists of modules, which may be blocks."""
    return {child for module in model.modules() if isinstance(module, kinds) for child in module.children()}


def is_branch(one: Tensor, block: nn.Module, axes: int) -> bool:
    """Is what a block adds a map, or tokens?"""
    return one.dim() == 3 if one.dim() != axes else any(isinstance(m, _CONVOLUTIONS) for m in block.modules())


def residual_of(
    name: str,
    sums: Sequence[Branches],
    entered: Any,
    made_by: Mapping[int, tuple[str, Any]],
    given: Tensor,
) -> Residual:
    """The last of the additions in a block: what it adds, and which of the two is its identity branch.

    That is what entered the block, or what a module with the name of a shortcut made, else the one with fewer layers on
    its way. It is projected if nothing but the addition reads it: the residual branch does not start from it.
    """
    terms = sums[-1].terms
    on_tokens = terms[0].dim() != given.dim() or not given.is_floating_point()
    last = on_tokens or (given.dim() == 4 and bool(channels_are_last(terms[0].shape, given.shape)))
    place = -1 if last else 1
    channels = terms[0].shape[place]
    firsts = [one.terms[0] for one in sums]
    alike = [one for one in firsts if one.dim() == terms[0].dim() and one.shape[place] == channels]
    plain = [i for i, term in enumerate(terms) if term is entered]
    named = [i for i, term in enumerate(terms) if made_by.get(id(term), ("",))[0] in _SHORTCUTS]
    identity = (plain or named or [sums[-1].shorter])[0]
    projected = not on_tokens and not sums[-1].read[identity]
    return Residual(name, channels, on_tokens, terms[0].dim(), last, identity, projected, len(alike) - 1, len(alike))
