"""CA-Stream explained: pytorch-grad-cam, Captum, Quantus, and its own attention."""

import numpy as np
import pytest
import torch
from ca_stream_networks import STAGES, derived_stream, images, resnet, small, stream_on
from captum.attr import IntegratedGradients, LayerActivation, LayerGradCam, LayerIntegratedGradients, Saliency
from contracts import left_as_found
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from adapters import RawAttentionCAM
from captum_ext import RawAttention
from quantus_metrics import explain_func

# pytorch-grad-cam, Captum, Quantus


@pytest.mark.sampled(1)
@pytest.mark.parametrize("options", [{}, {"projections": True}, {"class_specific": True}], ids=str)
def test_gradcam_is_the_one_derived_by_hand(options):
    wrapper = stream_on(resnet(), **options).float()
    pixels, classes = images().float(), [3, 0]
    seen = []
    hook = wrapper.backbone.layer4[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    logits = wrapper(pixels)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[[0, 1], classes].sum(), seen[0])
    expected = (gradient.mean((2, 3), keepdim=True) * seen[0]).sum(1, keepdim=True)
    actual = LayerGradCam(wrapper, wrapper.backbone.layer4[-1]).attribute(pixels, target=torch.tensor(classes))
    torch.testing.assert_close(actual, expected)
    targets = [ClassifierOutputTarget(c) for c in classes]
    with GradCAM(model=wrapper, target_layers=[wrapper.backbone.layer4[-1]]) as cam:
        maps = cam(input_tensor=pixels, targets=targets)
    scaled = pipeline(expected[:, 0].relu().detach().numpy(), pixels)
    np.testing.assert_allclose(maps, scaled, atol=1e-5)
    assert maps.std() > 0.05


def pipeline(raw, pixels):
    """What pytorch-grad-cam makes of maps of a layer."""

    class Fixed(BaseCAM):
        def get_cam_image(self, *_, **__):
            return raw

    model = nn.Sequential(nn.Conv2d(3, 2, 8, 8), nn.Flatten(), nn.LazyLinear(2)).to(pixels)
    model(pixels)
    with Fixed(model, [model[0]]) as cam:
        return cam(input_tensor=pixels, targets=[ClassifierOutputTarget(0)] * len(pixels))


@pytest.mark.slow
@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, ScoreCAM, LayerCAM, EigenCAM])
@pytest.mark.parametrize("specific", [False, True])
def test_cams_explain_the_stream_and_leave_it_as_found(method, specific):
    model = resnet().float()
    wrapper = stream_on(model, class_specific=specific)
    pixels = images().float()[:, :, :, :64]
    layers = [model.layer2[-1]] if method is ScoreCAM else [model.layer4[-1]]
    targets = [ClassifierOutputTarget(c) for c in (3, 0)]
    before = wrapper(pixels)
    with method(model=wrapper, target_layers=layers) as cam:
        maps = cam(input_tensor=pixels, targets=targets)
        again = cam(input_tensor=pixels, targets=targets)
    assert maps.shape == (2, 64, 64)
    assert np.array_equal(maps, again)
    assert np.isfinite(maps).all()
    assert maps.max() > 0.9
    assert torch.equal(wrapper(pixels), before)
    assert not any(m._forward_hooks or m._backward_hooks for m in wrapper.modules())


@pytest.mark.slow
def test_scorecam_weighs_by_the_streams_logits():
    wrapper = stream_on(resnet()).float()
    pixels = images(1).float()
    layer = wrapper.backbone.layer4[-1]
    with ScoreCAM(model=wrapper, target_layers=[layer]) as cam:
        activations = torch.rand(1, 4, 2, 3)
        weights = cam.get_cam_weights(pixels, layer, [ClassifierOutputTarget(2)], activations.numpy(), None)
    masks = F.interpolate(activations, (64, 96), mode="bilinear", align_corners=True)[0]
    masks = (masks - masks.amin((1, 2), keepdim=True)) / (
        masks.amax((1, 2), keepdim=True) - masks.amin((1, 2), keepdim=True) + 1e-8
    )
    with torch.no_grad():
        scores = torch.stack([wrapper(pixels * mask)[0, 2] for mask in masks])
    np.testing.assert_allclose(weights[0], scores.softmax(0).numpy(), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 4])
def test_captum_replaces_a_layers_output(start):
    """Completeness: the sum is the logit less the logit where the last stage's features are the baseline's."""
    model, seen = resnet(), []
    wrapper, pixels, classes = stream_on(model, start_stage=start), images()[:, :, :, :64], torch.tensor([3, 0])
    hooks = [model.get_submodule(n).register_forward_hook(lambda _, __, out: seen.append(out)) for n in STAGES]
    with torch.no_grad():
        wrapper.stream.query.mul_(0.1)
        model(pixels)
        model(pixels * 0)
        for hook in hooks:
            hook.remove()
        maps = [f.flatten(2).mT for f in (*seen[start:4], seen[9])]
        last, _ = derived_stream(wrapper.stream, maps, wrapper.stream.query.expand(2, -1))
        change = (wrapper(pixels) - model.fc(last))[range(2), classes]
    given = LayerIntegratedGradients(wrapper, model.layer4).attribute(pixels, pixels * 0, target=classes, n_steps=25)
    torch.testing.assert_close(given.sum((1, 2, 3)), change, rtol=1e-3, atol=1e-3 * change.abs().max().item())


