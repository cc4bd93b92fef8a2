"""Pictures, and a page that is served while tests run."""

import io
import os
import socket
from contextlib import contextmanager

import numpy as np
from PIL import Image


def png(array=None, kind="PNG", **options):
    """The bytes of a picture."""
    array = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8) if array is None else array
    held = io.BytesIO()
    Image.fromarray(array).save(held, kind, **options)
    return held.getvalue()


def scene_png():
    """A scene of two digits, and which."""
    from xai_compare.digit_scenes import make_scenes

    scenes = make_scenes(1, seed=1)
    pixels = (255 * scenes.images[0, 0].clamp(0, 1)).numpy().astype(np.uint8)
    return png(pixels), scenes.labels[0].tolist()


@contextmanager
def served(page):
    """The address of a page, at a port that was free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        page.launch(server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True, share=False)
        yield f"http://127.0.0.1:{port}/"
    finally:
        page.close()


def files_below(folder):
    """All files that are not empty."""
    return [
        os.path.join(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if os.path.getsize(os.path.join(where, name))
    ]
