"""What the page does, without the page: a picture is seen, explained, checked, and saved for download."""

import io
import re
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.models import evaluation_mode
from captum_ext import check
from xai_compare._isolation import said

from ._app_models import Loaded
from ._app_picture import Upload
from ._facts import plain, write_facts
from ._image_maps import ImageMaps, about_model, method_maps, top_rows
from ._subject import top
from ._targets import Asked, explains_tokens, notes_on_maps, of_class, of_concept, of_text

TOP = 5
TARGETS = 6  # explained at once
EXAMPLES = 20  # of a concept
_LETTERS = 200  # of a text
_one_at_a_time = threading.Lock()  # models are run with hooks, and random numbers are the process's
Kind = Literal["picture", "arrays", "json"]


@dataclass(frozen=True)
class Seen:
    """A picture that a model has seen.

    Attributes:
        loaded: The model.
        upload: The picture.
        x: (1, channels, height, width), as the model takes it.
        outputs: (1, classes or channels).
        top: The most probable classes.
    """

    loaded: Loaded
    upload: Upload
    x: Tensor
    outputs: Tensor
    top: Sequence[Mapping[str, Any]]

    @property
    def classes(self) -> list[str]:
        """The names of all classes; none of models without."""
        bare = self.loaded.compares_texts or self.loaded.model.headless
        return [] if bare else self.loaded.classes(self.outputs.shape[1])


@dataclass(frozen=True)
class Wanted:
    """What is to be explained.

    Attributes:
        classes: Numbers of classes; the first is what others are compared with in a contrast.
        texts: In place of classes, of models that compare images with texts.
        contrast: Why the first, and not each of the others?
        concept: A concept, too.
        methods: Names of methods.
        seed: Of the random numbers that methods draw.
    """

    classes: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    contrast: bool = False
    concept: Asked | None = None
    methods: tuple[str, ...] = ("cdam",)
    seed: int = 0


@dataclass(frozen=True)
class Explained:
    """What was found.

    Attributes:
        seen: The picture and the model.
        wanted: What was asked.
        maps: The maps, of the methods that could make them.
        failed: Why the others could not.
    """

    seen: Seen
    wanted: Wanted
    maps: ImageMaps
    failed: Mapping[str, str] = field(default_factory=dict)


def see(loaded: Loaded, upload: Upload) -> Seen:
    """Show a picture to a model.

    Raises:
        ValueError: if the model cannot take it.
    """
    model = loaded.model
    with _one_at_a_time, evaluation_mode(model.model):
        x = model.ready(upload.opened())
        outputs = model.class_outputs(x)
    bare = loaded.compares_texts or model.headless
    return Seen(loaded, upload, x, outputs, [] if bare else top(model.model, outputs, model.subject.labels, TOP))


def concept_of(loaded: Loaded, name: str, examples: Sequence[Upload]) -> Asked:
    """What example pictures share.

    Args:
        loaded: The model.
        name: What it is called.
        examples: The pictures.

    Raises:
        ValueError: if there are none, or too many, or it has no name.
    """
    if not name.strip():
        raise ValueError("Expected a name of the concept, such as stripes.")
    if not 1 <= len(examples) <= EXAMPLES:
        raise ValueError(f"Expected 1 to {EXAMPLES} pictures that show the concept, got {len(examples)}.")
    model = loaded.model
    with _one_at_a_time, evaluation_mode(model.model):
        ready = torch.cat([model.ready(one.opened()) for one in examples])
        return of_concept(name.strip()[:_LETTERS], ready, model.run)


