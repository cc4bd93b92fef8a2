"""Every supported family of networks for CA-Stream, with the stages that must be found."""

import functools
from dataclasses import dataclass

import timm
import torch
import torchvision
from ca_stream_networks import CLASSES, Custom, Gate
from timm.layers import BatchNormAct2d
from timm.models import convnext, densenet, resnetv2, swin_transformer
from timm.models import resnet as timm_resnet
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as tv_resnet
from torchvision.models.convnext import CNBlockConfig

WIDTHS = (16, 24, 32, 40)
RESNET = ("maxpool", "layer1", "layer2", "layer3", "layer4")
CONVNEXT = ("stem", "stages.0", "stages.1", "stages.2", "stages.3")
FOUR = CONVNEXT[1:]


@dataclass(frozen=True)
class Case:
    """A network, where its stages are, and the module that reads the average.

    Args:
        build: Makes it.
        reads: The first module after the average, whose input is exchanged in the derivation.
        stages: The names of the stages that must be found; None: not fixed by the specification.
        given: Names of stages that are passed instead.
        last: What the model does with the last stage's output before it averages.
        nhwc: Are the maps channels-last: all (True), none, or those of these names?
        pixels: Height and width of the images.
        quick: Is it among the few that quick runs try too?
    """

    build: object
    reads: str
    stages: tuple = None
    given: tuple = None
    last: object = staticmethod(lambda x: x)
    nhwc: object = False
    pixels: tuple = (64, 96)
    quick: bool = False

    def is_nhwc(self, name):
        return self.nhwc if isinstance(self.nhwc, bool) else name in self.nhwc


