"""pytorch-grad-cam's `reshape_transform`, read from the model instead of written by hand."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.evaluation_mode import evaluation_mode
from ..models.example_inputs import own_sizes
from ..models.hooks import watch_outputs
from ..models.outputs import OutputChoice
from ..models.unwrapping import modules_of
from ..recording import Grid, TokenPass

_USUAL_SIZE = 224


@dataclass(frozen=True)
class ReshapeTransform:
    """Turns a transformer layer's activations (batch, tokens, channels) into (batch, channels, height, width).

    Attributes:
        grid: How the patches lay in a pass with images of `image_size`.
        count: How many tokens there were.
        image_size: Height and width of these images in pixels.
        size_was_given: Are other numbers of tokens an error?
    """

    grid: Grid
    count: int
    image_size: tuple[int, int]
    size_was_given: bool

    def __call__(self, activations: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The patch tokens on their grid, other tokens dropped.

        Raises:
            ValueError: if the tokens do not form the grid.
        """
        tokens = activations[0] if isinstance(activations, tuple) else activations
        if tokens.dim() != 3:
            raise ValueError(
                f"Expected the activations of a transformer layer, (batch, tokens, channels), got shape "
                f"{tuple(tokens.shape)}. Choose a target layer such as the last block's norm."
            )
        if tokens.shape[1] == self.count:
            patches = tokens[:, self.grid.order.to(tokens.device)]
            return torch.unflatten(patches.transpose(1, 2), 2, self.grid.sizes)
        side = self._side(tokens.shape[1])
        first = int(self.grid.order.min())
        return tokens[:, first : first + side * side].transpose(1, 2).reshape(len(tokens), -1, side, side)

    def _side(self, count: int) -> int:
        """Rows and columns of images of another size."""
        others = self.count - len(self.grid.order)
        if self.size_was_given:
            raise ValueError(
                f"The layer holds {count} tokens, but with images of {self.image_size[0]} x {self.image_size[1]} "
                f"this model has {self.count}: {others} others and a {' x '.join(map(str, self.grid.sizes))} grid of "
                "patches."
            )
        patches = count - others
        side: int = math.isqrt(max(patches, 0))
        if side * side == patches:
            return side
        raise ValueError(
            f"{count} tokens less {others} that are no patches are {patches} patches, which is not a square "
            "grid. Say how large the images are: reshape_transform_for(model, image_size=(height, width))."
        )


def reshape_transform_for(
    model: nn.Module, image_size: tuple[int, int] | None = None, *, output: OutputChoice = None
) -> ReshapeTransform:
    """The `reshape_transform` that pytorch-grad-cam needs for a Vision Transformer.

    Seen in one pass with an empty image: which tokens are patches, and on what grid they lie.

    Args:
        model: A Vision Transformer, or a model that holds one.
        image_size: Height and width in pixels. Without it, the model's own image size where it says one, or 224; images
            of another size must then have a square grid.
        output: Which tensor of what the model returns is the prediction, as for CDAM.

    Returns:
        A callable from (batch, tokens, channels) to (batch, channels, height, width).

    Raises:
        TypeError: if `model` is not a module.
        ValueError: if there is no attention in it, if it does not take such images, or if its tokens lie on no grid.

    Example:
        >>> import timm
        >>> from pytorch_grad_cam import GradCAM
        >>> from adapters import reshape_transform_for
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> cam = GradCAM(model, [model.blocks[-1].norm1], reshape_transform=reshape_transform_for(model))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected `model` to be a torch.nn.Module, got {type(model)}.")
    run, size = _empty_pass(model, image_size, output)
    grid = run.grid()
    if grid is None:
        raise ValueError(
            f"The tokens of this {type(model).__name__}, of shape {tuple(run.tokens.shape)}, lie on no image grid. A "
            "reshape_transform must be written by hand for it."
        )
    if grid.coarser:
        raise ValueError(
            f"The tokens of this {type(model).__name__}, of shape {tuple(run.tokens.shape)}, come from feature maps of "
            f"{1 + len(grid.coarser)} sizes, not from one. Take a layer that returns a feature map as target layer, "
            "and no reshape_transform."
        )
    return ReshapeTransform(grid, run.count, size, image_size is not None)


def target_layer_for(
    model: nn.Module, image_size: tuple[int, int] | None = None, *, output: OutputChoice = None
) -> nn.Module:
    """The module whose output is the tokens that enter the last attention, as target layer of a CAM.

    Args:
        model: As for `reshape_transform_for`.
        image_size: As for `reshape_transform_for`.
        output: As for `reshape_transform_for`.

    Raises:
        ValueError: as for `reshape_transform_for`, or if no module returns these tokens.

    Example:
        >>> import timm
        >>> from adapters import target_layer_for
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> target_layer_for(model) is model.blocks[-1].norm1
        True
    """
    run, size = _empty_pass(model, image_size, output)
    found: list[nn.Module] = []

    def note(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.shape == run.tokens.shape and torch.equal(output, run.tokens):
            found.append(module)

    with watch_outputs(modules_of(model), note), torch.no_grad(), evaluation_mode(model):
        model(_empty_image(model, size))
    if not found:
        raise ValueError(f"No module of this {type(model).__name__} returns the tokens of its last attention.")
    return found[-1]


def _empty_pass(
    model: nn.Module, image_size: tuple[int, int] | None, output: OutputChoice
) -> tuple[TokenPass, tuple[int, int]]:
    height, width = image_size or next(own_sizes(model), (_USUAL_SIZE, _USUAL_SIZE))
    size = height, width
    image = _empty_image(model, size)
    try:
        return TokenPass(model, (image,), output=output), size
    except Exception as error:
        if _takes(model, image):
            raise
        raise ValueError(
            f"This {type(model).__name__} does not take images of shape {tuple(image.shape)} ({error}). Pass the size "
            "that it takes, as `image_size=(height, width)`. For a model of anything else than images, such as videos, "
            "a reshape_transform must be written by hand."
        ) from error


def _takes(model: nn.Module, image: Tensor) -> bool:
    """Does the model run on it?"""
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(image)
    except Exception:  # of any kind: models check sizes in many ways
        return False
    return True


def _empty_image(model: nn.Module, size: tuple[int, int]) -> Tensor:
    """Some image with the channels of the first convolution; its values do not matter."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    ramp = torch.linspace(-1, 1, channels * size[0] * size[1], device=like.device, dtype=torch.float32)
    return ramp.view(1, channels, *size).to(like.dtype)
