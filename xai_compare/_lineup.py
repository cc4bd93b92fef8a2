"""Which models are compared, by name."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ._models import Subject, load_model
from ._names import by_slug, slug
from ._seeding import seeded_for
from ._settings import Settings

Given = str | nn.Module


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded.

    Attributes:
        title: What the report calls it; "": what it is called where it comes from.
        model: The model, or the name of one.
        checkpoint: A file of weights, or "".
        is_named: Has the user given it this name?
    """

    title: str
    model: Given
    checkpoint: str = ""
    is_named: bool = False

    def load(self, settings: Settings, name: str) -> Subject:
        """The model with its preprocessing."""
        if isinstance(self.model, nn.Module):
            subject = Subject(self.model, type(self.model).__name__)
        else:
            options = dict(settings.options.get("model", {})) | dict(settings.options.get(name, {}))
            with seeded_for(settings.seed, "model", 0):  # weights that are not loaded are random
                subject = load_model(self.model, settings.pretrained, self.checkpoint, options)
        return replace(subject, name=self.title) if self.is_named else subject


def lineup(model: Any, checkpoint: str | Sequence[str] = "", *, pretrained: bool = False) -> dict[str, Entry]:
    """The models by their names in the tables.

    Args:
        model: A model or a name as on the command line; several of these, of which names may be "NAME=MODEL"; or a
            mapping from names to them.
        checkpoint: Files of weights: for one model as many as wanted, each of which makes a model; for several models
            "NAME=FILE".
        pretrained: Are pretrained weights asked for? Models that are objects have their weights already.

    Raises:
        TypeError: if something else than a model or name is given.
        ValueError: if two have the same name, or it is not clear whose weights a file holds.
    """
    entries = [_entry(name, one) for name, one in _listed(model)]
    files = [_named(text) for text in ([checkpoint] if isinstance(checkpoint, str) else checkpoint) if text]
    objects = [entry.title for entry in entries if isinstance(entry.model, nn.Module)]
    if objects and (files or pretrained):
        asked = f"checkpoint={files[0][1]!r}" if files else "pretrained=True"
        raise ValueError(f"Expected no {asked} for {objects[0]}, a model with weights: load them, or pass its name.")
    if len(entries) == 1 and len(files) > 1:
        entries = [_with_weights(entries[0], name, file) for name, file in files]
    elif len(entries) == 1 and files:
        entries = [replace(entries[0], checkpoint=files[0][1])]
    elif files:
        entries = _each_with_its_own(entries, files)
    found = {slug(one.title): one for one in entries}
    by_slug(one.title for one in entries)
    twice = [title for title, count in Counter(one.title for one in entries).items() if count > 1]
    if twice or not entries:
        said = f"{twice[0]!r} is the name of two models" if twice else "Expected at least one model, got none"
        raise ValueError(
            f'{said}: pass a mapping, model={{"before": ..., "after": ...}}, on the command line --model before=... '
            "--model after=..."
        )
    return found


def _listed(model: Any) -> list[tuple[str, Any]]:
    """Names, "" for those not given, and models."""
    if isinstance(model, Mapping):
        return [(str(name), one) for name, one in model.items()]
    if isinstance(model, Iterable) and not isinstance(model, str | nn.Module):
        return [_named(one) if isinstance(one, str) else ("", one) for one in model]
    return [_named(model) if isinstance(model, str) else ("", model)]


def _named(text: str) -> tuple[str, str]:
    """The name and the rest of "NAME=REST"; no name where the part before "=" is a path or a kind of model."""
    name, equals, rest = text.partition("=")
    return (name, rest) if equals and not set(name) & set(":/\\.") else ("", text)


def _entry(name: str, model: Any) -> Entry:
    if not isinstance(model, str | nn.Module):
        raise TypeError(f"Expected `model` to be a torch.nn.Module or a name, or several of these, got {type(model)}.")
    return Entry(name or (model if isinstance(model, str) else type(model).__name__), model, is_named=bool(name))


def _with_weights(entry: Entry, name: str, file: str) -> Entry:
    return replace(entry, title=name or Path(file).stem, checkpoint=file, is_named=True)


def _each_with_its_own(entries: list[Entry], files: list[tuple[str, str]]) -> list[Entry]:
    """Several models, with the files of those that have one."""
    of = {slug(name): file for name, file in files}
    names = {slug(entry.title) for entry in entries}
    wrong = next((f"{name}={file}" if name else file for name, file in files if slug(name) not in names), None)
    if wrong is not None:
        raise ValueError(
            f"Expected a checkpoint of several models as NAME=FILE, where NAME is one of {', '.join(sorted(names))}, "
            f"got {wrong!r}."
        )
    return [replace(entry, checkpoint=of.get(slug(entry.title), "")) for entry in entries]
