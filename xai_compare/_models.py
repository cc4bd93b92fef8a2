"""The model that is explained, and its preprocessing."""

import copy
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from adapters.models import OutputChoice, add_tensor, placement_of
from quantus_metrics._outputs import read

from ._checkpoint import load_weights
from ._names import close_names
from ._pretrained import config_for, from_pretrained

FORMS = "digits, timm:NAME, torchvision:NAME, transformers:NAME, python:MODULE:FUNCTION or a folder of a saved model"
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model with its preprocessing and labels.

    Attributes:
        model: Maps images (batch, channels, height, width) to logits, in evaluation mode.
        name: For the report.
        transform: Preprocesses an image; None: the data are tensors.
        mean: The mean of each channel that the transform subtracts; None: unknown.
        std: The standard deviation that it divides by.
        labels: The classes' names, or none.
        output: Which tensor of what it returns the logits are; None: by name.
        weights: Where they come from: "pretrained", "random" or a file; empty where that is not known.
    """

    model: nn.Module
    name: str
    transform: Transform | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    labels: Sequence[str] = ()
    output: OutputChoice = None
    weights: str = ""


def load_model(name: str, pretrained: bool, checkpoint: str, options: Mapping[str, Any]) -> Subject:
    """Load a model by its name.

    Raises:
        ValueError: if there is no such model, or its weights cannot be loaded.
    """
    kind, _, rest = name.partition(":")
    makers = {"digits": _digits, "timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
    makers["python"] = _python
    if kind not in makers and Path(name).is_dir():
        kind, rest, pretrained = "folder", name, True
        makers["folder"] = _folder
    if kind not in makers or bool(rest) == (kind == "digits"):
        raise ValueError(f"Expected `model` to be one of {FORMS}; got {name!r}.")
    try:
        subject = makers[kind](rest, pretrained, options)
        if checkpoint:
            load_weights(subject.model, Path(checkpoint))
        known = checkpoint or ("pretrained" if pretrained or kind == "digits" else "" if kind == "python" else "random")
        subject = replace(subject, weights=known)
    except ModuleNotFoundError as error:
        raise ValueError(f"Model {name!r} needs {error.name}, which is not installed.") from error
    except Exception as error:
        weights = f" with the weights of {checkpoint}" if checkpoint else " with pretrained weights" * pretrained
        close = _close_models(kind, rest)
        raise ValueError(f"Model {name!r}{close} cannot be loaded{weights}: {type(error).__name__}: {error}") from error
    return subject


def _close_models(kind: str, name: str) -> str:
    """Models of a library that may have been meant by a name that it does not have."""
    if kind not in ("timm", "torchvision"):
        return ""
    known = importlib.import_module("timm" if kind == "timm" else "torchvision.models").list_models()
    return "" if name.partition(".")[0] in known else close_names(name, known)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            add_tensor(digest, value, f"{name} {value.dtype} {tuple(value.shape)}")
    return digest.hexdigest()


def moved(model: nn.Module, device: str, dtype: str) -> nn.Module:
    """The model itself if it has this device and dtype, else a copy that has."""
    here = placement_of(model)
    wanted = getattr(torch, dtype) if dtype else here.dtype
    there, now = torch.device(device), here.device or torch.device("cpu")
    same = now.type == there.type and there.index in (None, now.index)
    return model if same and here.dtype == wanted else copy.deepcopy(model).to(there, wanted)


class PlainLogits(nn.Module):
    """The outputs of a model in float32, from inputs of any float type: what Captum and Quantus expect."""

    def __init__(self, model: nn.Module, output: OutputChoice = None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs (batch, ...)."""
        outputs = read(self.model(placement_of(self.model).moved(inputs)), inputs, self.output)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _digits(_: str, pretrained: bool, options: Mapping[str, Any]) -> Subject:
    from torchvision.transforms.v2 import functional as images

    from . import digit_scenes, digit_vit

    side = digit_scenes.CANVAS

    def transform(image: Image.Image) -> Tensor:
        pixels = images.to_image(image.convert("L").resize((side, side)))
        return torch.as_tensor(images.to_dtype(pixels, torch.float32, scale=True))

    return Subject(
        digit_vit.load(**options), "the bundled ViT for digit scenes", transform, labels=[str(i) for i in range(10)]
    )


