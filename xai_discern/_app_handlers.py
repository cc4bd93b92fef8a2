"""What happens on the page: from what a user did to updates of its parts."""

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from xai_compare._text_file import lines_of

from ._app_models import FIRST, Loaded, Models, forwards, is_slow
from ._app_picture import BYTES, Upload, accepted
from ._app_result import checks_html, message_html, result_html
from ._app_session import EXAMPLES, Explained, Kind, Seen, Wanted, checked, concept_of, download, explain, see
from ._facts import plain, shown
from ._targets import Asked

_Updates = dict[Any, Any]


@dataclass(frozen=True)
class Session:
    """What is remembered of a user.

    Attributes:
        upload: The picture.
        seen: The picture as the model saw it.
        examples: Pictures of a concept, and its name.
        concept: The concept, for the model of this name.
        explained: What was found last.
    """

    upload: Upload | None = None
    seen: Seen | None = None
    examples: tuple[str, tuple[Upload, ...]] = ("", ())
    concept: tuple[str, Asked] | None = None
    explained: Explained | None = None


def first_methods(loaded: Loaded) -> list[tuple[str, str]]:
    """Titles and names of the methods that are shown at once."""
    return [(method.title, name) for name, method in loaded.methods.items() if name in FIRST]


def more_methods(loaded: Loaded) -> list[tuple[str, str]]:
    """Those of the others; it is said which are slow."""
    rest = [(name, method) for name, method in loaded.methods.items() if name not in FIRST]
    slow = {name: f" (slow: {forwards(method):.0f} passes)" for name, method in rest if is_slow(method)}
    return [(method.title + slow.get(name, ""), name) for name, method in rest]


