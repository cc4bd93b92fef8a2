"""One self-contained page about an answer: its tokens, and what of the prompt speaks for each of them."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.image import imsave
from torch import Tensor

from .signed_overlay import signed_overlay

if TYPE_CHECKING:
    from .answer_maps import AnswerMaps

_LARGEST, _SMALLEST = 384, 256  # pixels of a picture's longer side
_PAPER = 0.92  # the grey under maps of images that are not given
_SCORES = {"logit": "the logit", "log_prob": "the logarithm of the probability"}


def answer_page(maps: "AnswerMaps", images: Sequence[Any], sample: int) -> str:
    """The page of one sample; see `AnswerMaps.html`."""
    one = _sample(maps, sample)
    if len(images) not in (0, len(one.images)):
        raise ValueError(
            f"Expected the {len(one.images)} image(s) of the prompt of sample {sample}, got {len(images)}. Give all of "
            "them in their order, or none."
        )
    words, places = one.word_scale(), one.place_scale()
    backgrounds = [_pixels(image) for image in images] or [_blank(views) for views in one.images]
    pictures = [
        [_data_uri(drawn) for drawn in signed_overlay(background, views / one.weights(views), places)]
        for background, views in zip(backgrounds, one.images, strict=True)
    ]
    script = _asset("answer_page.js")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["visible"] = _visible
    return page.from_string(_asset("answer_page.html")).render(
        style=_asset("answer_page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        one=one,
        given=bool(images),
        scales={"words": f"{words:.3g}"} | ({"images": f"{places:.3g}"} if one.images else {}),
        image_share=one.image_share(),
        parts=_parts(one),
        beyond=one.beyond(words),
        explained=_SCORES.get(one.score, one.score),
        data={
            "scale": words,
            "tokens": one.divided_by,
            "scores": [[float(f"{value:.4g}") for value in view] for view in one.words()],
            "excluded": [one.excluded[at] for at in one.places],
            "pictures": pictures,
        },
    )


@dataclass(frozen=True)
class _Sample:
    """One sample of AnswerMaps, without padding.

    Attributes:
        tokens: Texts of the prompt's tokens.
        answer: Texts of the answer's.
        ids: Their ids.
        against: Texts of the other answer's tokens.
        scores: (views, tokens): the sum over the answer's tokens, then each of them.
        images: The same on each image, (views, h, w).
        numbers: Which tokens stand for each image.
        sinks: Which tokens are the first one or special.
        excluded: Which tokens were left out.
        shares: Of the first token and of special ones.
        padding: How many tokens are not shown.
        score: As of AnswerMaps.
        method: As of AnswerMaps.
        way: As of AnswerMaps.
    """

    tokens: list[str]
    answer: list[str]
    ids: list[int]
    against: list[str]
    scores: Tensor
    images: list[Tensor]
    numbers: list[list[int]]
    sinks: list[bool]
    excluded: list[bool]
    shares: tuple[float, float]
    padding: int
    score: str
    method: str
    way: str

    @property
    def divided_by(self) -> int:
        """By what the sum is divided to be compared with the answer's tokens."""
        return max(1, len(self.scores) - 1)

    @property
    def places(self) -> list[int]:
        """The tokens that are shown as words."""
        shown = {number for own in self.numbers for number in own}
        return [at for at in range(len(self.tokens)) if at not in shown]

    def weights(self, views: Tensor) -> Tensor:
        """By what views are divided, so that the whole answer and its tokens have one scale."""
        weights = torch.ones(len(views), *[1] * (views.dim() - 1), dtype=views.dtype)
        weights[0] = self.divided_by
        return weights

    def words(self) -> list[list[float]]:
        """The scores of the words in each view."""
        found: list[list[float]] = self.scores[:, self.places].tolist()
        return found

    def word_scale(self) -> float:
        """The largest absolute value of words outside the sinks, of all words if that is 0, 1 if all are 0."""
        values = self._shares()[:, self.places].abs()
        others = values[:, [not self.sinks[at] for at in self.places]]
        return _largest(others) or _largest(values) or 1.0

    def place_scale(self) -> float:
        """The largest absolute value of a place of the images, many with little each; 1 if there is none."""
        return max((_largest(views / self.weights(views)) for views in self.images), default=0.0) or 1.0

    def image_share(self) -> float:
        """The part of the whole answer's absolute score that is on images."""
        on_images = sum(float(views[0].abs().sum()) for views in self.images)
        total = on_images + float(self.scores[0, self.places].abs().sum())
        return on_images / total if total else 0.0

    def beyond(self, scale: float) -> int:
        """How many words have a score beyond the scale in some view."""
        return int((self._shares()[:, self.places].abs() > scale).any(0).sum())

    def _shares(self) -> Tensor:
        return self.scores / self.weights(self.scores)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _sample(maps: "AnswerMaps", sample: int) -> _Sample:
    if not 0 <= sample < len(maps.scores):
        raise ValueError(f"Expected `sample` from 0 to {len(maps.scores) - 1}, got {sample}.")
    answer = maps.answer_tokens[sample]
    real = torch.ones_like(maps.excluded) if maps.real is None else maps.real
    kept = real[sample].cpu().nonzero().flatten()
    per_token = None if maps.per_token is None else maps.per_token[sample, : len(answer)]
    scores = _views(maps.scores[sample], per_token)[:, kept]
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"Expected finite scores, but those of sample {sample} are not: its explanation failed.")
    images = []
    for number, of_all in enumerate(maps.images):
        image = of_all[sample]
        if image is not None:
            each = maps.images_per_token[number][sample] if maps.images_per_token else None
            images.append(_views(image, None if each is None else each[: len(answer)]))
    special = torch.zeros_like(real) if maps.special is None else maps.special
    sinks = special[sample].cpu()[kept]
    sinks[:1] = True
    order = {int(at): number for number, at in enumerate(kept)}
    return _Sample(
        tokens=[maps.tokens[sample][int(at)] for at in kept],
        answer=answer,
        ids=maps.answer_ids[sample],
        against=maps.against_tokens[sample] if maps.against_tokens else [],
        scores=scores,
        images=images,
        numbers=[[order[at] for at in own] for own in (maps.image_numbers[sample] if maps.image_numbers else [])],
        sinks=sinks.tolist(),
        excluded=maps.excluded[sample].cpu()[kept].tolist(),
        shares=(float(maps.first_share[sample]), float(maps.special_share[sample])),
        padding=real.shape[1] - len(kept),
        score=maps.score,
        method=maps.method,
        way=maps.way,
    )


