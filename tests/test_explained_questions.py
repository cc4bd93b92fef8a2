"""What `explain_func` explains: frozen backbones, one logit, functions of the output, signals and volumes."""

import cv2
import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from contracts import left_as_found
from pytorch_grad_cam import AblationCAM, EigenCAM, GradCAM, HiResCAM, ScoreCAM
from score_derivations import X, close, net
from torch import nn
from toy_models import tiny_vit

from captum_ext import CDAM, AttentionMap, IntegratedCDAM
from quantus_metrics import explain_func

CAMS = [GradCAM, HiResCAM, EigenCAM, ScoreCAM, AblationCAM]


class Half(nn.Module):
    """A backbone and a head."""

    def __init__(self, under=None):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 3)
        self.under = under

    def forward(self, x):
        if self.under is None:
            return self.head(self.backbone(x).mean((2, 3)))
        with self.under():
            features = self.backbone(x)
        return self.head(features.mean((2, 3)))


FLOATS, CLASSES = torch.from_numpy(X).float(), [0, 1, 2, 0, 1]


@pytest.mark.parametrize("cam", CAMS, ids=lambda cam: cam.__name__)
def test_a_frozen_backbone_has_the_maps_of_a_trainable_one(cam):
    explain = explain_func(cam, target_layers="backbone.2", batch_size=2)
    expected, frozen = explain(Half(), FLOATS, CLASSES), Half()
    frozen.backbone.requires_grad_(False)
    with left_as_found(frozen):
        assert np.array_equal(explain(frozen, FLOATS, CLASSES), expected)
    frozen.requires_grad_(False)
    assert np.array_equal(explain(frozen, FLOATS, CLASSES), expected)


def test_no_gradient_is_said():
    for model in (Half(torch.no_grad), Half(torch.inference_mode)):
        with pytest.raises(ValueError, match=r"No gradient reaches a target layer of GradCAM.*torch.no_grad"):
            explain_func(GradCAM, target_layers="backbone.2")(model, FLOATS, CLASSES)
    with pytest.raises(ValueError, match="No gradient reaches"):
        explain_func(GradCAM, target_layers="0")(Frozen(), torch.randint(9, (2, 7)), [0, 1])
    unused = Half()
    unused.other = nn.Conv2d(2, 2, 3)
    with pytest.raises(ValueError, match=r"0 of the 1 target layers are run by this Half"):
        explain_func(GradCAM, target_layers="other")(unused, FLOATS, CLASSES)


@pytest.mark.parametrize("cam", CAMS[:3], ids=lambda cam: cam.__name__)
def test_a_class_that_is_not_there_is_said(cam, capsys):
    if cam is not EigenCAM:  # which asks for no class
        with pytest.raises(ValueError, match=r"Expected targets from 0 to 2, as the model has 3 classes; got 7"):
            explain_func(cam, target_layers="backbone.2")(Half(), FLOATS[:1], [7])
    with pytest.raises(IndexError, match="mine"):
        explain_func(cam, target_layers="backbone.2")(Raising(), FLOATS[:1], [0])
    assert "An exception occurred" not in capsys.readouterr().out


class Frozen(nn.Sequential):
    """A classifier of token ids, which can require no gradient."""

    def __init__(self):
        super().__init__(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(28, 3))
        self.requires_grad_(False)


class Raising(Half):
    def forward(self, x):
        super().forward(x)
        raise IndexError("mine")


class Columns(nn.Module):
    """Some columns of a model's output."""

    def __init__(self, model, choose):
        super().__init__()
        self.model, self.choose = model, choose

    def forward(self, x):
        return self.choose(self.model(x))


BY_CLASS = {  # methods whose maps are those of -z for class 0, of z for class 1
    "IxG": explain_func(InputXGradient, batch_size=2),
    "IG": explain_func(IntegratedGradients, n_steps=3),
    "layer": explain_func(LayerGradCam, layer="model.backbone.2"),
    "GradCAM": explain_func(GradCAM, target_layers="model.backbone.2", batch_size=3),
    "ScoreCAM": explain_func(ScoreCAM, target_layers="model.backbone.2"),
}