def _timm(name: str, pretrained: bool, options: Mapping[str, Any]) -> Subject:
    import timm

    model = timm.create_model(name, pretrained=pretrained, **options)
    data: Any = timm.data
    config = data.resolve_model_data_config(model)
    if config["input_size"][0] != (channels := options.get("in_chans", config["input_size"][0])):
        config |= {name: (sum(config[name]) / len(config[name]),) * channels for name in ("mean", "std")}
    labels = _labels_of_timm(model, data)
    return Subject(model, f"timm {name}", data.create_transform(**config), config["mean"], config["std"], labels)


def _labels_of_timm(model: Any, data: Any) -> Sequence[str]:
    """The names that were saved with a model's weights, else ImageNet's, if it has as many classes as one of them."""
    saved = model.pretrained_cfg.get("label_names") or ()
    if saved and len(saved) == model.num_classes:
        described = model.pretrained_cfg.get("label_descriptions") or {}
        return [described.get(name, name) for name in saved]
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return ()
    names = data.ImageNetInfo(subset)
    return [names.index_to_description(index) for index in range(names.num_classes())]


def _torchvision(name: str, pretrained: bool, options: Mapping[str, Any]) -> Subject:
    from torchvision.models import get_model, get_model_weights

    weights = get_model_weights(name).DEFAULT
    model = get_model(name, weights=weights if pretrained else None, **options)
    transform = weights.transforms()
    names = weights.meta.get("categories", ())
    labels = names if pretrained or options.get("num_classes", len(names)) == len(names) else ()
    return Subject(model, f"torchvision {name}", transform, transform.mean, transform.std, labels)


def _transformers(name: str, pretrained: bool, options: Mapping[str, Any]) -> Subject:
    library: Any = importlib.import_module("transformers")
    config_for(name, "IMAGE_CLASSIFICATION", "classify images")
    processor = library.AutoImageProcessor.from_pretrained(name)
    make = library.AutoModelForImageClassification
    if pretrained:
        model = from_pretrained(make, name, **options)
    else:
        model = make.from_config(library.AutoConfig.from_pretrained(name, **options))

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    return Subject(model, f"transformers {name}", transform, mean, std, labels)


def _folder(path: str, pretrained: bool, options: Mapping[str, Any]) -> Subject:
    """A model that timm or transformers saved, with the weights that lie there."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError("the folder has no config.json, as `save_pretrained` and timm write it")
    if "architecture" in json.loads(file.read_text("utf-8")):
        return _timm(f"local-dir:{path}", pretrained, options)
    return _transformers(path, pretrained, options)


def python_function(path: str) -> Callable[..., Any]:
    """The function of MODULE:FUNCTION, where the module may be a file."""
    where, _, function = path.rpartition(":")
    if not where:
        raise ValueError("it has the form python:MODULE:FUNCTION, where MODULE may be a file ending in .py")
    if not where.endswith(".py"):
        return getattr(importlib.import_module(where), function)  # type: ignore[no-any-return]
    file = Path(where).resolve()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"{where} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, module)  # so that what it makes can be copied and pickled
    sys.path.insert(0, str(file.parent))  # as when it is run as a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return getattr(module, function)  # type: ignore[no-any-return]


def _python(path: str, pretrained: bool, options: Mapping[str, Any]) -> Subject:
    made = python_function(path)(**options)
    model, transform = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise TypeError(f"the function returned {type(model)}, not a torch.nn.Module or one with a transform")
    return Subject(model, path, transform)
