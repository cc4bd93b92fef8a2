"""The page itself: its parts, its style, and how they are connected; what they do lies in _app_handlers.py."""

import os
import tempfile
from importlib.resources import files
from typing import Any

import gradio as gr

from ._app_handlers import Handlers, first_methods, more_methods
from ._app_models import Loaded, Models
from ._app_picture import BYTES, ENDINGS
from ._app_result import message_html
from ._app_samples import samples
from ._app_session import EXAMPLES

_KEPT = 1800  # seconds that a picture is remembered after its last use
_REVEAL = "() => { window.xdReveal(); }"
_SAVE = "(text) => { window.xdSave(text); }"
_ABOUT = """<div class="xd-head"><h1>xai-discern</h1>
<p>Which parts of a picture speak for a class, and which against it: red is for, blue is against. Pictures are read into
memory and forgotten when you leave; nothing is stored.</p></div>"""
_START = "Upload a picture, or choose a sample."


def _theme() -> Any:
    """Without fonts from elsewhere."""
    return gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


class Page(gr.Blocks):
    """The page; its files lie in a folder of its own, which is removed when it is closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="xai-discern-", ignore_cleanup_errors=True)
        self._before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = self._folder.name  # where Gradio puts uploads until they are read
        super().__init__(analytics_enabled=False, title="xai-discern", delete_cache=(60, 600))

    def launch(self, *given: Any, **options: Any) -> Any:
        """As of Gradio, with this page's style and limits; on this machine only unless `server_name` says otherwise."""
        package = files("xai_discern")
        script = package.joinpath("app.js").read_text("utf-8")
        own: dict[str, Any] = {
            "theme": _theme(),
            "css": package.joinpath("app.css").read_text("utf-8"),
            "head": f"<script>{script}</script>",
            "max_file_size": BYTES,
            "footer_links": [],
            "run_history": False,
            "enable_monitoring": False,
            "ssr_mode": False,
            "pwa": False,
            "mcp_server": False,
            "state_session_capacity": 200,
        }
        return super().launch(*given, **(own | options))

    def close(self, verbose: bool = False) -> None:
        """Stop serving, and remove all files."""
        super().close(verbose)
        self._folder.cleanup()
        if os.environ.get("GRADIO_TEMP_DIR") == self._folder.name:
            os.environ.pop("GRADIO_TEMP_DIR")
            os.environ |= {} if self._before is None else {"GRADIO_TEMP_DIR": self._before}

    def forget(self, request: gr.Request) -> None:
        """Forget a user who left."""
        held = getattr(self, "state_holder", None)
        if held is not None:
            held.session_data.pop(request.session_hash, None)


def page_of(models: Models) -> Page:
    """The page of some models; the first one is loaded."""
    page = Page()
    first = models[models.names[0]]
    with page:
        gr.HTML(_ABOUT)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                parts = _controls(models, first) | _choices(first)
            with gr.Column(scale=5, min_width=320):
                parts |= _results()
        _connect(page, models, parts)
    return page


def _controls(models: Models, first: Loaded) -> dict[str, Any]:
    """Picture, model and what is explained."""
    parts: dict[str, Any] = {"session": gr.State(None, time_to_live=_KEPT)}
    limit = f"Picture: PNG, JPEG or WebP, up to {BYTES >> 20} MB"
    parts["file"] = gr.File(label=limit, file_types=[*ENDINGS], type="filepath", height=140)
    offered = samples(models.names)
    parts["samples"] = gr.Gallery(
        [(one.opened(), one.name) for one in offered],
        label="Samples",
        columns=4,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        buttons=[],
        elem_id="xd-samples",
        interactive=False,
        type="pil",
    )
    parts["model"] = gr.Dropdown(
        [*models.names],
        value=first.name,
        label="Model",
        allow_custom_value=models.any_model,
        info="or timm:NAME, torchvision:NAME, transformers:NAME" if models.any_model else None,
        visible=models.any_model or len(models.names) > 1,
    )
    parts["classes"] = gr.CheckboxGroup([], label="Classes, most probable first", visible=not first.compares_texts)
    parts["others"] = gr.Dropdown(
        [], label="Other classes (type to search)", multiselect=True, visible=not first.compares_texts
    )
    parts["texts"] = gr.Textbox(
        label="Texts, one in each line",
        lines=2,
        placeholder="a photo of a dog",
        visible=first.compares_texts,
        max_length=2000,
    )
    parts["contrast"] = gr.Checkbox(label="Why one, and not the other", interactive=False)
    parts["offered"] = offered
    return parts