@pytest.mark.parametrize("explain", BY_CLASS.values(), ids=BY_CLASS)
@pytest.mark.parametrize("form", [lambda z: z[:, 1:2], lambda z: z[:, 1], lambda z: z[:, 1].squeeze()])
def test_of_one_logit_class_0_is_its_negative(explain, form):
    both = Columns(Half(), lambda z: torch.stack([-z[:, 1], z[:, 1]], 1))
    binary = [0, 1, 1, 0, 1]
    expected = explain(both, FLOATS, binary)
    close(explain(Columns(Half(), form), FLOATS, binary), expected, 1e-6)
    close(explain(Columns(Half(), form), FLOATS[:1], binary[:1], batch_size=1), expected[:1], 1e-6)


def test_transformers_of_one_logit():
    torch.manual_seed(0)
    vit, images = tiny_vit(num_classes=1), torch.rand(3, 3, 32, 32)
    for method in (CDAM, IntegratedCDAM):
        z = method(vit).attribute(images, target=0)
        sign = torch.tensor([-1.0, 1, -1]).view(3, 1, 1, 1)
        expected = nn.functional.interpolate(sign * z, (32, 32), mode="bilinear")
        close(explain_func(method)(vit, images, [0, 1, 0]), expected.detach(), 1e-5)


AREAS = [lambda out, c=c: out[c, 1:].mean() for c in (0, 2)]


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.layers = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 3, 3, padding=1))

    def forward(self, x):
        return {"out": self.layers(x)}


@pytest.mark.parametrize("number", [1, 4])
def test_functions_of_the_output_are_targets(number):
    model, x = Segmenter(), FLOATS[:4]
    each = [AREAS[i] for i in (0, 1, 1, 0)]
    pixels = x.clone().requires_grad_()
    out = model(pixels)["out"]
    (gradient,) = torch.autograd.grad(sum(f(one) for f, one in zip(each, out, strict=True)), pixels)
    expected = (x * gradient).sum(1, keepdim=True)
    close(explain_func(InputXGradient, batch_size=number)(model, x, each), expected, 1e-6)
    close(explain_func(InputXGradient)(model, x, AREAS[0])[[0, 3]], expected[[0, 3]], 1e-6)
    seen = explain_func(GradCAM, target_layers="layers.0", batch_size=number)(model, x, each)
    with GradCAM(Columns(model, lambda y: y["out"]), [model.layers[0]]) as cam:
        close(seen[:, 0], cam(x, each), 1e-6)
    tunnel = explain_func(lambda m: NoiseTunnel(Saliency(m)), nt_samples=3, stdevs=0.0, abs=False, batch_size=number)
    close(tunnel(model, x, each), gradient.sum(1, keepdim=True), 1e-6)
    paths = explain_func(IntegratedGradients, n_steps=3, batch_size=number)(model, x, each)
    for i, function in enumerate(each):
        alone = IntegratedGradients(lambda p, f=function: torch.stack([f(one) for one in model(p)["out"]]))
        close(paths[i], alone.attribute(x[i : i + 1], n_steps=3).sum(1).detach(), 1e-6)


def test_functions_are_targets_of_transformers():
    torch.manual_seed(0)
    vit, images = tiny_vit(), torch.rand(3, 3, 32, 32)
    each = [lambda out, c=c: 2 * out[c] for c in (1, 4, 1)]
    for method, factor in ((CDAM, 2), (AttentionMap, 1)):
        close(explain_func(method)(vit, images, each), factor * explain_func(method)(vit, images, [1, 4, 1]), 1e-5)


