"""Explaining images: what a model says of each, maps of it, a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.models import evaluation_mode
from adapters.recording.token_pass import NoTokensError
from xai_compare._isolation import said
from xai_compare._method import Method
from xai_compare._methods import methods_named
from xai_compare._names import distinct
from xai_compare._pictures import extensions, opened
from xai_compare._seeding import seeded_for

from ._facts import plain, shown, write_facts
from ._picture import robust_scale, save_picture
from ._request import Request
from ._subject import ImageModel, image_model, top
from ._targets import (
    Asked,
    asked_classes,
    explains_tokens,
    maps_of_tokens,
    of_concept,
    of_text,
)

RANDOM = "RANDOM WEIGHTS: these maps say nothing of the image"
_SHOWN = 3  # of the most probable classes, above a picture


def explained_images(request: Request, say: Callable[[str], None]) -> Iterator[str]:
    """Explain images, and write `explanation.json`, a picture for each image and an array for each map.

    Args:
        request: What is asked.
        say: Takes lines about the progress.

    Yields:
        Lines about the result.

    Raises:
        ValueError: if the request does not fit the model, or no image can be explained.
    """
    files = _files(request.images)
    methods = methods_named(request.methods)
    say(f"Loading {request.model} ...")
    model = image_model(request)
    if model.subject.weights == "random":
        yield f"{RANDOM}. For trained weights add --pretrained, or --checkpoint FILE."
    session = _Session(request, model, methods, _fixed(request, model))
    request.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    try:
        for file, name in zip(files, numbered([file.stem for file in files]), strict=True):
            say(f"{file} ({len(found) + 1} of {len(files)}) ...")
            try:
                found.append(session.explained(file, name))
                yield from _said(found[-1])
            except Exception as error:
                if len(files) == 1:
                    raise plain(error) from error
                found.append({"file": str(file), "error": said(error)})
                yield f"{file}: skipped: {error}"
    finally:  # also where it was stopped
        written = write_facts(request.out, session.about(), images=found)
    if all("error" in one for one in found):
        raise ValueError("No image could be explained.")
    yield f"Written: {written}"


def _said(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['file']}:"
    for row in facts["top"]:
        number = f"  ({row['class']})" if "class" in row else ""
        yield f"  {shown(row):>7}  {row['name']}{number}"
    yield f"  Picture: {facts['picture']}"


def _fixed(request: Request, model: ImageModel) -> list[Asked]:
    """The concepts and texts of a request, which are the same for all images."""
    found = [of_text(text, request.vs, model.model, model.processor) for text in request.texts]
    with evaluation_mode(model.model):
        found += [of_concept(folder, _examples(folder, model), model.run) for folder in request.concepts]
    keys = numbered([one.key for one in found])
    return [replace(one, key=key) for one, key in zip(found, keys, strict=True)]


def _examples(folder: Path, model: ImageModel) -> Tensor:
    return torch.cat([model.ready(opened(file)) for file in _files([folder])])


@dataclass(frozen=True)
class _Session:
    """A request with its model, and what is explained of all images."""

    request: Request
    model: ImageModel
    methods: Mapping[str, Method]
    fixed: list[Asked]

    def about(self) -> dict[str, Any]:
        """What `explanation.json` says of the model."""
        subject = self.model.subject
        return {"name": self.request.model, "weights": subject.weights, "classes": len(subject.labels) or None}

    def explained(self, file: Path, name: str) -> dict[str, Any]:
        """Explain an image; what `explanation.json` says of it."""
        x = self.model.ready(opened(file))
        with evaluation_mode(self.model.model):
            outputs = self.model.outputs(x)
            if outputs.dim() != 2:
                raise ValueError(f"Expected a model that classifies an image, got outputs {tuple(outputs.shape)}.")
            asked = self._asked(outputs)
            top_rows = self._top(outputs, asked)
            maps = {key: self._maps(key, method, x, asked) for key, method in self.methods.items()}
        scales = {key: robust_scale(found) for key, found in maps.items()}
        picture = f"{name}.maps.png"
        caption = "   ".join(f"{row['name'].partition(',')[0]} {shown(row)}" for row in top_rows[:_SHOWN])
        caption = f"{RANDOM}\n{caption}" if self.model.subject.weights == "random" else caption
        titles = [one.title for one in asked]
        rows = distinct({key: method.title or key for key, method in self.methods.items()})
        drawn = {rows[key]: (found, scales[key]) for key, found in maps.items()}
        save_picture(self.request.out / picture, self.model.seen(x), caption, titles, drawn)
        return {
            "file": str(file),
            "seen": list(x.shape[2:]),
            "top": top_rows,
            "maps": [
                self._saved(name, key, one, found[at], scales[key])
                for key, found in maps.items()
                for at, one in enumerate(asked)
            ],
            "picture": str(self.request.out / picture),
        }

    def _saved(self, name: str, method: str, asked: Asked, found: Tensor, scale: float) -> dict[str, Any]:
        array = f"{name}.{method}.{asked.key}.npy"
        np.save(self.request.out / array, found.numpy())
        positive, absolute = float(found.clamp(min=0).sum()), float(found.abs().sum())
        return {
            "method": method,
            "target": asked.facts,
            "array": array,
            "shape": list(found.shape),
            "sum": float(found.sum()),
            "positive_share": positive / absolute if absolute else None,
            "largest": [int(i) for i in np.unravel_index(int(found.argmax()), found.shape)],
            "scale": scale,
        }

    def _asked(self, outputs: Tensor) -> list[Asked]:
        """What is explained of an image."""
        request, model = self.request, self.model
        if self.fixed and not request.classes:
            return self.fixed
        if model.headless:
            raise ValueError(
                f"{request.model} has no head: its {outputs.shape[1]} outputs are features, not classes. Explain a "
                "concept (--concept FOLDER of example images), or give a model that classifies."
            )
        return asked_classes(request, outputs, model.subject.labels) + self.fixed

    def _top(self, outputs: Tensor, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """The most probable classes; or how near the image is to the texts."""
        if self.model.processor is not None:
            near = [float(one.target.score(outputs)[0]) for one in asked]
            return [{"name": one.title, "similarity": value} for one, value in zip(asked, near, strict=True)]
        if self.model.headless:
            return []
        return top(self.model.model, outputs, self.model.subject.labels, self.request.top)

    def _maps(self, name: str, method: Method, x: Tensor, asked: Sequence[Asked]) -> Tensor:
        """(targets, h, w) on the processor."""
        with seeded_for(self.request.seed, "explain", 0):
            if explains_tokens(method.make):
                try:
                    return maps_of_tokens(method.make(self.model.run), x, asked)
                except NoTokensError as error:
                    raise ValueError(f"{error} Here: --method gradcam, or others of `xai-compare --list`.") from error
            unfit = [one.title for one in asked if one.plain is None]
            if unfit:
                raise ValueError(f"The method {name} explains classes, not {unfit[0]}: use --method cdam.")
            explain = method.explain({}, 16, self.model.subject.output)
            found = [explain(self.model.model, x, [one.plain])[0, 0] for one in asked]
        return torch.as_tensor(np.stack(found)).float()


def _files(given: Sequence[Path]) -> list[Path]:
    """The files, and the images of the folders in order.

    Raises:
        ValueError: if a folder has no images.
    """
    known = extensions()
    files: list[Path] = []
    for path in given:
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in known) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"There is no image in the folder {path}.")
        files += inside
    return files


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike: a number is added to those that were there."""
    found: list[str] = []
    for name in names:
        free, number = name, 2
        while free in found:
            free, number = f"{name}-{number}", number + 1
        found.append(free)
    return found