def _choices(first: Loaded) -> dict[str, Any]:
    """Methods and concepts."""
    parts: dict[str, Any] = {}
    parts["methods"] = gr.CheckboxGroup(first_methods(first), value=[first.usual], label="Methods")
    with gr.Accordion("More methods, and seed", open=False):
        parts["more"] = gr.Dropdown(more_methods(first), label="More methods", multiselect=True)
        parts["seed"] = gr.Number(0, label="Seed of methods that draw random numbers", precision=0)
    with gr.Accordion("A concept, by example pictures", open=False):
        parts["name"] = gr.Textbox("concept", label="Name of the concept", max_length=60)
        parts["examples"] = gr.File(
            label=f"Pictures that show it (up to {EXAMPLES})",
            file_count="multiple",
            file_types=[*ENDINGS],
            type="filepath",
            height=140,
        )
        parts["drop"] = gr.Button("Remove the concept", size="sm", visible=False)
    return parts


def _results() -> dict[str, Any]:
    parts: dict[str, Any] = {"status": gr.HTML(message_html(_START), elem_id="xd-status")}
    parts["result"] = gr.HTML("", elem_id="xd-result", min_height=160)
    with gr.Row(visible=False, elem_id="xd-tools") as parts["tools"]:
        parts["check"] = gr.Button("Can these maps be trusted?", variant="primary", size="sm", min_width=190)
        parts["picture"] = gr.Button("Save picture (PNG)", size="sm", min_width=130)
        parts["arrays"] = gr.Button("Save arrays (ZIP)", size="sm", min_width=130)
        parts["json"] = gr.Button("Save JSON", size="sm", min_width=130)
    parts["checks"] = gr.HTML("", elem_id="xd-checks")
    parts["payload"] = gr.Textbox(visible="hidden", label="File")
    return parts


def _connect(page: Page, models: Models, parts: dict[str, Any]) -> None:
    do = Handlers(models, parts)
    every = {one for name, one in parts.items() if name != "offered"}
    one_by_one = {"concurrency_id": "models", "concurrency_limit": 1}
    quiet = one_by_one | {"show_progress": "minimal", "show_progress_on": parts["result"]}
    session, model, chosen = parts["session"], parts["model"], [parts["methods"], parts["more"]]
    wanted = [parts[name] for name in ("classes", "others", "texts", "contrast", "methods", "more", "seed")]

    def then_explain(event: Any) -> Any:
        return event.success(do.explained, [session, *wanted], every, api_visibility="private", **quiet)

    private = {"api_visibility": "private"}
    seen = [session, model, *chosen]
    dropped = parts["file"].upload(do.uploaded, [parts["file"], *seen], every, api_name="see", **quiet)
    sampled = parts["samples"].select(do.sampled, seen, every, **private, **quiet)
    for event in (dropped, sampled):
        then_explain(event).success(None, None, None, js=_REVEAL, **private)
    then_explain(model.input(do.changed, seen, every, api_name="model", **quiet))
    concept = [parts["examples"], parts["name"], session, model]
    then_explain(parts["examples"].upload(do.conceived, concept, every, **private, **quiet))
    then_explain(parts["drop"].click(do.dropped, [session], every, **private, **quiet))
    changes = [parts[name].input for name in ("classes", "others", "contrast", "methods", "more")]
    gr.on(
        [*changes, parts["texts"].submit, parts["texts"].blur, parts["seed"].submit],
        do.explained,
        [session, *wanted],
        every,
        api_name="explain",
        trigger_mode="always_last",
        **quiet,
    )
    shown_on = {"show_progress": "minimal", "show_progress_on": parts["checks"]}
    parts["check"].click(do.check, [session], every, **private, **one_by_one, **shown_on)
    for kind in ("picture", "arrays", "json"):
        made = parts[kind].click(do.saver(kind), [session], every, **private, **one_by_one, show_progress="hidden")
        made.success(None, [parts["payload"]], None, js=_SAVE, api_visibility="private")
    page.unload(page.forget)