def _views(whole: Tensor, each: Tensor | None) -> Tensor:
    """(views, ...): of the whole answer, and of each of its tokens, if they are known."""
    found = whole[None] if each is None else torch.cat([whole[None], each])
    return found.detach().double().cpu()


def _parts(one: _Sample) -> list[dict[str, Any]]:
    """Words and pictures in the order of the prompt; a picture stands where the first of its tokens does."""
    texts = [(at, one.tokens[at]) for at in one.places]
    words = [
        (at, {"word": _cut(text), "spaced": _cut(text) != text, "excluded": one.excluded[at]}) for at, text in texts
    ]
    starts = [min(own) for own in one.numbers] or [-1] * len(one.images)
    pictures = [
        (start, {"picture": number, "size": views.shape[1:]})
        for number, (start, views) in enumerate(zip(starts, one.images, strict=True))
    ]
    return [part for _, part in sorted([*words, *pictures], key=lambda part: part[0])]


def _cut(text: str) -> str:
    """A word without the space in front of it."""
    return text[1:] if text.startswith(" ") and text[1:].strip() else text


def _visible(text: str) -> str:
    """A token's text, in which white space can be seen."""
    if not text:
        return "\u2205"
    return text.replace("\n", "\u21b5\n").replace("\t", "\u21e5\t") if text.strip(" ") else "\u2423" * len(text)


def _pixels(image: Any) -> Tensor:
    """(3, height, width) of an image in [0, 1], of a size to be shown."""
    if hasattr(image, "convert"):
        image = torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    if not isinstance(image, Tensor) or image.dim() not in (2, 3):
        raise TypeError(
            "Expected `images` of PIL, or tensors (channels, height, width) in [0, 1], got "
            f"{tuple(image.shape) if isinstance(image, Tensor) else type(image)}."
        )
    pixels = image.detach().float().cpu().reshape(-1, *image.shape[-2:])
    longest = max(pixels.shape[1:])
    factor = min(1.0, _LARGEST / longest) if longest >= _SMALLEST else -(-_SMALLEST // longest)
    size = [max(1, round(side * factor)) for side in pixels.shape[1:]]
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True} if factor < 1 else {"mode": "nearest"}
    return F.interpolate(pixels[None], size, **options)[0]


def _blank(views: Tensor) -> Tensor:
    """What maps are drawn on without their image."""
    height, width = views.shape[1:]
    cell = max(1, _SMALLEST // max(height, width))
    return torch.full((height * cell, width * cell), _PAPER)


def _data_uri(picture: Any) -> str:
    """A picture (height, width, 3) as PNG or JPEG, whichever is smaller."""
    found = []
    for kind in ("png", "jpeg"):
        file = io.BytesIO()
        imsave(file, picture, format=kind)
        found.append(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}")
    return min(found, key=len)


def _asset(name: str) -> Markup:
    """A file of this package, which is trusted."""
    return Markup(files(__package__).joinpath(name).read_text("utf-8"))
