"""What a run is asked to do."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ._names import slug

METHODS = (
    "cdam",
    "smooth-cdam",
    "integrated-cdam",
    "attention",
    "rollout",
    "relevance",
    "gradcam",
    "ig",
    "ixg",
    "smoothgrad",
)
METRICS = ("soft-average-drop", "effective-average-drop", "box-sensitivity", "class-discrimination", "compactness")


@dataclass(frozen=True)
class Settings:
    """Everything that can be given on the line or in a file.

    Attributes:
        model: "digits", "timm:NAME", "torchvision:NAME", "transformers:NAME" or "python:MODULE:FUNCTION".
        pretrained: Load the library's pretrained weights?
        checkpoint: A file of weights to load, .safetensors or of torch.save.
        data: "digits", a folder of images, or "python:MODULE:FUNCTION".
        methods: Names of methods; "ig20=ig" calls one by another name, by which it has options of its own.
        metrics: Names of metrics, likewise; "all" is this project's.
        options: Arguments of methods and metrics, by name.
        targets: "predicted", the likeliest class, or "label". "": the label of digit scenes, else the likeliest class.
        limit: How many samples; None: all.
        seed: Of everything that is drawn.
        device: As torch names it; "": the best there is.
        dtype: The model's, "float32", "float64", "bfloat16" or "float16"; "": as it is.
        batch_size: How many samples are explained at once; a kill loses at most so many.
        forward_batch: How many perturbed images pass the model at once.
        gallery: How many samples the report shows.
        resamples: Of the bootstrap.
    """

    model: str = "digits"
    pretrained: bool = False
    checkpoint: str = ""
    data: str = ""
    methods: tuple[str, ...] = METHODS
    metrics: tuple[str, ...] = METRICS
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targets: str = ""
    limit: int | None = None
    seed: int = 0
    device: str = ""
    dtype: str = ""
    batch_size: int = 16
    forward_batch: int = 64
    gallery: int = 12
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("forward_batch", 1), ("gallery", 0), ("resamples", 100)):
            value = getattr(self, name)
            if value is None and name == "limit":
                continue
            if type(value) is not int or value < least:
                raise ValueError(f"Expected `{name}` to be a whole number of at least {least}, got {value!r}.")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"Expected `seed` to be a whole number of at least 0, got {self.seed!r}.")
        if self.targets not in ("", "predicted", "label"):
            raise ValueError(f"Expected `targets` to be 'predicted' or 'label', got {self.targets!r}.")
        if self.dtype not in ("", "float32", "float64", "bfloat16", "float16"):
            raise ValueError(
                f"Expected `dtype` to be 'float32', 'float64', 'bfloat16' or 'float16', got {self.dtype!r}."
            )


NAMES = tuple(one.name for one in dataclasses.fields(Settings))


def from_mapping(given: Mapping[str, Any], where: str = "the settings") -> Settings:
    """Settings from a file's or a function's mapping; names may have hyphens.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a setting is not known, or a value is wrong.
    """
    plain = {str(name).replace("-", "_"): value for name, value in given.items()}
    unknown = [name for name in plain if name not in NAMES]
    if unknown:
        raise ValueError(f"Unknown in {where}: {', '.join(unknown)}. Known are {', '.join(NAMES)}.")
    for name in ("methods", "metrics"):
        if name in plain:
            plain[name] = names_in(plain[name], name)
    options = plain.get("options", {})
    if not isinstance(options, Mapping) or not all(isinstance(one, Mapping) for one in options.values()):
        raise TypeError(f"Expected `options` in {where} to hold a table for each method or metric, got {options!r}.")
    plain["options"] = {
        slug(name): {str(key).replace("-", "_"): value for key, value in values.items()}
        for name, values in options.items()
    }
    for one in dataclasses.fields(Settings):
        if one.type in (str, bool) and not isinstance(plain.get(one.name, one.default), one.type):
            raise TypeError(f"Expected `{one.name}` in {where} to be {one.type}, got {plain[one.name]!r}.")
    return Settings(**plain)


def names_in(value: Any, what: str) -> tuple[str, ...]:
    """Names from a list, or from one text with commas."""
    parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise TypeError(f"Expected `{what}` to be names, got {value!r}.")
    return tuple("=".join(slug(side) for side in part.split("=", 1)) for part in parts if part.strip())


def read_file(path: Path) -> dict[str, Any]:
    """The mapping that a TOML or YAML file holds.

    Raises:
        ValueError: if it cannot be read, or is neither.
    """
    try:
        text = path.read_text()
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix in (".yaml", ".yml"):
            found = yaml.safe_load(text)
            if isinstance(found, dict):
                return found
            raise ValueError(f"Expected {path} to hold settings, as `methods: [cdam, ixg]`, got {type(found)}.")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"Expected settings in a .toml or .yaml file, got {path}.")
