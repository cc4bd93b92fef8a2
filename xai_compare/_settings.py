"""The settings of a run, and how they are read from mappings and config files."""

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._names import by_slug, parse_aliases, slug
from ._text_file import text_of

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


_KINDS = {str: "text", bool: "true or false"}


_AT_ONCE = 16  # samples


class DeviceError(ValueError):
    """A device that torch does not know or this machine does not have."""


def _setting(default: Any, help: str, shown: str = "", **rules: Any) -> Any:
    """A field with its help text, how help shows its default, and rules.

    These are `least` of a number, `choices` of a text, and `in_numbers`: do all scores depend on it?
    """
    return field(default=default, metadata={"help": help, "shown": shown or str(default), **rules})


@dataclass(frozen=True)
class Settings:
    """All settings of a run: command line, config files, validation and `--help` are derived from the fields.

    Raises:
        TypeError: if a value is of the wrong type.
        ValueError: if it is out of range.

    Example:
        >>> from xai_compare import Settings
        >>> Settings(methods=("cdam", "ig"), limit=8).forward_batch
        64
    """

    model: str | tuple[str, ...] = _setting(
        "digits",
        "digits, timm:NAME, torchvision:NAME, transformers:NAME, a folder of a saved model or python:MODULE:FUNCTION; "
        "repeatable; NAME=MODEL names it in the tables",
    )
    pretrained: bool = _setting(False, "load the library's pretrained weights", "no")
    checkpoint: str | tuple[str, ...] = _setting(
        "",
        "weights file to load: .safetensors, or saved by torch.save; repeatable, each makes a model to compare; "
        "NAME=FILE where there are several models",
        "none",
    )
    output: str = _setting("", "which tensor of a model that returns several, as logits or 1", "by name")
    data: str = _setting(
        "",
        "folder of images, .csv or .parquet table, hf:NAME[:CONFIG][:SPLIT], digits or python:MODULE:FUNCTION",
        "digits for the model digits, else required",
    )
    split: str = _setting("", "which split of a table, folder or Hugging Face dataset", "all rows; a folder has none")
    methods: tuple[str, ...] = _setting(
        METHODS, "comma-separated names; NAME=METHOD runs a method under another name", ", ".join(METHODS)
    )
    metrics: tuple[str, ...] = _setting(
        METRICS, "comma-separated names; all selects every metric of this project", ", ".join(METRICS)
    )
    options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata={"help": "argument of a method, a metric, or the function that makes the model or data; repeatable"},
    )
    targets: str = _setting(
        "",
        "class to explain, or python:MODULE:FUNCTION, a function of one sample's output",
        "label for digits, the answer where data have questions, else predicted",
        choices=("predicted", "label", "answer"),
        or_function=True,
    )
    activation: str = _setting(
        "softmax",
        "what makes probabilities of the outputs, or python:MODULE:FUNCTION",
        choices=("softmax", "sigmoid", "identity"),
        or_function=True,
    )
    limit: int | None = _setting(None, "number of samples", "all; 100 for digits", least=1)
    seed: int = _setting(0, "random seed", least=0, in_numbers=True)
    device: str = _setting("", "torch device, e.g. cpu or cuda:0", "the best available")
    dtype: str = _setting(
        "",
        "dtype of the model",
        "unchanged",
        choices=("float32", "float64", "bfloat16", "float16"),
        in_numbers=True,
    )
    batch_size: int | None = _setting(
        None,
        "samples per batch",
        "16, fewer where a metric perturbs each image many times",
        least=1,
        in_numbers=True,
    )
    forward_batch: int = _setting(64, "batch size for perturbed images", least=1)
    gallery: int = _setting(12, "number of samples in the report's gallery", least=0, in_numbers=True)
    check: int = _setting(
        0, "number of samples whose maps are checked by captum_ext.check; as much as nine maps each", "none", least=0
    )
    save_maps: bool = _setting(False, "keep whole maps, as maps/METHOD.npz", "no")
    retry_failed: bool = _setting(False, "compute again what failed in an earlier call", "no")
    resamples: int = _setting(2000, "number of bootstrap resamples", least=100)
    log_with: tuple[str, ...] = _setting(
        (), "comma-separated trackers, as tensorboard or mlflow; all is every installed one", "none"
    )
    out: str = _setting("xai-compare-run", "output folder: a path, or a URL that fsspec knows, as s3://BUCKET/RUN")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            _check(f"`{one.name}`", getattr(self, one.name), one)
        if self.device:
            _check_device(self.device)

    @property
    def at_once(self) -> int:
        """Samples per batch, where no metric asks for fewer."""
        return self.batch_size or _AT_ONCE


