"""The live page: explains pictures in a browser. `python -m xai_discern.app` serves the bundled model."""

import os
import threading
import typing
from collections.abc import Callable, Sequence

if typing.TYPE_CHECKING:
    from ._app_page import Page

_MISSING = "The page needs {}: pip install 'xai-discern[app]'."


def build(
    models: Sequence[str] = ("digits",), *, pretrained: bool | None = None, device: str = "", any_model: bool = False
) -> "Page":
    """The page as `gradio.Blocks`; `build().launch()` serves it on this machine, and on a host of demos as its app.

    Args:
        models: Those offered, as for `xai-discern explain --model`. The first one is loaded at once.
        pretrained: Load the weights that the library has; None: those of transformers and of folders only.
        device: Where they run; empty: on a GPU, if there is one.
        any_model: Whether users may name other models of timm, torchvision and transformers.

    Raises:
        ModuleNotFoundError: if gradio is not installed.
        TypeError: if `models` is not a list of names.
        ValueError: if a name is wrong, or the first model cannot be loaded.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before it is imported
    try:
        from ._app_models import Models
        from ._app_page import page_of
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING.format(error.name)) from error
    return page_of(Models(models, pretrained, device, any_model=any_model))


def serve(
    page: "Page",
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    browser: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a page until the process is stopped.

    Args:
        page: As `build` makes it.
        host: The address to listen at; another than 127.0.0.1 lets others in.
        port: The port.
        browser: Whether a browser is opened.
        say: Takes the line that says where the page is.

    Raises:
        OSError: if the port is taken.
    """
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port, inbrowser=browser, quiet=True, prevent_thread_lock=True, share=False
        )
        say(f"Open {url}  (Ctrl-C stops it)")
        threading.Event().wait()
    except OSError as error:
        raise OSError(f"Port {port} of {host} is taken, or cannot be used: choose another by --port.") from error
    finally:
        page.close()


if __name__ == "__main__":
    build().launch()