class Detector(nn.Module):
    """A list with a dictionary for each image, as torchvision's detectors."""

    def __init__(self):
        super().__init__()
        self.layers = net().float()

    def forward(self, x):
        return [{"scores": z.sigmoid(), "boxes": torch.zeros(4, 4)} for z in self.layers(x)]


def test_detections_are_asked_by_functions():
    score, model = lambda found: found["scores"][2], Detector()
    pixels = FLOATS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.layers(pixels).sigmoid()[:, 2].sum(), pixels)
    close(explain_func(InputXGradient)(model, FLOATS, score), (gradient * FLOATS).sum(1, keepdim=True), 1e-6)
    plain = Columns(net().float(), torch.sigmoid)
    expected = explain_func(GradCAM, target_layers="model.0")(plain, FLOATS, lambda out: out[2])
    close(explain_func(GradCAM, target_layers="layers.0")(model, FLOATS, score), expected, 1e-6)


def test_wrong_targets_are_named():
    with pytest.raises(
        ValueError, match=r"one number, a tensor, for the output of one sample, of shape \(4,\); got shape \(2,\)"
    ):
        explain_func(InputXGradient)(net(), X, lambda out: out[:2])
    with pytest.raises(ValueError, match=r"one number.*got <class 'float'>"):
        explain_func(GradCAM, target_layers="0")(net(), X, lambda out: 3.0)
    with pytest.raises(TypeError, match="a function for each, got functions and 1"):
        explain_func(InputXGradient)(net(), X[:2], [lambda out: out[0], 1])
    with pytest.raises(ValueError, match="one function for each of 5 samples, or one for all, got 2"):
        explain_func(InputXGradient)(net(), X, AREAS)
    with pytest.raises(ValueError, match=r"one sample's output is \(3, 9, 7\).*pass functions|Pass"):
        explain_func(GradCAM, target_layers="layers.0")(Segmenter(), FLOATS[:2], [1, 2])


def signals():
    torch.manual_seed(7)
    parts = nn.Conv1d(3, 6, 5), nn.Tanh(), nn.Conv1d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(4, 3)), torch.randn(2, 3, 40)


def volumes():
    torch.manual_seed(8)
    parts = nn.Conv3d(1, 6, 3), nn.Tanh(), nn.Conv3d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(4, 2)), torch.randn(2, 1, 8, 10, 12)


@pytest.mark.parametrize("make", [signals, volumes])
def test_signals_and_volumes_are_explained(make):
    model, x = make()
    pixels = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels)[[0, 1], [1, 0]].sum(), pixels)
    close(explain_func(InputXGradient)(model, x, [1, 0]), (gradient * x).sum(1, keepdim=True), 1e-6)
    last = explain_func(InputXGradient, channel_first=False)
    close(last(model, x.movedim(1, -1), [1, 0]), (gradient * x).sum(1, keepdim=True), 1e-6)
    # Grad-CAM by its definition: the mean gradient of each channel, times the channel, rectified
    layer = model[:3](x).detach().requires_grad_()
    (of_layer,) = torch.autograd.grad(model[3:](layer)[[0, 1], [1, 0]].sum(), layer)
    heat = (of_layer.flatten(2).mean(2).view(2, 4, *[1] * (x.dim() - 2)) * layer).sum(1).relu().detach()
    found = explain_func(GradCAM, target_layers="2")(model, x, [1, 0])
    assert found.shape == (2, 1, *x.shape[2:])
    if x.dim() == 3:  # scaled, resized along the signal and scaled again, as pytorch-grad-cam does it for images
        scaled = lambda one: (one - one.min()) / (1e-7 + (one - one.min()).max())  # noqa: E731
        for one, wanted in zip(found[:, 0], heat, strict=True):
            close(one, scaled(cv2.resize(scaled(wanted)[:, None].numpy(), (1, 40))[:, 0]), 1e-5)
    layered = explain_func(LayerGradCam, layer="2")(model, x, [1, 0])
    assert layered.shape == (2, 1, *x.shape[2:])
    assert np.isfinite(found).all()
