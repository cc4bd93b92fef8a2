"""One small network of every family of CNNs: of timm, torchvision, MONAI and transformers, with random weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

CLASSES = 5

TIMM = """
test_byobnet gernet_s repvgg_a0 mobileone_s0 convmixer_768_32 test_convnext convnextv2_atto cspresnet50
cs3darknet_focus_s cspnext_tiny densenet121 dla46x_c dpn48b mnasnet_small mobilenetv1_100 mobilenetv2_035
mobilenetv4_conv_small_035 efficientnet_lite0 test_efficientnet tf_efficientnetv2_b0 fbnetc_100 spnasnet_100 tinynet_e
mixnet_s fasternet_t0 fastvit_t8 focalnet_tiny_srf ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnetv2_b0
hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small test_mambaout
poolformer_s12 poolformerv2_s12 lcnet_035 mobilenetv3_small_050 nf_regnet_b0 nf_resnet26 test_nfnet rdnet_tiny
regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d test_resnet resnet10t
resnet18 seresnet33ts resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 skresnet18 starnet_s050 tresnet_m vgg11
ese_vovnet19b_slim_dw vovnet39a xception41 legacy_xception nasnetalarge pnasnet5large
"""
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5
squeezenet1_1 vgg11_bn
"""
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [2, 1, 1, 1]},
    "ResNet, basic": {
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [2, 1, 1, 1],
        "layer_type": "basic",
    },
    "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "groups_width": 4},
    "ConvNext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
    "ConvNextV2": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    "Bit": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "depths": [1, 1, 2, 1]},
    "PoolFormer": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
    "HGNetV2": {},
    "FocalNet": {"embed_dim": 8, "depths": [1, 1, 2, 1]},
}


@dataclass(frozen=True)
class Network:
    """A network of the table: its library, its name, how it is made, and the sizes of images to try, smallest first."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 96, 96), (3, 224, 224), (3, 331, 331))


def networks() -> Iterator[Network]:
    """All of them."""
    for name in TIMM.split():
        yield Network("timm", name, partial(_timm, name))
    for name in TORCHVISION.split():
        yield Network("torchvision", name, partial(_torchvision, name))
    for name in TRANSFORMERS:
        yield Network("transformers", name, partial(_transformers, name))
    for name, build, shape in _monai():
        yield Network("monai", name, build, (shape,))


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def _torchvision(name: str) -> nn.Module:
    import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


def _transformers(name: str) -> nn.Module:
    import transformers

    family = name.split(",")[0]
    config = getattr(transformers, f"{family}Config")(**TRANSFORMERS[name], num_labels=CLASSES)
    return getattr(transformers, f"{family}ForImageClassification")(config)


def _monai() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """MONAI's classifiers, of each number of axes that they take."""
    for axes in (1, 2, 3):
        images = (1, *(64,) * axes) if axes > 1 else (1, 256)
        given = {"spatial_dims": axes, "in_channels": 1}
        dense = {"init_features": 8, "growth_rate": 4, "block_config": (2, 2, 2), "out_channels": CLASSES}
        widths = {
            "n_input_channels": 1,
            "spatial_dims": axes,
            "num_classes": CLASSES,
            "block_inplanes": [8, 12, 16, 20],
        }
        senet = {"groups": 1, "reduction": 4, "num_classes": CLASSES, "dropout_prob": None, "layers": (1, 1, 1, 1)}
        yield f"DenseNet {axes}-D", partial(_of_monai, "DenseNet", **given, **dense), images
        for block in ("basic", "bottleneck"):
            build = partial(_of_monai, "ResNet", block=block, layers=[2, 1, 1, 1], **widths)
            yield f"ResNet {block} {axes}-D", build, images
        for block in ("se_bottleneck", "se_resnet_bottleneck", "se_resnext_bottleneck"):
            yield f"SENet {block} {axes}-D", partial(_of_monai, "SENet", block=block, **given, **senet), images
        if axes > 1:
            made = {"model_name": "efficientnet-b0", "pretrained": False, "num_classes": CLASSES}
            yield f"EfficientNet {axes}-D", partial(_of_monai, "EfficientNetBN", **given, **made), images


def _of_monai(kind: str, **options: Any) -> nn.Module:
    from monai.networks import nets
    from monai.networks.nets import senet

    if kind == "SENet":
        blocks = {"se_bottleneck": "SEBottleneck", "se_resnet_bottleneck": "SEResNetBottleneck"}
        name = blocks.get(options["block"], "SEResNeXtBottleneck")
        options["block"] = getattr(senet, name)
    return getattr(nets, kind)(**options)