NAMES = tuple(one.name for one in dataclasses.fields(Settings))
SEVERAL = ("model", "checkpoint")  # settings of one or more texts


def _check(name: str, value: Any, one: dataclasses.Field[Any]) -> None:
    least, choices = one.metadata.get("least"), one.metadata.get("choices")
    texts = value if isinstance(value, tuple) else (value,)
    if one.name in SEVERAL and not all(isinstance(text, str) for text in texts):
        raise TypeError(f"Expected {name} to be text, or several texts, got {value!r}.")
    if one.type in (str, bool) and not isinstance(value, one.type):
        raise TypeError(f"Expected {name} to be {_KINDS[one.type]}, got {value!r}.")
    is_function = one.metadata.get("or_function", False) and str(value).startswith("python:")
    if choices and value not in ("", *choices) and not is_function:
        *others, last = map(repr, choices)
        raise ValueError(f"Expected {name} to be {', '.join(others)} or {last}, got {value!r}.")
    optional = value is None and one.default is None
    if least is not None and not optional and (type(value) is not int or value < least):
        raise ValueError(f"Expected {name} to be a whole number of at least {least}, got {value!r}.")


def _check_device(name: str) -> None:
    import torch  # takes seconds

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator else 0
    known = {"cpu", *([accelerator.type] if accelerator else ()), *(f"{accelerator}:{i}" for i in range(count))}
    try:
        found = str(torch.device(name)) in known
    except RuntimeError:
        found = False
    if not found:
        raise DeviceError(f"Device {name!r} is not available. Available: {', '.join(sorted(known))}.")


def from_mapping(given: Mapping[str, Any], where: str = "") -> Settings:
    """Settings from a file's or a function's mapping; names may have hyphens.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a setting is not known, or a value is wrong.
    """
    plain, place = underscored(given), f" in {where}" if where else ""
    unknown = [repr(name) for name in plain if name not in NAMES]
    if unknown:
        plural = "s" * (len(unknown) > 1)
        raise ValueError(f"Unknown setting{plural} {', '.join(unknown)}{place}. Known settings: {', '.join(NAMES)}.")
    for name in ("methods", "metrics", "log_with"):
        if name in plain:
            plain[name] = names_in(plain[name], name)
    for name in SEVERAL:
        if name in plain:
            plain[name] = _several(plain[name])
    options = plain.get("options", {})
    if not isinstance(options, Mapping) or not all(isinstance(one, Mapping) for one in options.values()):
        raise TypeError(f"Expected `options`{place} to hold a table for each method or metric, got {options!r}.")
    by_slug(map(str, options))
    plain["options"] = {slug(str(name)): underscored(values) for name, values in options.items()}
    return Settings(**plain)


def underscored(given: Mapping[Any, Any]) -> dict[str, Any]:
    """The mapping with names of Python: underscores for hyphens."""
    return {str(name).replace("-", "_"): value for name, value in given.items()}


def names_in(value: Any, what: str) -> tuple[str, ...]:
    """Names from a list, or from comma-separated text; aliases as "ig20=ig"."""
    parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise TypeError(f"Expected `{what}` to be names, got {value!r}.")
    names = parse_aliases(part for part in parts if part.strip())
    return tuple(own if own == of else f"{own}={of}" for own, of in names.items())


def _several(value: Any) -> Any:
    """One text, or a tuple of several; those of a mapping as "NAME=TEXT"."""
    if isinstance(value, Mapping):
        return tuple(f"{name}={text}" for name, text in value.items())
    listed = tuple(value) if isinstance(value, list | tuple) else value
    return listed[0] if isinstance(listed, tuple) and len(listed) == 1 else listed


def read_file(path: Path) -> dict[str, Any]:
    """The mapping that a TOML or YAML file holds.

    Raises:
        ValueError: if it cannot be read, or is neither.
    """
    import yaml

    try:
        text = text_of(path)
        if path.suffix == ".toml":
            return underscored(tomllib.loads(text))
        if path.suffix in (".yaml", ".yml"):
            found = yaml.safe_load(text)
            if isinstance(found, dict):
                return underscored(found)
            raise ValueError(f"Expected {path} to hold settings, e.g. `methods: [cdam, ixg]`, got {type(found)}.")
    except (OSError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"Expected a .toml or .yaml config file, got {path}.")
