"""pytorch-grad-cam's `reshape_transform`, read from the model instead of written by hand."""

import contextlib
from dataclasses import dataclass

from torch import Tensor, nn

from ._anatomy import find_anatomy
from ._layout import known_grid
from ._site import TokenAnatomy


@dataclass(frozen=True)
class ReshapeTransform:
    """Turns a transformer layer's activations (batch, tokens, channels) into (batch, channels, height, width)."""

    anatomy: TokenAnatomy
    image_size: tuple[int, int] | None

    def __call__(self, activations: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The patch tokens on their grid, prefix tokens dropped.

        Raises:
            ValueError: if the tokens do not form the grid.
        """
        tokens = activations[0] if isinstance(activations, tuple) else activations
        if tokens.dim() != 3:
            raise ValueError(
                f"Expected the activations of a transformer layer, (batch, tokens, channels), got shape "
                f"{tuple(tokens.shape)}. Choose a target layer such as the last block's norm."
            )
        patches = tokens[:, self.anatomy.prefix :]
        return patches.transpose(1, 2).reshape(len(tokens), -1, *self._grid(tokens.shape[1]))

    def _grid(self, count: int) -> tuple[int, int]:
        if self.image_size is not None:
            return known_grid(count, self.anatomy, self.image_size)
        if self.anatomy.image_size is not None:
            with contextlib.suppress(ValueError):  # the image has another size than the model was made for
                return known_grid(count, self.anatomy, self.anatomy.image_size)
        patches = count - self.anatomy.prefix
        side = round(max(patches, 0) ** 0.5)
        if side * side == patches:
            return side, side
        raise ValueError(
            f"{count} tokens less {self.anatomy.prefix} prefix tokens are {patches} patches, which is not a square "
            f"grid. Say how large the images are: reshape_transform_for(model, image_size=(height, width))."
        )


def reshape_transform_for(model: nn.Module, image_size: tuple[int, int] | None = None) -> ReshapeTransform:
    """The `reshape_transform` that pytorch-grad-cam needs for a Vision Transformer.

    Reads the number of prefix tokens (class, distillation, registers) and the patch size from the model; the grid
    follows from the activations.

    Args:
        model: A Vision Transformer of timm, torchvision, transformers or DINO, or a model that holds one.
        image_size: Height and width in pixels. Without it, the model's own image size, or a square.

    Returns:
        A callable from (batch, tokens, channels) to (batch, channels, height, width).

    Raises:
        TypeError: if `model` is not a module.
        ValueError: if the model holds no known Vision Transformer.

    Example:
        >>> import timm
        >>> from pytorch_grad_cam import GradCAM
        >>> from adapters import reshape_transform_for
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> cam = GradCAM(model, [model.blocks[-1].norm1], reshape_transform=reshape_transform_for(model))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected `model` to be a torch.nn.Module, got {type(model)}.")
    anatomy = find_anatomy(model)
    if not anatomy.reads_images:
        raise ValueError(f"{anatomy.family} reads text, so its tokens form no image grid.")
    return ReshapeTransform(anatomy, image_size)
