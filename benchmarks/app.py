"""How long the page of `xai-discern app` takes for another class of the same picture.

    .venv/bin/python benchmarks/app.py --threads 2

A ViT-S on 224 x 224 pixels with random weights, as weights do not matter here. Measured are explaining and drawing
alone, and the whole way of a request through the server, as a browser on the same machine makes it. Each round asks for
two other classes than the one before.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gradio_client import Client, handle_file
from PIL import Image

from xai_discern._app_models import Models
from xai_discern._app_picture import accepted
from xai_discern._app_result import result_html
from xai_discern._app_session import Wanted, explain, see
from xai_discern.app import build

MODEL = "timm:vit_small_patch16_224"
METHODS = (("cdam",), ("cdam", "integrated-cdam", "token-ablation", "attention"), ("gradcam",))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The time that the page takes for another class.")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        rows = [*explaining(args.model, file, args.repeats), *serving(args.model, file, args.repeats)]
    print(f"{args.model}, {args.threads} threads, torch {version('torch')}, gradio {version('gradio')}\n")
    print("| what | methods | first, s | others, s: median (quartiles; slowest) |\n|---|---|---|---|")
    for what, methods, first, others in rows:
        low, middle, high = np.quantile(others, [0.25, 0.5, 0.75])
        spread = f"{middle:.2f} ({low:.2f} to {high:.2f}; {max(others):.2f})"
        print(f"| {what} | {', '.join(methods)} | {first:.2f} | {spread} |")


def explaining(name: str, file: Path, repeats: int) -> list[tuple[str, tuple[str, ...], float, list[float]]]:
    """Without a server: two maps of each method, and their pictures."""
    seen = see(Models([name])[name], accepted(file.name, file.read_bytes()))
    rows = []
    for methods in METHODS:

        def answer(at: int, methods: tuple[str, ...] = methods) -> None:
            result_html(explain(seen, Wanted((2 * at, 2 * at + 1), methods=methods)))

        rows.append(("explaining and drawing", methods, *timed(answer, repeats)))
    return rows


def serving(name: str, file: Path, repeats: int) -> list[tuple[str, tuple[str, ...], float, list[float]]]:
    """Through HTTP."""
    page = build([name])
    _, url, _ = page.launch(quiet=True, prevent_thread_lock=True)
    client = Client(url, verbose=False)
    rows = []
    try:
        client.predict(handle_file(file), name, ["cdam"], [], api_name="/see")
        for methods in METHODS:

            def answer(at: int, methods: tuple[str, ...] = methods) -> None:
                given = ([], [str(2 * at), str(2 * at + 1)], "", False, list(methods), [], 0)
                found = client.predict(*given, api_name="/explain")
                if "xd-map" not in str(found):
                    raise RuntimeError(f"Expected maps, got {str(found)[:2000]}")

            rows.append(("a request to the server", methods, *timed(answer, repeats)))
    finally:
        page.close()
    return rows


def timed(answer: Callable[[int], None], repeats: int) -> tuple[float, list[float]]:
    """Seconds of the first call, and of the others."""
    found = []
    for at in range(repeats + 1):
        start = time.perf_counter()
        answer(at)
        found.append(time.perf_counter() - start)
    return found[0], found[1:]


if __name__ == "__main__":
    main()
