"""What a detector of transformers returns, as a list with one dictionary for each image."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class PerImage(nn.Module):
    """A model whose output is taken apart into its images, as the targets of pytorch-grad-cam are asked one by one.

    `[{name: value[i] for name, value in model(images)} for i]`: of what a model of transformers returns each tensor
    that has the batch as its first axis.

    Args:
        model: The model, that returns a dictionary or a ModelOutput. It is not changed.

    Raises:
        TypeError: when it runs, if the model returns something else.

    Example:
        >>> import torch
        >>> from pytorch_grad_cam import GradCAM
        >>> from transformers import YolosConfig, YolosForObjectDetection
        >>> from adapters import PerImage, reshape_transform_for
        >>> from captum_ext import DetectionTarget
        >>> sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = YolosForObjectDetection(YolosConfig(**sizes, image_size=[64, 64])).eval()
        >>> images, layers = torch.randn(2, 3, 64, 64), [model.vit.encoder.layer[-1].layernorm_before]
        >>> with GradCAM(PerImage(model), layers, reshape_transform_for(model)) as cam:
        ...     maps = cam(images, targets=[DetectionTarget(query=17, label=1)] * 2)
        >>> maps.shape
        (2, 64, 64)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """One dictionary for each of the images (batch, channels, height, width)."""
        output: Any = self.model(images)
        if not isinstance(output, Mapping):
            raise TypeError(f"Expected the model to return a dictionary or a ModelOutput, got {type(output)}.")
        parts = {n: x for n, x in output.items() if isinstance(x, Tensor) and x.dim() and len(x) == len(images)}
        return [{name: value[sample] for name, value in parts.items()} for sample in range(len(images))]
