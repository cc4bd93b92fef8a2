"""The model that a request names: of images, of images and texts, or of texts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from adapters.models import output_tensor, placement_of
from xai_compare._input_layout import input_layout
from xai_compare._models import Subject, load_model
from xai_compare._pictures import Picture, Pictures
from xai_compare._pretrained import config_for, from_pretrained

from ._request import Request
from ._targets import class_named


@dataclass(frozen=True)
class ImageModel:
    """A model with what its inputs pass through.

    Attributes:
        model: The model.
        run: What is explained: the model itself, or its image side.
        pictures: Make inputs of pictures.
        subject: Its names, labels and normalisation.
        processor: Of models that compare images with texts; else None.
    """

    model: nn.Module
    run: Callable[..., Any]
    pictures: Pictures
    subject: Subject
    processor: Any = None

    def ready(self, picture: Picture) -> Tensor:
        """(1, channels, height, width), as the model takes it, on its device; photographs are turned upright."""
        upright = ImageOps.exif_transpose(picture) if isinstance(picture, Image.Image) else picture
        return placement_of(self.model).moved(self.pictures.ready(upright)[None])

    def seen(self, x: Tensor) -> Tensor:
        """(channels, height, width) in [0, 1]: an input without its normalisation."""
        image = x[0].float().cpu()
        if self.subject.mean is not None and self.subject.std is not None:
            mean, std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (self.subject.mean, self.subject.std))
            image = image * std + mean
        elif not 0 <= float(image.min()) <= float(image.max()) <= 1:  # an unknown normalisation
            image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        return image.clamp(0, 1)

    @property
    def headless(self) -> bool:
        """Whether the outputs are features, as of a model of timm without a head."""
        return self.processor is None and getattr(self.model, "num_classes", None) == 0

    def outputs(self, x: Tensor) -> Tensor:
        """(1, classes or channels) in float32."""
        with torch.no_grad():
            return output_tensor(self.run(x), self.subject.output).float()

    def class_outputs(self, x: Tensor) -> Tensor:
        """The same.

        Raises:
            ValueError: if they are not (1, classes or channels), as those of a detector.
        """
        found = self.outputs(x)
        if found.dim() != 2:
            raise ValueError(f"Expected a model that classifies an image, got outputs {tuple(found.shape)}.")
        return found


def chances(model: nn.Module, outputs: Tensor) -> Tensor | None:
    """The probabilities (classes,) of one sample's outputs: of several labels at once each for itself.

    None for a single output, of which nothing tells whether it is a logit or a value, as of a regression.
    """
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if outputs.shape[-1] == 1 or kind == "regression":
        return None
    return outputs[0].sigmoid() if kind == "multi_label_classification" else outputs[0].softmax(0)


def top(model: nn.Module, outputs: Tensor, labels: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The classes with the largest outputs, and their probabilities, or the outputs where these are none."""
    found = chances(model, outputs)
    word, values = ("output", outputs[0]) if found is None else ("probability", found)
    ranked = values.argsort(descending=True)[:count].tolist()
    return [{"class": i, "name": class_named(i, labels), word: float(values[i])} for i in ranked]


def image_model(request: Request) -> ImageModel:
    """The model of a request about images, in evaluation mode.

    Raises:
        ValueError: if it cannot be loaded, or is not such a model.
    """
    given = request.model, request.pretrained, request.checkpoint, device_of(request.device)
    return loaded_model(*given, texts=bool(request.texts))


def loaded_model(name: str, pretrained: bool | None, checkpoint: str, device: str, *, texts: bool) -> ImageModel:
    """A model by its name, in evaluation mode.

    Args:
        name: As for `xai-compare`.
        pretrained: Load the weights that the library has; None: those of transformers and of folders only.
        checkpoint: A file of weights, or "".
        device: Where it runs.
        texts: Whether images are compared with texts.

    Raises:
        ValueError: if it cannot be loaded, or is not such a model.
    """
    kind, rest = _parts(name)
    if texts:
        return _of_images_and_texts(rest, device)
    known = (kind == "transformers" or Path(name).is_dir()) if pretrained is None else pretrained
    subject = load_model(name, known, checkpoint, {})
    model = subject.model.eval().to(device)
    return ImageModel(model, model, Pictures(subject.transform, input_layout(model)), subject)


def _parts(name: str) -> tuple[str, str]:
    """The kind of a model's name, and what transformers would call it."""
    kind, _, rest = name.partition(":")
    return kind, rest if kind == "transformers" else name


def compares_texts(name: str) -> bool:
    """Whether a model was saved as one that compares images with texts, as CLIP and SigLIP, and not as a classifier."""
    kind, rest = _parts(name)
    folder = Path(rest)
    if kind != "transformers" and not (folder / "config.json").is_file():
        return False
    if folder.is_dir() and "architecture" in json.loads((folder / "config.json").read_text("utf-8")):
        return False  # saved by timm
    import transformers

    kinds = (
        getattr(transformers, one, None) for one in transformers.AutoConfig.from_pretrained(rest).architectures or ()
    )
    return any(hasattr(one, "get_text_features") and hasattr(one, "get_image_features") for one in kinds)


def device_of(asked: str) -> str:
    """The device that was asked for, or a GPU, or the processor."""
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _of_images_and_texts(name: str, device: str) -> ImageModel:
    import transformers

    auto: Any = transformers
    model, processor = from_pretrained(auto.AutoModel, name), auto.AutoProcessor.from_pretrained(name)
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise ValueError(
            f"{name} is a {model.config.model_type} model, which does not compare images with texts, as CLIP and "
            "SigLIP do: leave --text out."
        )

    def transform(image: Any) -> Tensor:
        pixels: Tensor = processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    by = processor.image_processor
    normalised = getattr(by, "do_normalize", False)
    mean, std = (by.image_mean, by.image_std) if normalised else (None, None)
    subject = Subject(model, f"transformers {name}", transform, mean, std, weights="pretrained")
    model = model.eval().to(device)
    return ImageModel(model, model.get_image_features, Pictures(transform, input_layout(model)), subject, processor)


def text_model(request: Request) -> tuple[nn.Module, Any, Sequence[str]]:
    """The model of a request about texts in evaluation mode, its tokenizer, and the names of its classes.

    Raises:
        ValueError: if it has no weights for its head.
    """
    import transformers

    auto: Any = transformers
    name = request.model.removeprefix("transformers:")
    config_for(name, "SEQUENCE_CLASSIFICATION", "classify texts")
    model = from_pretrained(auto.AutoModelForSequenceClassification, name)
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    return model.eval().to(device_of(request.device)), auto.AutoTokenizer.from_pretrained(name), labels
