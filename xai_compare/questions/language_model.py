"""A language model of transformers, and how it is asked."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .._pretrained import from_pretrained


def loaded(name: str, with_image: bool, device: str, dtype: str) -> tuple[nn.Module, Any]:
    """The model in evaluation mode, and its processor, or its tokenizer for text alone.

    Raises:
        ModuleNotFoundError: if transformers is not installed.
        OSError: if there is no such model.
        ValueError: if it is no model that answers, some of its weights are missing, or there is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {device!r} cannot be used: {error}") from error
    try:
        import transformers
        from transformers.models.auto import modeling_auto
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'xai-discern[transformers]'.") from error
    auto: Any = transformers
    kinds = {
        "AutoModelForImageTextToText": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    }
    config = auto.AutoConfig.from_pretrained(name)
    fitting = [kind for kind, known in kinds.items() if type(config) in known]
    if with_image and "AutoModelForImageTextToText" not in fitting:
        raise ValueError(f"{name} is a {config.model_type} model, which takes no images. Leave IMAGE out.")
    if not fitting:
        raise ValueError(f"{name} is a {config.model_type} model, which does not answer in words.")
    model = from_pretrained(getattr(auto, fitting[0]), name, dtype=dtype)
    processor = (auto.AutoProcessor if with_image else auto.AutoTokenizer).from_pretrained(name)
    return model.to(device).eval(), processor


def asked(model: Any, processor: Any, question: str, image: Image.Image | None) -> tuple[dict[str, Any], bool]:
    """What the model reads, on its device, and whether a chat template was applied."""
    template = getattr(processor, "chat_template", None) is not None
    if template:
        parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
        parts = parts if image is None else [{"type": "image", "image": image}, *parts]
        message = {"role": "user", "content": question if image is None else parts}
        made = processor.apply_chat_template(
            [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    elif image is None:
        made = getattr(processor, "tokenizer", processor)(question, return_tensors="pt")
    else:
        made = _with_image(model, processor, question, image)
    found = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in made.items()}
    return {name: x.to(model.dtype) if _floats(x) else x for name, x in found.items()}, template


def _with_image(model: Any, processor: Any, question: str, image: Image.Image) -> Any:
    """A question after the tokens of an image, which some processors add and some expect in the text."""
    token = getattr(processor, "image_token", None)
    ids = {
        getattr(one, name, None)
        for one in (processor, model.config)
        for name in ("image_token_id", "image_token_index")
    }
    ids -= {None}
    texts = [question] if token is None or token in question else [question, f"{token}\n{question}"]
    for text in texts:
        try:
            made = processor(text=text, images=image, return_tensors="pt")
        except ValueError:  # the number of images in the text is not that of the images
            if text == texts[-1]:
                raise
            continue
        if not ids or text == texts[-1] or bool(torch.isin(made["input_ids"], torch.tensor(sorted(ids))).any()):
            return made
    return None


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def seen_image(processor: Any, inputs: dict[str, Any], image: Image.Image) -> Any:
    """The image as the model saw it; None where what was cut off is not known."""
    pixels, by = inputs.get("pixel_values"), processor.image_processor
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        return image  # tiles or patches of all of it
    if pixels.shape[:2] != (1, 3):
        return None if getattr(by, "do_center_crop", False) else image
    if getattr(by, "do_normalize", False):
        mean, std = (torch.tensor(x, device=pixels.device).view(-1, 1, 1) for x in (by.image_mean, by.image_std))
        return (pixels[0].float() * std + mean).clamp(0, 1)
    return pixels[0].float().clamp(0, 1)
