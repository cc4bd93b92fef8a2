"""The similarity of an image to a text as a target, for models that embed both."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.models import OutputChoice, evaluation_mode, output_tensor, placement_of

from .concept_target import ConceptTarget


class TextTarget(ConceptTarget):
    """The cosine similarity of an image's embedding to a text's, to be explained instead of a logit.

    `g(l) = l/||l|| . (t/||t|| - a/||a||)` with the embedding `t` of `text`, and that of `against`, if given: why this
    text and not that one. Source: a concept target (Brocki et al. 2024, section 3.2) whose vector is a text's.

    Args:
        model: A model of transformers with `get_text_features`, as CLIP, SigLIP and SigLIP 2; its image side is
            explained by `CDAM(model.get_image_features)`. Or a function from what the tokenizer returns to embeddings
            (texts, channels).
        tokenizer: The model's processor or tokenizer; or a function from a list of texts to the model's inputs.
        text: What the image is compared with.
        against: Another text, whose similarity is subtracted.
        output: Which tensor of what the text side returns is the embedding, as for CDAM.

    Raises:
        TypeError: if a text is not a string, or `model` or `tokenizer` cannot be called.
        ValueError: if the embeddings are not finite, or not (texts, channels).

    Example:
        >>> import torch
        >>> from captum_ext import CDAM, TextTarget
        >>> colours = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 0.0, 1.0]}
        >>> red = TextTarget(torch.tensor, lambda texts: [colours[text] for text in texts], "red", against="blue")
        >>> red.vector
        tensor([ 1.,  0., -1.])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        tokenizer: Callable[..., Any],
        text: str,
        against: str | None = None,
        *,
        output: OutputChoice = None,
    ) -> None:
        for name, function in (("model", model), ("tokenizer", tokenizer)):
            if not callable(function):
                raise TypeError(f"Expected `{name}` to be callable, got {type(function)}.")
        texts = [text] if against is None else [text, against]
        for name, given in zip(("text", "against"), texts, strict=False):
            if not isinstance(given, str):
                raise TypeError(f"Expected `{name}` to be a string, got {given!r}.")
        embeddings = _embedded(model, tokenizer, texts, output)
        if embeddings.dim() != 2 or len(embeddings) != len(texts):
            raise ValueError(f"Expected embeddings ({len(texts)}, channels), got shape {tuple(embeddings.shape)}.")
        own, *others = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
        super().__init__(own - others[0] if others else own, "cosine", latent="output")
        self.text, self.against = text, against

    def score(self, latents: Tensor) -> Tensor:
        """Similarities (samples,) of embeddings (samples, channels), or their differences."""
        self.check_width(latents)
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return F.normalize(latents, dim=1) @ self.vector.to(latents)

    def __repr__(self) -> str:
        return f"TextTarget({self.text!r}, against={self.against!r})"


def _embedded(model: Any, tokenizer: Any, texts: list[str], output: OutputChoice) -> Tensor:
    with torch.no_grad(), evaluation_mode(model):
        if not hasattr(model, "get_text_features"):
            return output_tensor(model(tokenizer(texts)), output)
        siglip = str(getattr(model.config, "model_type", "")).startswith("siglip")  # trained on texts of full length
        inputs = tokenizer(text=texts, return_tensors="pt", padding="max_length" if siglip else True, truncation=True)
        device = placement_of(model).device if isinstance(model, nn.Module) else None
        return output_tensor(model.get_text_features(**{name: x.to(device) for name, x in inputs.items()}), output)
