"""The transformers of torchvision."""

from collections.abc import Callable, Iterator
from functools import partial

import torchvision
from torch import nn

from .cases import CLASSES, Case, Entry, built, case, noise


def torchvision_entries() -> Iterator[Entry]:
    models = torchvision.models
    swin = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": [2, 2], "patch_size": [4, 4]}
    choices: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=CLASSES),
        "swin": lambda: models.SwinTransformer(**swin, num_classes=CLASSES),
        "swin_v2": lambda: models.SwinTransformer(
            **swin,
            num_classes=CLASSES,
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
        ),
        "maxvit": lambda: models.MaxVit((64, 64), 16, 2, [16, 16], [1, 1], 8, 0.0, num_classes=CLASSES),
    }
    for name, build in choices.items():
        size = 64 if name == "maxvit" else 32
        yield Entry("torchvision", name, partial(image_case, build, size))


def image_case(build: Callable[[], nn.Module], size: int = 32) -> Case:
    return case(built(build), noise(2, 3, size, size))
