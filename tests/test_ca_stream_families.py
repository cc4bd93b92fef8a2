"""CA-Stream on every supported family, against a derivation from the formulas position by position."""

import functools
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from ca_stream_networks import CLASSES, Custom, Gate, derived_stream, randomised
from timm.layers import BatchNormAct2d
from timm.models import convnext, densenet, resnetv2, swin_transformer
from timm.models import resnet as timm_resnet
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as tv_resnet
from torchvision.models.convnext import CNBlockConfig

from adapters import CAStream

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
    """

    build: object
    reads: str
    stages: tuple = None
    given: tuple = None
    last: object = staticmethod(lambda x: x)
    nhwc: object = False
    pixels: tuple = (64, 96)

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
    "torchvision ResNet": Case(tv_basic, "fc", RESNET),
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
        tv_swin, "head", ("features.1", "features.3", "permute"), nhwc=("features.1", "features.3")
    ),
    "timm ResNet": Case(timm_small(timm_resnet.ResNet, timm_resnet.BasicBlock, *one_each), "fc", RESNET),
    "timm ResNeXt": Case(functools.partial(timm_bottleneck, cardinality=4, base_width=16), "fc", RESNET),
    "timm Wide-ResNet": Case(functools.partial(timm_bottleneck, base_width=128), "fc", RESNET),
    "timm ConvNeXt": Case(timm_convnext, "head.norm", CONVNEXT),
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
    "mean((2, 3))": Case(custom(lambda x: x.mean((2, 3))), "fc", given=("a", "b", "c")),
    "mean(dim=[-1, -2])": Case(custom(lambda x: x.mean(dim=[-1, -2])), "fc", given=("a", "c")),
    "torch.mean, axes kept": Case(custom(lambda x: torch.mean(x, (3, 2), True)), "fc", given=("norm", "c")),
    "adaptive_avg_pool2d": Case(custom(lambda x: F.adaptive_avg_pool2d(x, (1, 1))), "fc", given=("b", "c")),
    "avg_pool2d of the map": Case(custom(lambda x: F.avg_pool2d(x, x.shape[2:])), "fc", given=("a", "b", "c")),
    "activation inside the average": Case(custom(lambda x: x.relu().mean((2, 3))), "fc", given=("a", "c"), last=F.relu),
    "a stage changed in place afterwards": Case(
        custom(lambda x: x.mean((2, 3)), F.relu_), "fc", given=("a", "norm", "c")
    ),
    "a gate behind the last stage": Case(
        custom(lambda x: x.mean((2, 3)), gate=Gate()), "fc", ("a", "b", "gate"), given=("a", "b", "gate")
    ),
    "gate, pooling module": Case(
        custom(nn.AdaptiveAvgPool2d(1), gate=Gate()), "fc", ("a", "b", "gate"), given=("a", "b", "gate")
    ),
    "nn.Sequential": Case(sequence, "4", given=("0", "2"), pixels=(30, 42)),
    "nn.Sequential, stages inside and before in-place": Case(sequence, "4", given=("0.1", "2"), pixels=(30, 42)),
    "NHWC": Case(LastAxis, "fc", given=("a", "b"), nhwc=True, pixels=(32, 48)),
    "NCHW, then NHWC": Case(LastAxis, "fc", given=("stem", "a", "b"), nhwc=("a", "b"), pixels=(32, 48)),
}

each_family = pytest.mark.parametrize("name", CASES)


@functools.cache
def network(name):
    torch.manual_seed(0)
    return randomised(CASES[name].build(), CASES[name].pixels)


@functools.cache
def images_for(name, count=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *CASES[name].pixels, generator=generator, dtype=torch.float64)


@functools.cache
def wrapped(name, alone=False, full=False):
    """A network with a random stream: over all stages, the last one alone, or all but the first with everything on."""
    case, options = CASES[name], {}
    if alone:
        options["start_stage"] = len(wrapped(name).stages) - 1
    if full:
        options = {"start_stage": min(1, len(wrapped(name).stages) - 1), "projections": True, "class_specific": True}
    torch.manual_seed(1)
    wrapper = CAStream(network(name), **({"stages": case.given} if case.given else {}), **options)
    with torch.no_grad():
        for p in wrapper.stream.parameters():
            p.copy_(torch.randn_like(p) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 1))
    return wrapper.eval()


def hooked(model, images, exchanged, seen):
    """One plain run of a model; inputs of some modules exchanged, outputs of others seen."""
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, f=function: (f(args[0]), *args[1:]))
        for name, function in exchanged.items()
    ] + [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, n=name: seen.update({n: out.clone()}))
        for name in list(seen)
    ]
    try:
        logits = model(images)
        return logits[0] if isinstance(logits, tuple) else logits
    finally:
        for hook in hooks:
            hook.remove()


@functools.cache
def features(name, stages):
    """F_l (batch, p_l, d_l) and (h_l, w_l) of each stage, and the logits, from a plain run of the bare network."""
    case, model, seen, images = CASES[name], network(name), dict.fromkeys(stages), images_for(name)
    read = []
    with torch.no_grad():
        logits = hooked(model, images, {case.reads: lambda x: read.append(x) or x}, seen)
    maps, sizes = [], []
    for stage in stages:
        out = case.last(seen[stage]) if stage == stages[-1] else seen[stage]
        out = out if case.is_nhwc(stage) else out.permute(0, 2, 3, 1)
        sizes.append(tuple(out.shape[1:3]))
        maps.append(out.reshape(len(images), -1, out.shape[3]))
    torch.testing.assert_close(read[0].flatten(1), maps[-1].mean(1))  # or this table is wrong
    return maps, sizes, logits


def head(name, images, vectors):
    """The logits where the module behind the average reads these vectors instead."""
    return hooked(network(name), images, {CASES[name].reads: lambda x: vectors.reshape(x.shape)}, {})


def close(actual, expected, relative=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * expected.abs().max().item())


def differ(values, share=1e-3):
    """Do the images' values differ, so that an error in one of them would be seen?"""
    assert torch.isfinite(values).all()
    assert (values[0] - values[1]).abs().max() > share * values.abs().max()


