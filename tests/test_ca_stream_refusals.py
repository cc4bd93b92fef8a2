"""Stages, models, images and labels that CA-Stream refuses, and some that it must not."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from ca_stream_networks import GAP, Custom, Gate, derived_stream, images, randomised, resnet, small, stream_on
from torch import nn
from torch.nn import functional as F

from adapters import CAStream

pytestmark = pytest.mark.slow

# Wrong calls


class Flat(nn.Module):
    """A network whose only average is that of a gate, as its head reads all positions."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.fc = nn.Conv2d(3, 8, 3, 16), Gate(), nn.Linear(8 * 14 * 14, 5)

    def forward(self, x):
        return self.fc(self.gate(self.a(x)).flatten(1))


def vgg():
    with torch.device("meta"):
        model = torchvision.models.VGG(torchvision.models.vgg.make_layers([4, "M", 8, "M"]))
        model.classifier = nn.Linear(8 * 7 * 7, 5)
    return model.to_empty(device="cpu")


class Twice(nn.Module):
    """A network that runs one module twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, 2), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.b(self.b(self.a(x))).mean((2, 3)))


class Listed(Custom):
    """A network that keeps its modules in a list of its own too."""

    def __init__(self):
        super().__init__(GAP)
        self.all = [self.a, self.b, self.c]

    def forward(self, x):
        for module in self.all:
            x = module(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        (["layer1", "layer9"], ValueError, "'layer9'"),
        (["layer1.7", "layer4"], ValueError, r"'layer1\.7'"),
        (["layer1", "layer1", "layer4"], ValueError, "'layer1' 2 times"),
        (["layer2", "layer1", "layer4"], ValueError, "order.*'layer1', 'layer2'"),
        (["layer1", "layer1.0", "layer4"], ValueError, r"'layer1\.0' lies inside 'layer1'"),
        (["layer1", "fc"], ValueError, "'fc' is not a feature map"),
        (["layer1", "layer3"], ValueError, "'layer3'"),
        (["layer1", "avgpool"], ValueError, "'avgpool'"),
        (["avgpool", "layer4"], ValueError, "avgpool"),
        (["layer1", "layer4.0.bn1"], ValueError, r"layer4\.0\.bn1"),
        (["layer1", "layer4.0.relu"], ValueError, r"layer4\.0\.relu"),
        ([], ValueError, "at least one stage"),
        (["layer1", 4], TypeError, "int"),
        ("layer4", TypeError, "'layer4'"),
        (4, TypeError, "stages"),
        ([""], ValueError, "feature map"),
    ],
    ids=str,
)
def test_wrong_stages_are_named(stages, error, words):
    with pytest.raises(error, match=words):
        CAStream(resnet(), stages=stages)


@pytest.mark.parametrize("start", [5, -1, 1.0, "layer1", None])
def test_start_stage_out_of_range(start):
    with pytest.raises((TypeError, ValueError), match="start_stage"):
        CAStream(resnet(), start_stage=start)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (vgg, "VGG.*pooling"),
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=1), "VisionTransformer.*pooling"),
        (lambda: timm.create_model("test_resnet", global_pool="max"), "ResNet.*pooling"),
        (Flat, "Flat.*pooling"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "Sequential.*convolution"),
        (lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), "LRASPP.*pooling"),
    ],
    ids=["VGG", "ViT", "maximum", "gate", "no convolution", "segmentation"],
)
def test_models_without_an_average_to_replace(build, words):
    with pytest.raises(ValueError, match=words):
        CAStream(build())


@pytest.mark.parametrize("kind", ["avgmax", "catavgmax"])
def test_a_pooling_that_is_not_the_average_alone_is_refused(kind):
    with pytest.raises(ValueError, match="pooling"):
        CAStream(timm.create_model("test_resnet", global_pool=kind))


def test_generalised_mean_pooling_is_refused():
    def pool(x):
        return F.avg_pool2d(x.clamp(min=1e-6).pow(3), x.shape[2:]).pow(1 / 3)

    with pytest.raises(ValueError, match=r"pooling|averages"):
        CAStream(small().__class__(pool), stages=["a", "c"])


def test_a_gate_behind_a_stage_is_not_its_average():
    """The last stage is named, but a gate stands between it and the average: either replaced rightly, or refused."""
    model = small(gate=Gate())
    try:
        wrapper = stream_on(model, stages=["a", "c"])
    except ValueError as error:
        assert "gate" in str(error)  # noqa: PT017
        return
    seen = []
    model.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits, maps = wrapper.forward_with_attention(images())
    found = dict.fromkeys(["a", "gate"])
    for name in found:
        model.get_submodule(name).register_forward_hook(lambda _, __, out, n=name: found.update({n: out}))
    model(images())
    last, _ = derived_stream(
        wrapper.stream, [f.flatten(2).mT for f in found.values()], wrapper.stream.query.expand(2, -1)
    )
    torch.testing.assert_close(seen[0], last)
    assert len(maps) == 2
    assert logits.shape == (2, 7)


def test_modules_that_run_twice_are_no_stage():
    with pytest.raises(ValueError, match=r"'b'.*several times"):
        CAStream(Twice(), stages=["a", "b"])


def test_modules_in_a_list_of_the_models_own_are_refused():
    with pytest.raises(ValueError, match=r"Listed ran without calling its stages \['a', 'b', 'c'\].*a list of its own"):
        CAStream(Listed(), stages=["a", "b", "c"])


@pytest.mark.parametrize("model", [None, "resnet18", lambda x: x, resnet], ids=["None", "name", "lambda", "function"])
def test_not_a_model(model):
    with pytest.raises(TypeError, match="model"):
        CAStream(model)


def test_compiled_models():
    model = resnet()
    assert CAStream(torch.compile(model, backend="eager")).backbone is model
    model.compile()
    with pytest.raises(ValueError, match="compile"):
        CAStream(model)
    model = resnet()
    model.layer2 = torch.compile(model.layer2, backend="eager")
    with pytest.raises(ValueError, match="layer2"):
        CAStream(model)


@pytest.mark.parametrize("pixels", [1, 8, 16])
def test_too_small_images_name_the_stage(pixels):
    wrapper = stream_on(torchvision.models.DenseNet(4, (1, 1, 1, 1), 8))
    with pytest.raises(ValueError, match=rf"{pixels} x {pixels} pixels.*'features\.(denseblock|norm)"):
        wrapper(torch.randn(2, 3, pixels, pixels))


@pytest.mark.parametrize("given", [torch.randn(3, 32, 32), np.zeros((2, 3, 32, 32)), None], ids=["3d", "array", "None"])
def test_not_images(given):
    with pytest.raises(ValueError if isinstance(given, torch.Tensor) else TypeError, match="Expected images"):
        stream_on(resnet())(given)


@pytest.mark.parametrize(
    "labels",
    [[0, 1], 1, torch.tensor([0]), torch.tensor([[0, 1]]), torch.tensor(1), torch.tensor([0, 5]), torch.tensor([-1, 0]),
     torch.tensor([0.0, 1.5]), torch.tensor([True, False])],
    ids=str,
)  # fmt: skip
def test_wrong_labels(labels):
    with pytest.raises((TypeError, ValueError), match="labels"):
        stream_on(resnet(), class_specific=True)(images(), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    wrapper, labels = stream_on(resnet(), class_specific=True), torch.tensor([3, 1])
    assert torch.equal(wrapper(images(), labels.to(dtype)), wrapper(images(), labels))


# Where a model says too little, or too much, about its images


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: timm.create_model("resnet10t", in_chans=1), (2, 1, 64, 64)),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 1, 1),
                                   embed_dim=8, num_heads=(1, 1, 1, 1)), (2, 3, 64, 64)),
    ],
    ids=["one channel", "another size"],
)  # fmt: skip
def test_models_made_for_other_images_than_their_configuration_says(build, shape):
    model = build().eval()
    wrapper = stream_on(model)
    wrapper = stream_on(model, start_stage=len(wrapper.stages) - 1)
    nn.init.zeros_(wrapper.stream.query)
    nn.init.eye_(wrapper.stream.projections[0].weight)
    pixels = torch.randn(shape)
    torch.testing.assert_close(wrapper(pixels), model(pixels))


def test_maps_as_high_as_deep_are_not_channels_last():
    """With images that are not square a stage of 32 x 48 positions and 32 channels is no map with channels last."""
    model = timm.create_model("regnety_002", pretrained_cfg_overlay={"input_size": (3, 64, 96)}, num_classes=5)
    wrapper = stream_on(model)
    assert wrapper.stream.query.shape == (32,)
    _, maps = wrapper.forward_with_attention(torch.randn(1, 3, 64, 96))
    assert tuple(maps[0].shape) == (1, 32, 48)


def test_maps_with_channels_last_may_be_as_deep_as_wide():
    """A Swin's stages have channels last, its average reads channels first; here both are 56 wide."""
    swin = torchvision.models.SwinTransformer([4, 4], 56, [1, 1], [2, 2], [7, 7], num_classes=5)
    wrapper = stream_on(randomised(swin, (56, 84)), stages=["features.1", "permute"])
    found = {}
    swin.features[1].register_forward_hook(lambda _, __, out: found.update(out=out))
    pixels = torch.randn(2, 3, 56, 84, dtype=torch.float64)
    _, maps = wrapper.forward_with_attention(pixels)
    expected = (found["out"] @ wrapper.stream.query / 56**0.5).flatten(1).softmax(1).unflatten(1, (14, 21))
    torch.testing.assert_close(maps[0], expected)
