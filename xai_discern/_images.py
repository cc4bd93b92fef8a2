"""Explaining images: what a model says of each, maps of it, a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.models import evaluation_mode
from xai_compare._folder import images_below
from xai_compare._isolation import said
from xai_compare._method import Method
from xai_compare._methods import methods_named
from xai_compare._pictures import opened

from ._facts import plain, shown, write_facts
from ._image_maps import RANDOM, ImageMaps, about_model, method_maps, numbered, top_rows
from ._request import Request
from ._subject import ImageModel, image_model
from ._targets import Asked, asked_classes, notes_on_maps, of_concept, of_text


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
        written = write_facts(request.out, about_model(request.model, model), images=found)
    if all("error" in one for one in found):
        raise ValueError("No image could be explained.")
    yield f"Written: {written}"


def _said(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['file']}:"
    for row in facts["top"]:
        number = f"  ({row['class']})" if "class" in row else ""
        yield f"  {shown(row):>7}  {row['name']}{number}"
    yield from (f"  Note: {note}" for note in facts["notes"])
    yield f"  Picture: {facts['picture']}"


def _fixed(request: Request, model: ImageModel) -> list[Asked]:
    """The concepts and texts of a request, which are the same for all images."""
    found = [of_text(text, request.vs, model.model, model.processor) for text in request.texts]
    with evaluation_mode(model.model):
        found += [of_concept(folder.name, _examples(folder, model), model.run) for folder in request.concepts]
    return found


def _examples(folder: Path, model: ImageModel) -> Tensor:
    return torch.cat([model.ready(opened(file)) for file in _files([folder])])


@dataclass(frozen=True)
class _Session:
    """A request with its model, and what is explained of all images."""

    request: Request
    model: ImageModel
    methods: Mapping[str, Method]
    fixed: list[Asked]

    def explained(self, file: Path, name: str) -> dict[str, Any]:
        """Explain an image; what `explanation.json` says of it."""
        request, model = self.request, self.model
        x = model.ready(opened(file))
        with evaluation_mode(model.model):
            outputs = model.class_outputs(x)
            asked = self._asked(outputs)
            rows = top_rows(model, outputs, asked, request.top)
            with notes_on_maps() as notes:
                maps = {key: method_maps(model, key, one, x, asked, request.seed) for key, one in self.methods.items()}
        found = ImageMaps(model.seen(x), rows, asked, self.methods, maps, model.subject.weights == "random", notes)
        facts = found.save(request.out, name, str(file))
        return facts | {"picture": str(request.out / facts["picture"])}

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


def _files(given: Sequence[Path]) -> list[Path]:
    """The files, and the images of the folders in order.

    Raises:
        ValueError: if a folder has no images.
    """
    files: list[Path] = []
    for path in given:
        inside = images_below(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"There is no image in the folder {path}.")
        files += inside
    return files