@each_family
def test_stages_are_those_of_the_specification(name):
    case, wrapper = CASES[name], wrapped(name)
    if case.stages:
        assert wrapper.stages == case.stages
    with torch.no_grad():
        _, maps = wrapper.forward_with_attention(images_for(name))
    _, sizes, _ = features(name, wrapper.stages)
    assert [tuple(m.shape[1:]) for m in maps] == sizes
    assert len(set(sizes)) > 1 or len(sizes) == 1 or case.given


@each_family
def test_last_stage_alone_with_identity_is_the_backbone(name):
    wrapper, images = wrapped(name, alone=True), images_for(name)
    with torch.no_grad():
        wrapper.stream.query.zero_()
        nn.init.eye_(wrapper.stream.projections[0].weight)
        wrapper.stream.projections[0].bias.zero_()
        logits, (attention,) = wrapper.forward_with_attention(images)
        expected = hooked(network(name), images, {}, {})
    differ(expected, 1e-4)
    close(logits, expected)
    torch.testing.assert_close(attention, torch.full_like(attention, 1 / attention[0].numel()))


@each_family
def test_stream_is_the_formulas(name):
    wrapper, images = wrapped(name), images_for(name)
    with torch.no_grad():
        logits, attentions = wrapper.forward_with_attention(images)
        maps, _, _ = features(name, wrapper.stages)
        last, expected = derived_stream(wrapper.stream, maps, wrapper.stream.query.expand(len(images), -1))
        close(logits, head(name, images, last))
    differ(last, 1e-4)
    for actual, wanted in zip(attentions, expected, strict=True):
        close(actual.flatten(1), wanted)
        torch.testing.assert_close(actual.sum((1, 2)), torch.ones(len(images), dtype=torch.float64))


@each_family
def test_keys_values_and_class_queries_are_the_formulas(name):
    wrapper, images = wrapped(name, full=True), images_for(name)
    labels = torch.tensor([4, 0])
    with torch.no_grad():
        maps, _, plain = features(name, wrapper.stages)
        for given, classes in ((labels, labels), (None, plain.argmax(1))):
            logits, attentions = wrapper.forward_with_attention(images, given)
            last, expected = derived_stream(wrapper.stream, maps, [wrapper.stream.query[c] for c in classes.tolist()])
            close(logits, head(name, images, last))
            for actual, wanted in zip(attentions, expected, strict=True):
                close(actual.flatten(1), wanted)


@each_family
def test_gradients_in_training_are_those_of_the_formulas(name):
    wrapper, images, labels = wrapped(name, full=True), images_for(name), torch.tensor([4, 0])
    logits = wrapper.train()(images, labels)
    wrapper.eval()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    actual = torch.autograd.grad((logits * weights).sum(), list(wrapper.stream.parameters()))
    maps, _, _ = features(name, wrapper.stages)
    last, _ = derived_stream(wrapper.stream, maps, [wrapper.stream.query[c] for c in labels.tolist()])
    scores = (head(name, images, last) * weights).sum()
    expected = torch.autograd.grad(scores, list(wrapper.stream.parameters()))
    for (key, _), mine, wanted in zip(wrapper.stream.named_parameters(), actual, expected, strict=True):
        scale = max(wanted.abs().max().item(), 1e-6 * max(g.abs().max().item() for g in expected))
        assert (mine - wanted).abs().max() < 1e-7 * scale, key