class LastAxis(nn.Module):
    """Maps with channels last, from a linear map."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 5), nn.Linear(5, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.a(self.stem(x).permute(0, 2, 3, 1)).tanh()
        return self.fc(self.b(x[:, ::2, ::2]).mean(dim=(1, 2)))


def sequence():
    head = [nn.Conv2d(6, 8, 3, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Flatten()]
    first = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.SiLU(inplace=True)]
    return nn.Sequential(nn.Sequential(*first), *head, nn.Linear(8, CLASSES))


def tv_convnext():
    blocks = zip(WIDTHS, (*WIDTHS[1:], None), strict=True)
    return torchvision.models.ConvNeXt([CNBlockConfig(*w, 1) for w in blocks], num_classes=CLASSES)


def tv(name, **options):
    return functools.partial(getattr(torchvision.models, name), num_classes=CLASSES, **options)


def tm(name, **options):
    config = timm.get_pretrained_cfg(name).to_dict() | {"input_size": (3, 64, 64)}  # quicker to look at
    return functools.partial(timm.create_model, name, num_classes=CLASSES, pretrained_cfg=config, **options)


def timm_small(make, *args, **options):
    return functools.partial(make, *args, num_classes=CLASSES, **options)


def custom(*args, **options):
    return functools.partial(Custom, *args, **options)


one_each = ((1, 1, 1, 1),)


class Narrow(tv_resnet.Bottleneck):
    """A bottleneck that is quick to test."""

    expansion = 1


def tv_efficientnet():
    blocks, _ = torchvision.models.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.3)
    return torchvision.models.EfficientNet(blocks, 0.2, num_classes=CLASSES, last_channel=40)


tv_basic = functools.partial(tv_resnet.ResNet, tv_resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
tv_bottleneck = functools.partial(tv_resnet.ResNet, Narrow, [1, 1, 1, 1], num_classes=CLASSES)
timm_bottleneck = functools.partial(
    timm_resnet.ResNet, timm_resnet.Bottleneck, (1, 1, 1, 1), num_classes=CLASSES, channels=WIDTHS
)
timm_convnext = functools.partial(convnext.ConvNeXt, depths=one_each[0], dims=WIDTHS, num_classes=CLASSES)
tiny_swin = functools.partial(
    swin_transformer.SwinTransformer, embed_dim=8, depths=one_each[0], num_heads=(1, 1, 2, 2), num_classes=CLASSES
)
tv_swin = functools.partial(
    torchvision.models.SwinTransformer, [4, 4], 8, [1, 1, 1], [1, 1, 2], [4, 4], num_classes=CLASSES
)

CASES = {
    "torchvision ResNet": Case(tv_basic, "fc", RESNET, quick=True),
    "torchvision ResNeXt": Case(functools.partial(tv_bottleneck, groups=4, width_per_group=4), "fc", RESNET),
    "torchvision Wide-ResNet": Case(functools.partial(tv_bottleneck, width_per_group=96), "fc", RESNET),
    "torchvision ResNet from relu": Case(
        tv_basic, "fc", ("relu", "layer1", "layer4"), given=("relu", "layer1", "layer4")
    ),
    "torchvision ConvNeXt": Case(
        tv_convnext, "classifier.0", ("features.0", "features.1", "features.3", "features.5", "features.7")
    ),
    "torchvision EfficientNet": Case(tv_efficientnet, "classifier"),
    "torchvision MobileNetV2": Case(tv("mobilenet_v2", width_mult=0.25), "classifier"),
    "torchvision MobileNetV3": Case(tv("mobilenet_v3_small"), "classifier"),
    "torchvision RegNet": Case(tv("regnet_y_400mf"), "fc", ("stem", *(f"trunk_output.block{i}" for i in range(1, 5)))),
    "torchvision DenseNet": Case(
        tv("DenseNet", growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16), "classifier", last=F.relu
    ),
    "torchvision ShuffleNet": Case(tv("shufflenet_v2_x0_5"), "fc"),
    "torchvision MNASNet": Case(tv("MNASNet", alpha=0.25), "classifier"),
    "torchvision Swin": Case(
        tv_swin, "head", ("features.1", "features.3", "permute"), nhwc=("features.1", "features.3"), quick=True
    ),
    "timm ResNet": Case(timm_small(timm_resnet.ResNet, timm_resnet.BasicBlock, *one_each), "fc", RESNET),
    "timm ResNeXt": Case(functools.partial(timm_bottleneck, cardinality=4, base_width=16), "fc", RESNET),
    "timm Wide-ResNet": Case(functools.partial(timm_bottleneck, base_width=128), "fc", RESNET),
    "timm ConvNeXt": Case(timm_convnext, "head.norm", CONVNEXT, quick=True),
    "timm ConvNeXt, linear in blocks": Case(
        functools.partial(timm_convnext, conv_mlp=True, head_hidden_size=9), "head.norm", CONVNEXT
    ),
    "timm ConvNeXt, norm before average": Case(
        functools.partial(timm_convnext, head_norm_first=True), "head.fc", (*CONVNEXT[:4], "norm_pre")
    ),
    "timm ConvNeXtV2": Case(functools.partial(timm_convnext, use_grn=True, ls_init_value=None), "head.norm", CONVNEXT),
    "timm EfficientNet": Case(tm("test_efficientnet"), "classifier"),
    "timm MobileNetV2": Case(tm("mobilenetv2_035"), "classifier"),
    "timm MobileNetV3": Case(tm("mobilenetv3_small_050"), "conv_head"),
    "timm RegNet": Case(tm("regnety_002"), "head.fc", ("stem", "s1", "s2", "s3", "s4")),
    "timm DenseNet": Case(timm_small(densenet.DenseNet, 8, (2, 2, 2, 2)), "classifier"),
    "timm ResNetV2": Case(
        timm_small(resnetv2.ResNetV2, one_each[0], (32, 32, 64, 64), stem_chs=32, norm_layer=BatchNormAct2d), "head.fc"
    ),
    "timm Swin": Case(tiny_swin, "head.fc", nhwc=True, pixels=(224, 224)),
    "timm HGNetV2": Case(tm("hgnetv2_b0"), "head.last_conv", FOUR),
    "timm RepVGG": Case(tm("repvgg_a0"), "head.fc"),
    "timm InceptionNeXt": Case(tm("inception_next_atto"), "head.fc1", FOUR),
    "timm PoolFormer": Case(tm("poolformer_s12"), "head.norm", FOUR),
    "timm GhostNet": Case(tm("ghostnet_050"), "conv_head"),
    "timm EdgeNeXt": Case(tm("edgenext_xx_small"), "head.norm", FOUR),
    "timm MambaOut": Case(
        tm("mambaout_femto", depths=(1, 1, 1, 1), dims=(16, 24, 32, 40)), "head.norm", FOUR, nhwc=True
    ),
    "timm RepViT": Case(tm("repvit_m0_9", depth=(0, 0, 1, 0), embed_dim=(16, 24, 32, 40)), "head_drop", FOUR),
    "timm LCNet": Case(tm("lcnet_035"), "conv_head"),
    "timm FasterNet": Case(tm("fasternet_t0"), "conv_head", FOUR),
    "timm DLA": Case(tm("dla46_c"), "fc"),
    "timm StarNet": Case(tm("starnet_s1"), "head"),
    "mean((2, 3))": Case(custom(lambda x: x.mean((2, 3))), "fc", given=("a", "b", "c"), quick=True),
    "mean(dim=[-1, -2])": Case(custom(lambda x: x.mean(dim=[-1, -2])), "fc", given=("a", "c")),
    "torch.mean, axes kept": Case(custom(lambda x: torch.mean(x, (3, 2), True)), "fc", given=("norm", "c")),
    "adaptive_avg_pool2d": Case(custom(lambda x: F.adaptive_avg_pool2d(x, (1, 1))), "fc", given=("b", "c")),
    "avg_pool2d of the map": Case(custom(lambda x: F.avg_pool2d(x, x.shape[2:])), "fc", given=("a", "b", "c")),
    "activation inside the average": Case(custom(lambda x: x.relu().mean((2, 3))), "fc", given=("a", "c"), last=F.relu),
    "a stage changed in place afterwards": Case(
        custom(lambda x: x.mean((2, 3)), F.relu_), "fc", given=("a", "norm", "c")
    ),
    "a gate behind the last stage": Case(
        custom(lambda x: x.mean((2, 3)), gate=Gate()), "fc", ("a", "b", "gate"), given=("a", "b", "gate"), quick=True
    ),
    "gate, pooling module": Case(
        custom(nn.AdaptiveAvgPool2d(1), gate=Gate()), "fc", ("a", "b", "gate"), given=("a", "b", "gate")
    ),
    "nn.Sequential": Case(sequence, "4", given=("0", "2"), pixels=(30, 42)),
    "nn.Sequential, stages inside and before in-place": Case(sequence, "4", given=("0.1", "2"), pixels=(30, 42)),
    "NHWC": Case(LastAxis, "fc", given=("a", "b"), nhwc=True, pixels=(32, 48), quick=True),
    "NCHW, then NHWC": Case(LastAxis, "fc", given=("stem", "a", "b"), nhwc=("a", "b"), pixels=(32, 48)),
}