def test_captum_integrated_gradients_are_complete():
    wrapper = stream_on(small(), stages=["a", "b", "c"])
    pixels, classes = images()[:, :, :24, :32], torch.tensor([3, 0])
    maps = IntegratedGradients(wrapper).attribute(pixels, pixels * 0.5, target=classes, n_steps=200)
    change = (wrapper(pixels) - wrapper(pixels * 0.5))[range(2), classes].detach()
    assert change.abs().min() > 0.01
    torch.testing.assert_close(maps.sum((1, 2, 3)), change, rtol=0.02, atol=0.01 * change.abs().max().item())


@pytest.mark.slow
def test_captum_saliency_and_activations_are_those_of_the_stream():
    wrapper, pixels = stream_on(resnet()), images().requires_grad_()
    (gradient,) = torch.autograd.grad(wrapper(pixels)[:, 2].sum(), pixels)
    torch.testing.assert_close(Saliency(wrapper).attribute(pixels, target=2), gradient.abs())
    pooled = LayerActivation(wrapper, wrapper.backbone.avgpool).attribute(pixels)
    torch.testing.assert_close(wrapper.backbone.fc(pooled.flatten(1)), wrapper(pixels))
    assert pooled.shape == (2, 512, 1, 1)
    features = LayerActivation(wrapper, wrapper.backbone.layer4).attribute(pixels)
    before = LayerActivation(wrapper, wrapper.backbone.layer3).attribute(pixels)
    torch.testing.assert_close(features, wrapper.backbone.layer4(before))
    assert not torch.allclose(pooled.flatten(1), features.mean((2, 3)))


@pytest.mark.slow
def test_hooks_that_change_a_stage_change_the_stream():
    wrapper = stream_on(resnet())
    expected = wrapper(images() * 0)
    zero = wrapper.backbone.conv1.register_forward_pre_hook(lambda _, args: (args[0] * 0,))
    assert torch.equal(wrapper(images()), expected)
    zero.remove()
    hook = wrapper.backbone.layer2.register_forward_hook(lambda _, __, out: out * 0)
    _, maps = wrapper.forward_with_attention(images())
    hook.remove()
    torch.testing.assert_close(maps[2], torch.full_like(maps[2], 1 / maps[2][0].numel()))


@pytest.mark.slow
def test_quantus_explains_it():
    wrapper = stream_on(resnet()).float()
    assert not any(isinstance(module, nn.Softmax) for module in wrapper.modules())
    pixels, classes = images().float(), torch.tensor([3, 0])
    maps = explain_func(LayerGradCam, layer="backbone.layer4", attribute_to_layer_input=False)(wrapper, pixels, classes)
    raw = LayerGradCam(wrapper, wrapper.backbone.layer4).attribute(pixels, target=classes)
    expected = F.interpolate(raw, (64, 96), mode="bilinear").detach().numpy()
    np.testing.assert_allclose(maps, expected, atol=1e-5 * np.abs(expected).max())
    attention = explain_func(RawAttention)(wrapper, pixels, classes)
    assert attention.shape == (2, 1, 64, 96)


# Raw attention


@pytest.mark.slow
@pytest.mark.parametrize("specific", [False, True])
def test_raw_attention_is_the_map_that_comes_with_the_prediction(specific):
    wrapper = stream_on(resnet(), class_specific=specific).train()
    wrapper.backbone.layer1.train()
    with left_as_found(wrapper):
        maps = [RawAttention(wrapper).attribute(images(), target=3, stage=i) for i in (-1, 0, 2)]
    _, expected = wrapper.eval().forward_with_attention(images())
    for actual, i in zip(maps, (-1, 0, 2), strict=True):
        assert torch.equal(actual, expected[i].detach()[:, None])
        assert not actual.requires_grad
    assert maps[0].std() > 1e-3


def test_raw_attention_cam_scales_as_pytorch_grad_cam():
    wrapper = stream_on(resnet()).float().train()
    pixels = images().float()
    with left_as_found(wrapper), RawAttentionCAM(wrapper, [wrapper.backbone.layer4]) as cam:
        maps = cam(input_tensor=pixels, targets=[ClassifierOutputTarget(c) for c in (3, 0)])
    raw = wrapper.eval().forward_with_attention(pixels)[1][-1].detach().numpy()
    np.testing.assert_allclose(maps, pipeline(raw, pixels), atol=1e-4)
    assert maps.dtype == np.float32


@pytest.mark.slow
def test_raw_attention_cam_sits_in_a_list_of_cams():
    wrapper = stream_on(resnet()).float()
    for method in (GradCAM, RawAttentionCAM, LayerCAM):
        with method(model=wrapper, target_layers=[wrapper.backbone.layer4[-1]]) as cam:
            maps = cam(input_tensor=images().float(), targets=None)
        assert maps.shape == (2, 64, 96)
        assert maps.min() >= 0
        assert maps.max() <= 1 + 1e-6
        assert maps.std() > 0.01


@pytest.mark.parametrize("make", [RawAttention, RawAttentionCAM])
def test_raw_attention_is_that_of_a_ca_stream(make):
    with pytest.raises(TypeError, match="CAStream"):
        make(resnet())


def test_raw_attention_has_no_such_stage():
    with pytest.raises(ValueError, match=r"stage.*5"):
        RawAttention(stream_on(resnet())).attribute(images(), stage=5)
