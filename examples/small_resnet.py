"""Convolutional classifiers: a small ResNet that learns in minutes on a CPU, and those of timm and torchvision."""

import timm
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import nn


def small_resnet(classes: int, channels: int = 3) -> ResNet:
    """A ResNet of four blocks whose last features are an eighth of the image: 6 x 6 of 48 x 48 pixels.

    Args:
        classes: How many.
        channels: Those of an image.
    """
    return ResNet(
        BasicBlock,
        [1, 1, 1, 1],
        num_classes=classes,
        in_chans=channels,
        output_stride=8,
        stem_type="deep",
        stem_width=16,
        channels=(16, 32, 64, 128),
    )


def build_model(spec: str, classes: int, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """A classifier by its name.

    Args:
        spec: "small", "timm:NAME" or "torchvision:NAME".
        classes: How many. A network of another number gets a new last layer.
        channels: Those of an image.
        pretrained: Load the library's weights, by a download at the first time.

    Raises:
        ValueError: if there is no such network, or it has no such weights or channels.
    """
    library, _, name = spec.partition(":")
    if spec == "small":
        if pretrained:
            raise ValueError("Expected 'timm:NAME' or 'torchvision:NAME' with `pretrained`: 'small' has no weights.")
        return small_resnet(classes, channels)
    if library == "timm" and name:
        if not timm.is_model(name):
            raise ValueError(f"Expected the name of a model of timm, got {name!r}; timm.list_models() has them all.")
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
    if library == "torchvision" and name:
        return _torchvision(name, classes, channels, pretrained)
    raise ValueError(f"Expected a model 'small', 'timm:NAME' or 'torchvision:NAME', got {spec!r}.")


def _torchvision(name: str, classes: int, channels: int, pretrained: bool) -> nn.Module:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"Expected the name of a classifier of torchvision, got {name!r}; torchvision.models.list_models() has "
            "them all."
        )
    if channels != 3:
        raise ValueError(
            f"Expected images of 3 channels for torchvision's {name}, got {channels}. Take 'timm:NAME', which fits any."
        )
    model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    last = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    if not last:
        raise ValueError(f"Expected a network that ends in a linear layer, which torchvision's {name} has not.")
    linear = model.get_submodule(last[0])
    if linear.out_features != classes:
        model.set_submodule(last[0], nn.Linear(linear.in_features, classes, bias=linear.bias is not None))
    return model
