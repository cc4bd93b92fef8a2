"""Datasets of Hugging Face, by name."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._items import KEYS

FORM = "hf:NAME[:CONFIG][:SPLIT]"
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes


def load_named(text: str, split: str, options: Mapping[str, Any]) -> Any:
    """The dataset, or with `streaming` an iterable, of NAME[:CONFIG][:SPLIT].

    Args:
        text: What follows "hf:"; the name may be a folder.
        split: The split, where the text names none.
        options: Arguments of `datasets.load_dataset`; `image`, `label`, `mask` and `box` name the columns.

    Raises:
        ValueError: if the library is not installed, or there is no such dataset, configuration or split.
    """
    try:
        library: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Data {FORM} need the library datasets, which is not installed: pip install datasets"
        ) from error
    name, *rest = text.split(":")
    if not name or len(rest) > 2:
        raise ValueError(f"Expected data of the form {FORM}, got 'hf:{text}'.")
    columns = {key: options[key] for key in KEYS if key in options}
    further = {key: value for key, value in options.items() if key not in KEYS}
    try:
        if any(Path(name, file).is_file() for file in _SAVED):
            found = library.load_from_disk(name)
            found = found[wanted] if (wanted := rest[-1] if rest else split) else found
        else:
            if len(rest) == 1 and rest[0] in library.get_dataset_split_names(name):
                rest = ["", *rest]  # a split, not a configuration
            config, named = [*rest, "", ""][:2]
            found = library.load_dataset(name, config or None, split=named or split or None, **further)
    except Exception as error:
        raise ValueError(f"Data 'hf:{text}' cannot be loaded: {type(error).__name__}: {error}") from error
    if isinstance(found, Mapping):
        raise ValueError(
            f"Expected one split of 'hf:{text}', as --split {next(iter(found))}; it has {', '.join(found)}."
        )
    return found.rename_columns({own: key for key, own in columns.items() if own != key})
