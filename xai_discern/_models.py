"""What can be explained, and how."""

import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

_SHOWN = 40  # names of a library
_FORMS = (
    ("timm:NAME", "timm", "images"),
    ("torchvision:NAME", "torchvision", "images"),
    (
        "transformers:NAME",
        "transformers",
        "images; --text: CLIP, SigLIP; --text-file: texts; --ask: answers",
    ),
    ("FOLDER", "", "a model that timm or transformers saved"),
    ("digits", "", "the bundled ViT that reads scenes of handwritten digits"),
    ("python:MODULE:FUNCTION", "", "a function that returns a model, or a model and a transform of PIL images"),
)
_HOW = (
    ("class token or attention pooling (ViT, DeiT, DINO, CaiT, BERT)", "cdam and all others, about one forward pass"),
    ("average pooling, windows, stages (BEiT, Swin, MaxViT, Hiera)", "cdam by autograd; attention maps do not fit all"),
    ("decoders (GPT-2, Llama, Qwen, Gemma), image and text models", "cdam, attention, rollout, relevance; --ask"),
    ("CLIP, SigLIP", "cdam with --text"),
    ("CNNs (ResNet, ConvNeXt, EfficientNet)", "gradcam, layercam, ig, ...; cdam refuses models without attention"),
)


def listed(pattern: str) -> Iterator[str]:
    """What can be explained, models of a name, or how one model is explained.

    Args:
        pattern: A part of names; a model as for `explain`; or empty.

    Raises:
        ValueError: if there is no such model.
    """
    if ":" in pattern:
        yield from _way(pattern)
    elif pattern:
        yield from _names(pattern)
    else:
        yield "Models of --model:"
        for form, library, what in _FORMS:
            missing = f" (not installed: pip install 'xai-discern[{library}]')" if not _has(library) else ""
            yield f"  {form:24} {what}{missing}"
        yield from ("", "How they are explained:", *(f"  {kind:64} {how}" for kind, how in _HOW))
        yield from ("", "`xai-discern models vit_small` finds names; `xai-discern models timm:NAME` tries a model.")


def _has(library: str) -> bool:
    return not library or importlib.util.find_spec(library) is not None


def _names(pattern: str) -> Iterator[str]:
    """Models whose names hold the pattern, else close ones."""
    nothing = True
    for library, module in (("timm", "timm"), ("torchvision", "torchvision.models")):
        if not _has(library):
            continue
        known: list[str] = importlib.import_module(module).list_models()
        found = [name for name in known if pattern in name] or difflib.get_close_matches(pattern, known, 5, 0.7)
        nothing &= not found
        yield from (f"{library}:{name}" for name in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield f"... {len(found)} in all"
    if nothing:
        raise ValueError(f"No model of timm or torchvision has a name like {pattern!r}.")


def _way(name: str) -> Iterator[str]:
    """How one model is explained, tried on random weights."""
    import torch

    from captum_ext import CDAM
    from xai_compare._input_layout import input_layout
    from xai_compare._models import load_model

    subject = load_model(name, name.startswith("transformers:"), "", {})
    model = subject.model.eval()
    layout = input_layout(model)
    x = torch.rand(1, layout.channels or 3, *_sides(subject, layout.axes or 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = CDAM(model).path(x)
        except (ValueError, NotImplementedError) as error:
            yield f"{name}: {error}"
            return
    yield f"{name}: --method cdam works, computed by {path.way}" + f" ({path.reason})" * bool(path.reason)


def _sides(subject: Any, axes: int) -> tuple[int, ...]:
    """The size of the model's images."""
    from PIL import Image

    if subject.transform is None:
        return (224,) * axes
    return tuple(subject.transform(Image.new("RGB", (256, 256))).shape[1:])
