"""What a run says of itself: settings, versions, device."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from ._settings import Settings

_PACKAGES = (
    "xai-discern",
    "torch",
    "captum",
    "grad-cam",
    "quantus",
    "timm",
    "torchvision",
    "transformers",
    "numpy",
    "scipy",
)


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON has them, without the folder, which may be moved."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
    plain.pop("out")
    return plain


def settings_in_numbers(settings: Settings) -> dict[str, Any]:
    """The settings that all numbers of a run depend on."""
    options = {name: settings.options[name] for name in ("model", "data") if name in settings.options}
    plain = {one.name: getattr(settings, one.name) for one in fields(Settings) if one.metadata.get("in_numbers")}
    return plain | {"options": options}


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_versions(where: str, before: Mapping[str, str]) -> None:
    """Raise a ValueError if a run was begun with other versions."""
    now = versions()
    other = [name for name, version in before.items() if now.get(name) != version]
    if other:
        raise ValueError(
            f"{where} was begun with {', '.join(f'{name} {before[name]}' for name in other)}; here is "
            f"{', '.join(f'{name} {now.get(name)}' for name in other)}, with which numbers may differ. Use the "
            "versions it was begun with, or another folder with --out."
        )


def device_name(device: str, processes: int) -> str:
    """A device with its name, processes and threads."""
    kind, threads = torch.device(device), torch.get_num_threads()
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else platform.processor() or platform.machine()
    said = [name] + [f"{processes} processes"] * (processes > 1)
    if kind.type == "cpu":
        said.append(f"{threads} thread{'s' * (threads > 1)}{' each' * (processes > 1)}")
    return f"{kind.type if processes > 1 else device} ({', '.join(said)})"