def explain(seen: Seen, wanted: Wanted) -> Explained:
    """Explain a picture.

    Raises:
        ValueError: if nothing is asked, what is asked does not fit the model, or no method can explain it.
    """
    loaded, model = seen.loaded, seen.loaded.model
    if not wanted.methods:
        raise ValueError("Choose at least one method.")
    if unknown := [name for name in wanted.methods if name not in loaded.methods]:
        raise ValueError(f"The method {unknown[0]} is not offered for {loaded.name}.")
    maps: dict[str, Tensor] = {}
    failed: dict[str, str] = {}
    with _one_at_a_time, evaluation_mode(model.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are for those who write code
        asked = _asked(seen, wanted)
        with notes_on_maps() as notes:
            for name in wanted.methods:
                try:
                    maps[name] = method_maps(model, name, loaded.methods[name], seen.x, asked, wanted.seed)
                except Exception as error:
                    failed[name] = _said_on_page(error)
    if not maps:
        raise ValueError(" ".join(failed.values()))
    rows = top_rows(model, seen.outputs, asked, TOP)
    chosen = {name: loaded.methods[name] for name in maps}
    found = ImageMaps(model.seen(seen.x), rows, asked, chosen, maps, loaded.random, notes)
    return Explained(seen, wanted, found, failed)


def _said_on_page(error: Exception) -> str:
    """An error without what the command line advises."""
    text = str(plain(error))
    text = re.sub(r"use --method cdam\.", "choose CDAM, or leave it out.", text)
    return re.sub(r"Here: --method gradcam, or .*", "Choose GradCAM here.", text)


def _asked(seen: Seen, wanted: Wanted) -> list[Asked]:
    """The targets."""
    texts = seen.loaded.compares_texts
    count = len(wanted.texts if texts else wanted.classes)
    found = [] if wanted.concept is None else [wanted.concept]
    if not count and not found:
        raise ValueError(f"{'Write a text' if texts else 'Choose a class'}, or give pictures of a concept.")
    if count > TARGETS:
        raise ValueError(f"Choose at most {TARGETS} at once, got {count}.")
    if wanted.contrast and count < 2:
        raise ValueError("To see why one and not another, choose two.")
    return [*(_texts(seen, wanted) if texts else _classes(seen, wanted)), *found]


def _classes(seen: Seen, wanted: Wanted) -> list[Asked]:
    labels, count = seen.loaded.model.subject.labels, seen.outputs.shape[1]
    if not all(0 <= number < count for number in wanted.classes):
        raise ValueError(f"Expected classes from 0 to {count - 1}, got {list(wanted.classes)}.")
    if wanted.contrast:
        return [of_class(wanted.classes[0], labels, other) for other in wanted.classes[1:]]
    return [of_class(number, labels, None) for number in wanted.classes]


def _texts(seen: Seen, wanted: Wanted) -> list[Asked]:
    model = seen.loaded.model
    texts = [text[:_LETTERS] for text in wanted.texts]
    if wanted.contrast:
        return [of_text(texts[0], other, model.model, model.processor) for other in texts[1:]]
    return [of_text(text, None, model.model, model.processor) for text in texts]


def checked(explained: Explained) -> list[dict[str, Any]]:
    """What speaks against each map, as `captum_ext.check` finds it.

    Returns:
        For each method and target `method`, `target`, and `verdict` with `reasons`, `numbers` and `notes`, or `error`.
    """
    loaded, wanted = explained.seen.loaded, explained.wanted
    rows: list[dict[str, Any]] = []
    with _one_at_a_time, evaluation_mode(loaded.model.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, title in explained.maps.titles.items():
            make = loaded.methods[name].make
            if not explains_tokens(make):
                rows.append({"method": title, "target": "", "error": "There is no check of this method."})
                continue
            for one in explained.maps.asked:
                found = _checked(make(loaded.model.run), explained.seen.x, one, wanted.seed)
                rows.append({"method": title, "target": one.title, **found})
    return rows


def _checked(explainer: Any, x: Tensor, asked: Asked, seed: int) -> dict[str, Any]:
    target = asked.target if hasattr(explainer, "attribute_targets") else asked.plain
    try:
        trust = check(explainer, x, target)
    except Exception as error:
        return {"error": said(error)}
    found = trust.to_dict()
    notes, verdicts, reasons = found.pop("notes"), found.pop("verdicts"), found.pop("reasons")
    numbers = {name: values[0] for name, values in found.items() if values is not None}
    return {"verdict": verdicts[0], "reasons": reasons[0], "numbers": numbers, "notes": notes}


def download(explained: Explained, kind: Kind) -> tuple[str, bytes]:
    """A file's name and its bytes; nothing of it stays on the disk.

    Args:
        explained: What was found.
        kind: "picture" (PNG), "arrays" (ZIP of .npy), or "json".

    Raises:
        ValueError: if it is another kind.
    """
    if kind not in ("picture", "arrays", "json"):
        raise ValueError(f"Expected picture, arrays or json, got {kind!r}.")
    seen = explained.seen
    stem = seen.upload.stem
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if kind == "picture":
            explained.maps.save_picture(out / "maps.png")
            return f"{stem}.maps.png", (out / "maps.png").read_bytes()
        facts = explained.maps.save(out, stem, seen.upload.name)
        if kind == "json":
            written = write_facts(out, about_model(seen.loaded.name, seen.loaded.model), images=[facts])
            return written.name, written.read_bytes()
        return f"{stem}.arrays.zip", _zipped(sorted(out.glob("*.npy")))


def _zipped(files: Sequence[Path]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return held.getvalue()