class Handlers:
    """What happens; each returns updates of parts. Errors are shown in the page."""

    def __init__(self, models: Models, parts: dict[str, Any]) -> None:
        self.models, self.parts = models, parts

    def uploaded(self, path: str | None, session: Session | None, model: str, methods: Any, more: Any) -> _Updates:
        """A picture was dropped."""
        if path is None:
            return self._nothing()
        return self._guarded(lambda: self._seen(_read(path), session, model, (methods, more))) | self._only(file=None)

    def sampled(self, event: gr.SelectData, session: Session | None, model: str, methods: Any, more: Any) -> _Updates:
        """A sample was chosen."""
        upload = self.parts["offered"][event.index]
        return self._guarded(lambda: self._seen(upload, session, model, (methods, more)))

    def changed(self, session: Session | None, model: str, methods: Any, more: Any) -> _Updates:
        """Another model was chosen."""
        upload = session.upload if session else None
        if upload is not None:
            return self._guarded(lambda: self._seen(upload, session, model, (methods, more)))
        return self._guarded(lambda: self._of_model(self.models[model], (methods, more)))

    def explained(self, session: Session | None, *given: Any) -> _Updates:
        """Explain what is chosen now."""
        seen = session.seen if session else None
        if session is None or seen is None:
            return self._nothing()
        return self._guarded(lambda: self._explained(session, seen, *given))

    def conceived(self, paths: list[str] | None, name: str, session: Session | None, model: str) -> _Updates:
        """Pictures of a concept were dropped."""
        if not paths:
            return self._nothing()

        def made() -> _Updates:
            if len(paths) > EXAMPLES:
                raise ValueError(f"Expected 1 to {EXAMPLES} pictures that show the concept, got {len(paths)}.")
            uploads = tuple(_read(path) for path in paths)
            concept = concept_of(self.models[model], name, uploads)
            changed = replace(session or Session(), examples=(name, uploads), concept=(model, concept))
            said = f"Concept {name}, from {len(uploads)} picture{'s' * (len(uploads) > 1)}."
            return self._only(session=changed, status=message_html(said), drop=gr.update(visible=True))

        return self._guarded(made) | self._only(examples=None)

    def dropped(self, session: Session | None) -> _Updates:
        """The concept was removed."""
        changed = replace(session or Session(), examples=("", ()), concept=None)
        return self._only(session=changed, drop=gr.update(visible=False))

    def check(self, session: Session | None) -> _Updates:
        """Check the maps that are shown."""
        found = session.explained if session else None
        if found is None:
            return self._nothing()
        return self._guarded(lambda: self._only(checks=checks_html(checked(found))))

    def saver(self, kind: Kind) -> Callable[[Session | None], _Updates]:
        """What makes a file for download."""

        def save(session: Session | None) -> _Updates:
            found = session.explained if session else None
            if found is None:
                return self._nothing()

            def made() -> _Updates:
                name, data = download(found, kind)
                return self._only(payload=f"{name}\n{base64.b64encode(data).decode()}")

            return self._guarded(made)

        return save

    def _nothing(self) -> _Updates:
        return self._only(payload="")

    def _only(self, **updates: Any) -> _Updates:
        return {self.parts[name]: value for name, value in updates.items()}

    def _guarded(self, make: Callable[[], _Updates]) -> _Updates:
        try:
            return make()
        except Exception as error:  # the page goes on
            return self._only(status=message_html(str(plain(error)), error=True))

    def _of_model(self, loaded: Loaded, chosen: Sequence[Any]) -> _Updates:
        """The parts that depend on the model alone."""
        methods, more = ([name for name in one or () if name in loaded.methods] for one in chosen)
        texts = loaded.compares_texts
        return self._only(
            methods=gr.update(choices=first_methods(loaded), value=methods or ([] if more else [loaded.usual])),
            more=gr.update(choices=more_methods(loaded), value=more),
            classes=gr.update(visible=not texts, choices=[], value=[]),
            others=gr.update(visible=not texts, choices=[], value=[]),
            texts=gr.update(visible=texts),
        )

    def _seen(self, upload: Upload, session: Session | None, model: str, chosen: Sequence[Any]) -> _Updates:
        loaded = self.models[model]
        seen, before = see(loaded, upload), session or Session()
        name, examples = before.examples
        concept = before.concept
        if examples and (concept is None or concept[0] != model):
            concept = (model, concept_of(loaded, name, examples))
        rows = [(f"{row['name']} \u00b7 {shown(row)}", str(row["class"])) for row in seen.top]
        every = [(name, str(number)) for number, name in enumerate(seen.classes)]
        bare = not seen.classes
        return self._of_model(loaded, chosen) | self._only(
            session=Session(upload, seen, before.examples, concept),
            status=message_html(f"{upload.name}: choose what is explained." if bare else upload.name),
            classes=gr.update(visible=not bare, choices=rows, value=[value for _, value in rows[:2]]),
            others=gr.update(visible=not bare, choices=every, value=[]),
        )

    def _explained(
        self,
        session: Session,
        seen: Seen,
        classes: Any,
        others: Any,
        texts: str,
        contrast: bool,
        methods: Any,
        more: Any,
        seed: Any,
    ) -> _Updates:
        numbers = tuple(dict.fromkeys(int(one) for one in [*(classes or ()), *(others or ())]))
        lines = tuple(lines_of(texts or ""))
        names = list(lines) if seen.loaded.compares_texts else [seen.classes[number] for number in numbers]
        two = len(names) > 1
        concept = None if session.concept is None else session.concept[1]
        wanted = Wanted(numbers, lines, contrast and two, concept, (*(methods or ()), *(more or ())), int(seed or 0))
        label = f"Why {_short(names[0])}, and not {_short(names[1])}" if two else "Why one, and not the other"
        begun = time.perf_counter()
        found = explain(seen, wanted)
        said = f"{seen.upload.name}: explained in {time.perf_counter() - begun:.2f} s"
        return self._only(
            session=replace(session, explained=found),
            result=result_html(found),
            contrast=gr.update(label=label, interactive=two, value=contrast and two),
            status=message_html(said),
            checks="",
            tools=gr.update(visible=True),
        )


def _short(name: str) -> str:
    first = name.partition(",")[0]
    return first if len(first) <= 24 else first[:23] + "\u2026"


def _read(path: str) -> Upload:
    """An uploaded file, which is removed as soon as it is read."""
    file = Path(path)
    try:
        size = file.stat().st_size
        return accepted(file.name, file.read_bytes() if size <= BYTES else bytes(BYTES + 1))
    finally:
        file.unlink(missing_ok=True)
