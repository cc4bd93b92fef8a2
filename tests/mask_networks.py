"""Networks that segment, of every library and small: at random weights, their images, and what a block sees."""

import copy
import functools

import pytest
import torch
from mhex_networks import randomised
from torch import nn

from adapters import MHEX
from adapters.wrappers.mhex_pass import MHEXPass

CLASSES = 4


def torchvision_net(name, **options):
    from torchvision.models import segmentation

    make = getattr(segmentation, name)
    return make(weights=None, weights_backbone=None, num_classes=CLASSES, **options)


def fcn():
    """An FCN as torchvision's, on a small ResNet with dilated stages and an auxiliary head."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import Bottleneck, ResNet
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    resnet = ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=8, replace_stride_with_dilation=[False, True, True])
    features = IntermediateLayerGetter(resnet, {"layer4": "out", "layer3": "aux"})
    return FCN(features, FCNHead(2048, CLASSES), FCNHead(1024, CLASSES))


def smp_net(kind, encoder="resnet18"):
    smp = pytest.importorskip("segmentation_models_pytorch")
    return getattr(smp, kind)(encoder, encoder_weights=None, classes=CLASSES)


def monai_net(kind, **options):
    nets = pytest.importorskip("monai.networks.nets")
    return getattr(nets, kind)(in_channels=1, out_channels=CLASSES, **options)


def segformer():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    config = SegformerConfig(**sizes, decoder_hidden_size=12, num_labels=CLASSES)
    return SegformerForSemanticSegmentation(config)


def unetr(size):
    pytest.importorskip("einops")
    sizes = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2}
    return monai_net("UNETR", img_size=size, spatial_dims=len(size), **sizes)


RESIDUAL_UNET = {"channels": (4, 6, 8), "strides": (2, 2), "num_res_units": 2}
NETS = {
    "SegFormer": segformer,
    "FCN": fcn,
    "DeepLab": lambda: torchvision_net("deeplabv3_mobilenet_v3_large", aux_loss=True),
    "LR-ASPP": lambda: torchvision_net("lraspp_mobilenet_v3_large"),
    "smp.Unet": lambda: smp_net("Unet"),
    "smp.Unet, VGG": lambda: smp_net("Unet", "vgg11"),
    "smp.UnetPlusPlus": lambda: smp_net("UnetPlusPlus"),
    "smp.FPN": lambda: smp_net("FPN"),
    "MONAI UNet": lambda: monai_net("UNet", spatial_dims=2, **RESIDUAL_UNET),
    "MONAI UNet, volumes": lambda: monai_net("UNet", spatial_dims=3, **RESIDUAL_UNET),
    "MONAI BasicUNet, volumes": lambda: monai_net("BasicUNet", spatial_dims=3, features=(4, 4, 6, 6, 8, 4)),
    "MONAI SegResNet, volumes": lambda: monai_net(
        "SegResNet", spatial_dims=3, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)
    ),
    "MONAI UNETR": lambda: unetr((64, 96)),
    "MONAI UNETR, volumes": lambda: unetr((16, 32, 16)),
    "MONAI SwinUNETR": lambda: monai_net(
        "SwinUNETR", spatial_dims=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)
    ),
}
QUICK = ("FCN", "LR-ASPP", "smp.Unet", "MONAI UNet, volumes", "SegFormer")
HEADLESS = {"smp.Unet, VGG", "MONAI BasicUNet, volumes"}  # skips alone
each_net = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETS]
)


@functools.cache
def _built(name):
    torch.manual_seed(0)
    return randomised(NETS[name]())


def wrap(name, scale=1.0, **options):
    """A fresh wrapper in float64, its gates and heads at random."""
    net = copy.deepcopy(_built(name)).float()  # the empty volumes on which it is run take long in float64
    wrapper = MHEX(net, task="segmentation", **{"num_classes": CLASSES} | options).double().eval()
    with torch.no_grad():
        for i, p in enumerate(wrapper.blocks.parameters()):
            p.normal_(std=scale / p[0].numel() ** 0.5, generator=torch.Generator().manual_seed(i))
    return wrapper


def images_of(name, count=2):
    generator = torch.Generator().manual_seed(3)
    shape = (
        (1, 32, 32, 32)
        if "BasicUNet" in name
        else (1, 16, 32, 16)
        if name == "MONAI UNETR, volumes"
        else (1, 16, 24, 16)
        if "volumes" in name
        else (1 if "MONAI" in name else 3, 64, 96)
    )
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def seen_at_blocks(wrapper, images):
    """What each block sees, and its s and y, from one pass."""
    seen = []
    with torch.no_grad():
        run = MHEXPass(
            wrapper, images, see=lambda one: seen.append((one.z.clone(), one.gated.clone(), one.total.clone()))
        )
    return seen, run.gates, run.deep()


def by_loops(weights, activation):
    """`sum_k e_k * A_k` with same padding, place by place and offset by offset; weights (channels, *kernel)."""
    places, kernel = activation.shape[1:], weights.shape[1:]
    half = [k // 2 for k in kernel]
    padded = activation.new_zeros(len(activation), *(n + 2 * h for n, h in zip(places, half, strict=True)))
    padded[(slice(None), *(slice(h, h + n) for n, h in zip(places, half, strict=True)))] = activation
    result = activation.new_zeros(places)
    for offset in torch.cartesian_prod(*(torch.arange(k) for k in kernel)).reshape(-1, len(kernel)).tolist():
        window = padded[(slice(None), *(slice(o, o + n) for o, n in zip(offset, places, strict=True)))]
        result += torch.einsum("k,k...->...", weights[(slice(None), *offset)], window)
    return result


class Block(nn.Module):
    """A residual block of maps."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return (x + self.conv(x)).relu()


class PlainUNet(nn.Module):
    """Two levels, one block, one skip, whose formulas fit on a screen."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(2, 4, 3, padding=1), nn.Sequential(Block(4))
        self.down, self.up = nn.Conv2d(4, 6, 2, 2), nn.ConvTranspose2d(6, 5, 2, 2)
        self.merge, self.head = nn.Conv2d(9, 4, 1), nn.Conv2d(4, classes, 1)

    def forward(self, x):
        skip = self.blocks(self.stem(x))
        x = self.up(self.down(skip).relu())
        return self.head(self.merge(torch.cat([skip, x], 1)).relu())


def plain_unet(seed=0):
    torch.manual_seed(seed)
    return PlainUNet().double().eval()
