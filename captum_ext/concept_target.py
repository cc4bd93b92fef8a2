"""A concept as a target: a direction in the latent space instead of a class."""

from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.checks import positive_int
from adapters.models import OutputChoice
from adapters.recording import latents_of

Similarity = Literal["dot", "cosine", "l2"]
Latent = Literal["head", "output"] | nn.Module | None


class ConceptTarget:
    """The similarity of an image's latent `l` to a concept's vector `l_c`, to be explained instead of a logit.

    `g(l, l_c)` is `l . l_c` (dot), the cosine of the angle between them (cosine), or `-||l - l_c||` (l2).
    The latent is what the model's prediction comes from: what the head receives of a classifier, what the model returns
    where no head can be told, or what `latent` says.

    Source: Brocki et al. 2024, section 3.2, equations 3 and 4.
    Differs from the paper: none; the paper uses the dot product.

    Args:
        vector: (channels,), the concept in the latent space.
        similarity: "dot", "cosine" or "l2".
        latent: What the vector is compared with: "head", what the model's head receives; "output", what the model
            returns, as of an encoder with its projection; or a module, what it returns. None: the head's input or the
            output, whichever has the vector's width.

    Raises:
        TypeError: if `vector` is not a floating-point tensor, or `latent` is none of these.
        ValueError: if `vector` is not 1-D and finite, or `similarity` is unknown.

    Example:
        >>> import timm, torch
        >>> from captum_ext import CDAM, ConceptTarget
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> concept = ConceptTarget.from_examples(model, torch.randn(3, 3, 224, 224), similarity="cosine")
        >>> CDAM(model).attribute(torch.randn(2, 3, 224, 224), target=concept).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(self, vector: Tensor, similarity: Similarity = "dot", *, latent: Latent = None) -> None:
        if not isinstance(vector, Tensor) or not vector.is_floating_point():
            raise TypeError(f"Expected `vector` to be a floating-point tensor, got {getattr(vector, 'dtype', vector)}.")
        if vector.dim() != 1 or not bool(torch.isfinite(vector).all()):
            raise ValueError(
                f"Expected `vector` to be finite, of shape (channels,), got shape {tuple(vector.shape)}. The mean of "
                "several latents is `latents.mean(0)`."
            )
        if similarity not in get_args(Similarity):
            raise ValueError(f"Expected `similarity` to be one of {get_args(Similarity)}, got {similarity!r}.")
        if latent not in ("head", "output", None) and not isinstance(latent, nn.Module):
            raise TypeError(f"Expected `latent` to be 'head', 'output', a torch.nn.Module or None, got {latent!r}.")
        self.vector = vector.detach()
        self.similarity = similarity
        self.latent = latent

    @classmethod
    def from_examples(
        cls,
        model: nn.Module,
        images: Tensor,
        similarity: Similarity = "dot",
        *,
        additional_forward_args: Any = None,
        batch_size: int = 32,
        latent: Latent = None,
        output: OutputChoice = None,
    ) -> Self:
        """The concept that example images share: the mean of their latents (equation 3).

        Args:
            model: The model to be explained, or a function that calls it.
            images: (examples, channels, height, width), or token ids (examples, tokens).
            similarity: "dot", "cosine" or "l2".
            additional_forward_args: Further arguments of the model; tensors with one row per example are split with
                the examples.
            batch_size: Batch size for the examples, at least 1.
            latent: Where the latents are, as above; the explanation compares with the same place. None: what the head
                receives, or the output where no head can be told.
            output: Which tensor of what the model returns is its output, as for CDAM.

        Raises:
            TypeError: if `images` is not a tensor.
            ValueError: if there are no examples, or a latent is not finite.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"Expected `images` to be a tensor (examples, ...), got {type(images)}.")
        if images.dim() < 2 or len(images) == 0:
            raise ValueError(f"Expected at least one example (examples, ...), got shape {tuple(images.shape)}.")
        extra = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
        extra = () if additional_forward_args is None else extra
        batch_size = positive_int("batch_size", batch_size)
        parts, place = [], latent if isinstance(latent, nn.Module) else latent != "output"
        for first in range(0, len(images), batch_size):
            rows = slice(first, first + batch_size)
            args = (x[rows] if isinstance(x, Tensor) and x.dim() and len(x) == len(images) else x for x in extra)
            parts.append(latents_of(model, (images[rows], *args), output, place))
        latents = torch.cat(parts)
        if latents.dim() != 2 or not bool(torch.isfinite(latents).all()):
            raise ValueError(
                f"Expected finite latents (examples, channels), the model gave shape {tuple(latents.shape)}"
                f"{'' if torch.isfinite(latents).all() else ' with values that are not finite'}."
            )
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return cls(wide.mean(0), similarity, latent="head" if latent is None else latent)

    def score(self, latents: Tensor) -> Tensor:
        """Similarity (samples,) of latents (samples, channels), in float32 or wider.

        Raises:
            ValueError: if the latents have another width than the vector.
        """
        self.check_width(latents)
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        vector = self.vector.to(latents)
        if self.similarity == "dot":
            return (latents * vector).sum(1)
        if self.similarity == "cosine":
            return F.cosine_similarity(latents, vector[None], dim=1)
        distance: Tensor = torch.linalg.vector_norm(latents - vector, dim=1)
        return -distance

    def check_width(self, latents: Tensor) -> None:
        """See whether latents are (samples, channels) of the vector's width.

        Raises:
            ValueError: if they are not.
        """
        if latents.dim() != 2 or latents.shape[1] != self.vector.shape[0]:
            raise ValueError(
                f"The concept's vector has {self.vector.shape[0]} channels, but the model's latents have shape "
                f"{tuple(latents.shape)}. Make the concept with ConceptTarget.from_examples and the same model."
            )

    def __repr__(self) -> str:
        return f"ConceptTarget({self.vector.shape[0]} channels, similarity={self.similarity!r})"
