"""Weights from a file, whatever they were wrapped in."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file of weights into a model; a warning says what was taken off.

    Weights may be inside of dictionaries, as {"state_dict": ...}, and all of them below one prefix, as "module.".

    Raises:
        RuntimeError: if they do not fit the model.
        ValueError: if weights below several prefixes do.
    """
    state, taken = _unwrapped(_read(path))
    found = _prefixes(state, model)
    if len(found) > 1:
        said = ", ".join(repr(prefix) for prefix in found)
        raise ValueError(f"{path} holds weights for the model below each of {said}: save those that are meant alone")
    if found and found[0]:
        prefix = found[0]
        others = [name for name in state if not name.startswith(prefix)]
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        taken.append(f"the prefix {prefix!r} of {len(state)} weights")
        if others:
            taken.append(f"{len(others)} others, as {others[0]!r}")
    _check_names(state, model)
    model.load_state_dict(state)
    if taken:
        warnings.warn(f"{path}: taken off: {', '.join(taken)}.", stacklevel=2)


def _read(path: Path) -> Any:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(state: Any) -> tuple[Mapping[str, Any], list[str]]:
    """The dictionary of weights, and the names of those that it was in."""
    names: list[str] = []
    while isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        name = next((key for key in _KEYS if isinstance(state.get(key), Mapping)), None)
        if name is None:
            break
        state = state[name]
        names.append(name)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        got = f"one of {', '.join(map(str, list(state)[:8]))}" if isinstance(state, Mapping) else type(state)
        raise ValueError(f"expected a dictionary of weights, got {got}: save model.state_dict()")
    return state, [f"the dictionary {'.'.join(names)!r}"] if names else []


def _check_names(state: Mapping[str, Any], model: nn.Module) -> None:
    expected = model.state_dict().keys()
    both = {"are missing": expected - state.keys(), "are not the model's": state.keys() - expected}
    said = [f"{len(names)} {what}, as {', '.join(sorted(names)[:3])}" for what, names in both.items() if names]
    if said:
        raise ValueError(f"of {len(expected)} weights of the {type(model).__name__} {'; '.join(said)}")


def _prefixes(state: Mapping[str, Any], model: nn.Module) -> list[str]:
    """What must be taken off for the names to be the model's: nothing, if they are."""
    expected = model.state_dict().keys()
    if not expected or expected & state.keys():
        return []
    first = next(iter(expected))
    ends = [name.removesuffix(first) for name in state if name.endswith("." + first)]
    return [prefix for prefix in ends if all(prefix + name in state for name in expected)]
