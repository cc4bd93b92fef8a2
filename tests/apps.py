"""Pictures, and a page that is served while tests run."""

import io
import os
import socket
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from tiny_tokenizer import WORDS, word_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor


def png(array=None, kind="PNG", **options):
    """The bytes of a picture."""
    array = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8) if array is None else array
    held = io.BytesIO()
    Image.fromarray(array).save(held, kind, **options)
    return held.getvalue()


def scene_png(seed=1):
    """A scene of two digits, and which."""
    from xai_compare.digit_scenes import make_scenes

    scenes = make_scenes(1, seed=seed)
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


def saved_clip(folder):
    """A tiny CLIP and its processor, saved in a folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {"vocab_size": len(WORDS), "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = sizes | {"image_size": 24, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    pixels = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = CLIPProcessor(pixels, word_tokenizer())
    clip.save_pretrained(folder)
    processor.save_pretrained(folder)
    return clip, processor
