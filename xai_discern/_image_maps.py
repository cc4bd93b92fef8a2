"""The maps of one image, how they are made and what is saved of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapters.recording.token_pass import NoTokensError
from xai_compare._method import Method
from xai_compare._names import distinct
from xai_compare._seeding import seeded_for

from ._facts import shown
from ._picture import robust_scale, save_picture
from ._subject import ImageModel, top
from ._targets import Asked, explains_tokens, maps_of_tokens

RANDOM = "RANDOM WEIGHTS: these maps say nothing of the image"
_SHOWN = 3  # of the most probable classes, above a picture


@dataclass(frozen=True)
class ImageMaps:
    """What was found of an image.

    Attributes:
        image: (channels, height, width) in [0, 1], as the model saw it.
        top: What the model says of it: rows of class or text, and how much.
        asked: What is explained.
        methods: By which methods.
        maps: Of each method that was asked (targets, h, w).
        random: Whether the weights are random.
        notes: What the methods say of their maps.
    """

    image: Tensor
    top: Sequence[Mapping[str, Any]]
    asked: Sequence[Asked]
    methods: Mapping[str, Method]
    maps: Mapping[str, Tensor]
    random: bool
    notes: Sequence[str] = ()

    @cached_property
    def scales(self) -> dict[str, float]:
        """For each method the absolute value that is drawn opaque."""
        return {key: robust_scale(found) for key, found in self.maps.items()}

    @property
    def titles(self) -> dict[str, str]:
        """What each method is called; no two alike."""
        return distinct({key: self.methods[key].title or key for key in self.maps})

    def save_picture(self, path: Path) -> None:
        """Draw all maps, a row for each method."""
        caption = "   ".join(f"{row['name'].partition(',')[0]} {shown(row)}" for row in self.top[:_SHOWN])
        caption = f"{RANDOM}\n{caption}" if self.random else caption
        drawn = {title: (self.maps[key], self.scales[key]) for key, title in self.titles.items()}
        save_picture(path, self.image, caption, [one.title for one in self.asked], drawn)

    def save(self, out: Path, name: str, file: str) -> dict[str, Any]:
        """Write the picture and the arrays into a folder.

        Args:
            out: The folder.
            name: How the names of the files begin.
            file: What `explanation.json` calls the image.

        Returns:
            What `explanation.json` says of it; files by their names in the folder.
        """
        picture = f"{name}.maps.png"
        self.save_picture(out / picture)
        return {
            "file": file,
            "seen": list(self.image.shape[1:]),
            "top": list(self.top),
            "maps": [
                self._saved(out / f"{name}.{method}.{key}.npy", method, one, heat)
                for method, found in self.maps.items()
                for key, one, heat in zip(numbered([one.key for one in self.asked]), self.asked, found, strict=True)
            ],
            "notes": list(self.notes),
            "picture": picture,
        }

    def _saved(self, file: Path, method: str, asked: Asked, found: Tensor) -> dict[str, Any]:
        np.save(file, found.numpy())
        positive, absolute = float(found.clamp(min=0).sum()), float(found.abs().sum())
        return {
            "method": method,
            "target": asked.facts,
            "array": file.name,
            "shape": list(found.shape),
            "sum": float(found.sum()),
            "positive_share": positive / absolute if absolute else None,
            "largest": [int(i) for i in np.unravel_index(int(found.argmax()), found.shape)],
            "scale": self.scales[method],
        }


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike: a number is added to those that were there."""
    found: list[str] = []
    for name in names:
        free, number = name, 2
        while free in found:
            free, number = f"{name}-{number}", number + 1
        found.append(free)
    return found


def method_maps(model: ImageModel, name: str, method: Method, x: Tensor, asked: Sequence[Asked], seed: int) -> Tensor:
    """(targets, h, w) on the processor, by one method.

    Args:
        model: The model, in evaluation mode.
        name: What the method is called in messages.
        method: The method.
        x: (1, channels, height, width).
        asked: The targets.
        seed: Of the random numbers that it may draw.

    Raises:
        ValueError: if the method does not fit the model, or what is asked.
    """
    with seeded_for(seed, "explain", 0):
        if explains_tokens(method.make):
            try:
                return maps_of_tokens(method.make(model.run), x, asked)
            except NoTokensError as error:
                raise ValueError(f"{error} Here: --method gradcam, or others of `xai-compare --list`.") from error
        unfit = [one.title for one in asked if one.plain is None]
        if unfit:
            raise ValueError(f"The method {name} explains classes, not {unfit[0]}: use --method cdam.")
        explain = method.explain({}, 16, model.subject.output)
        found = [explain(model.model, x, [one.plain])[0, 0] for one in asked]
    return torch.as_tensor(np.stack(found)).float()


def about_model(name: str, model: ImageModel) -> dict[str, Any]:
    """What `explanation.json` says of a model."""
    subject = model.subject
    return {"name": name, "weights": subject.weights, "classes": len(subject.labels) or None}


def top_rows(model: ImageModel, outputs: Tensor, asked: Sequence[Asked], count: int) -> list[dict[str, Any]]:
    """The most probable classes; or how near the image is to the texts.

    Args:
        model: The model.
        outputs: (1, classes), or (1, channels) of models that compare images with texts.
        asked: What is explained; of models that compare images with texts.
        count: How many classes.
    """
    if model.processor is not None:
        near = [float(one.target.score(outputs)[0]) for one in asked if one.facts["kind"] == "text"]
        texts = [one.title for one in asked if one.facts["kind"] == "text"]
        return [{"name": title, "similarity": value} for title, value in zip(texts, near, strict=True)]
    return [] if model.headless else top(model.model, outputs, model.subject.labels, count)
