"""CA-Stream keeps its promises: counts, gradients, the backbone as found, CAM methods, saving, errors."""

import copy
import functools
import json
import pickle

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import IntegratedGradients, LayerActivation, LayerGradCam, LayerIntegratedGradients, Saliency
from contracts import Breaks, in_threads, left_as_found
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from test_ca_stream_families import Custom, Gate, derived_stream, randomised
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from adapters import CAStream, RawAttentionCAM
from captum_ext import RawAttention
from quantus_metrics import explain_func

STAGES = ("maxpool", "layer1", "layer2", "layer3", "layer4")
GAP = functools.partial(torch.mean, dim=(2, 3))


@functools.cache
def _resnet():
    torch.manual_seed(0)
    return randomised(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), (64, 96))


def resnet():
    return copy.deepcopy(_resnet())


def stream_on(model, **options):
    torch.manual_seed(2)
    return CAStream(model, **options).eval()


def images(count=2):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def small(**options):
    torch.manual_seed(0)
    return randomised(Custom(GAP, **options), (24, 32))


# Counts and initial values


@functools.cache
def _resnet50():
    return torchvision.models.resnet50()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 6_969_152),
        ({"start_stage": 1}, 6_952_704),
        ({"start_stage": 2}, 6_821_376),
        ({"start_stage": 3}, 6_296_576),
        ({"start_stage": 4}, 4_198_400),
        ({"projections": True}, 18_126_272),
    ],
    ids=["S0", "S1", "S2", "S3", "S4", "PROJ"],
)
def test_stream_of_resnet50_has_the_papers_parameters(options, count):
    wrapper = CAStream(_resnet50(), **options)
    assert sum(p.numel() for p in wrapper.stream.parameters()) == count
    assert sum(p.numel() for p in wrapper.parameters() if p.requires_grad) == count
    assert wrapper.stages == STAGES[options.get("start_stage", 0) :]


@pytest.mark.parametrize(("specific", "count"), [(False, 32_526_184), (True, 32_590_120)])
def test_resnet50_with_its_stream_has_the_papers_parameters(specific, count):
    assert sum(p.numel() for p in CAStream(_resnet50(), class_specific=specific).parameters()) == count


def test_initial_values_are_those_of_the_release():
    torch.manual_seed(0)
    stream = CAStream(_resnet50(), class_specific=True).stream
    assert stream.query.shape == (1000, 64)
    assert (stream.query.mean() - 1).abs() < 0.02
    assert (stream.query.std() - 1).abs() < 0.02
    for linear, (d, out) in zip(
        stream.projections, [(64, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 2048)], strict=True
    ):
        bound = (6 / (d + out)) ** 0.5
        assert linear.weight.shape == (out, d)
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert abs(linear.weight.std() / (bound / 3**0.5) - 1) < 0.02


# Training


@pytest.mark.parametrize("options", [{}, {"projections": True}, {"class_specific": True}], ids=str)
def test_gradients_are_finite_differences(options):
    wrapper = stream_on(small(), stages=["a", "c"], **options)
    pixels, labels = torch.randn(2, 3, 16, 18, dtype=torch.float64), torch.tensor([3, 1])
    names, values = zip(*wrapper.stream.named_parameters(prefix="stream"), strict=True)
    values = [v.detach().clone().requires_grad_() for v in values]

    def logits(*new):
        return torch.func.functional_call(wrapper, dict(zip(names, new, strict=True)), (pixels, labels))

    for training in (False, True):
        wrapper.train(training)
        assert torch.autograd.gradcheck(logits, values, fast_mode=True)


def test_training_moves_only_the_stream():
    model = resnet()
    model.layer2.add_module("drop", nn.Dropout(0.5))
    wrapper = CAStream(model).train()
    before = copy.deepcopy(wrapper.state_dict())
    seen = {}
    for name in ("conv1", "layer1", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, n=name: seen.update({n: out}))
    optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=1e-4)
    pixels, labels = images(), torch.tensor([1, 4])
    first = wrapper(pixels)
    assert torch.equal(first, wrapper(pixels))  # no dropout
    F.cross_entropy(first, labels).backward()
    assert not any(out.requires_grad for out in seen.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in wrapper.stream.parameters())
    optimizer.step()
    after = wrapper.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"stream.{name}" for name, _ in wrapper.stream.named_parameters()}
    assert [m.training for m in model.modules()] == [False] * len(list(model.modules()))
    assert wrapper.training
    assert wrapper.stream.training


def test_training_lowers_the_loss():
    wrapper, pixels, labels = stream_on(resnet(), start_stage=3).train(), images(4), torch.tensor([1, 4, 0, 2])
    optimizer = torch.optim.SGD(wrapper.stream.parameters(), 1e-2, 0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(wrapper(pixels), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_only_the_labels_queries_learn():
    wrapper = stream_on(resnet(), class_specific=True).train()
    F.cross_entropy(wrapper(images(), torch.tensor([3, 1])), torch.tensor([3, 1])).backward()
    assert wrapper.stream.query.grad.abs().sum(1).gt(0).tolist() == [False, True, False, True, False]
    with pytest.raises(ValueError, match="labels"):
        wrapper(images())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("specific", [False, True])
def test_a_stage_may_be_changed_in_place_by_what_follows(activation, specific):
    def build(inplace):
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), activation(inplace=inplace), nn.Conv2d(6, 8, 3, 2)]
        return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()

    results = []
    for inplace in (False, True):
        wrapper = stream_on(build(inplace), stages=["1", "3"], class_specific=specific)
        predicted = wrapper(images())
        logits = wrapper.train()(images(), torch.tensor([1, 2]) if specific else None)
        results.append([predicted, logits, *torch.autograd.grad(logits[:, 0].sum(), wrapper.stream.parameters())])
    for plain, changed in zip(*results, strict=True):
        torch.testing.assert_close(changed, plain)


# Evaluation


def test_activations_have_gradients_in_evaluation_and_images_stay():
    wrapper, pixels, seen = stream_on(resnet()), images(), []
    before = pixels.clone()
    wrapper.backbone.layer4.register_forward_hook(lambda _, __, out: seen.append(out))
    wrapper(pixels)[:, 1].sum().backward(inputs=[seen[0]])
    assert seen[0].requires_grad
    assert seen[0].grad.abs().max() > 0
    assert not pixels.requires_grad
    assert pixels.grad is None
    assert torch.equal(pixels, before)
    with torch.no_grad():
        assert not wrapper(pixels).requires_grad


@pytest.mark.parametrize("specific", [False, True])
def test_modes_and_layouts_give_the_same(specific):
    wrapper = stream_on(resnet(), class_specific=specific)
    expected, maps = wrapper.forward_with_attention(images())
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(wrapper(images()), expected)
    given = images().to(memory_format=torch.channels_last)
    twin = copy.deepcopy(wrapper).to(memory_format=torch.channels_last)
    torch.testing.assert_close(twin(given), expected)
    singles = [wrapper.forward_with_attention(x) for x in images().split(1)]
    torch.testing.assert_close(torch.cat([logits for logits, _ in singles]), expected)
    torch.testing.assert_close(torch.cat([m[2] for _, m in singles]), maps[2])


def test_inference_tensors_are_images_too():
    wrapper = stream_on(resnet())
    with torch.inference_mode():
        pixels = images() + 0
        expected = wrapper(pixels)
    torch.testing.assert_close(wrapper(pixels), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "autocast"])
@pytest.mark.parametrize("projections", [False, True])
def test_low_precision_is_close(dtype, projections):
    wrapper = stream_on(resnet(), projections=projections).float()
    with torch.no_grad():
        wrapper.stream.query.mul_(0.2)
        expected, maps = wrapper.forward_with_attention(images().float())
        if dtype == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                logits, low = wrapper.forward_with_attention(images().float())
        else:
            logits, low = wrapper.to(dtype).forward_with_attention(images().to(dtype))
    close = 0.02 if dtype is torch.float16 else 0.12
    assert (logits.float() - expected).abs().max() < close * expected.abs().max()
    for actual, wanted in zip(low, maps, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - wanted).abs().max() < 2 * close * wanted.max()
        assert (actual.sum((1, 2)) - 1).abs().max() < 1e-5


def test_training_works_under_autocast():
    wrapper = stream_on(resnet().float(), projections=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(wrapper(images().float()), torch.tensor([1, 2]))
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in wrapper.stream.parameters())
    exact = stream_on(resnet(), projections=True).train()
    F.cross_entropy(exact(images()), torch.tensor([1, 2])).backward()
    last, wanted = wrapper.stream.projections[-1].bias.grad, exact.stream.projections[-1].bias.grad
    assert F.cosine_similarity(last.double(), wanted, dim=0) > 0.95


def test_threads_share_a_wrapper_and_its_backbone():
    wrapper = stream_on(resnet())
    batches = [images() * (i + 1) for i in range(4)]
    expected = [wrapper(x) for x in batches]
    plain = [wrapper.backbone(x) for x in batches]
    jobs = [lambda x=x: [wrapper(x) for _ in range(3)] for x in batches]
    jobs += [lambda x=x: [wrapper.backbone(x) for _ in range(3)] for x in batches]
    for results, wanted in zip(in_threads(jobs), expected + plain, strict=True):
        assert all(torch.equal(result, wanted) for result in results)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(twin):
    wrapper = stream_on(resnet())
    wrapper(images())
    expected = wrapper(images())
    other = twin(wrapper)
    assert torch.equal(other(images()), expected)
    with torch.no_grad():
        other.backbone.fc.weight.mul_(2)
        other.backbone.fc.bias.mul_(2)
    torch.testing.assert_close(other(images()), 2 * expected)
    assert torch.equal(wrapper(images()), expected)
    with torch.no_grad():
        other.stream.query.mul_(-1)
    assert torch.equal(wrapper(images()), expected)
    assert all(p.requires_grad for p in other.unwrap().parameters())
    assert not any(p.requires_grad for p in wrapper.backbone.parameters())


def test_state_goes_from_one_wrapper_to_another():
    wrapper, other = stream_on(resnet()), CAStream(small_twin := resnet()).eval()
    assert not torch.allclose(other(images()), wrapper(images()))
    small_twin.fc.weight.data.zero_()
    other.load_state_dict(wrapper.state_dict())
    assert torch.equal(other(images()), wrapper(images()))


# The backbone is left as found


def mixed():
    model = resnet()
    model.train()
    model.layer2.eval()
    model.layer3[0].bn1.eval()
    model.layer1.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    return model


def test_unwrap_gives_the_backbone_back_as_it_was():
    model = mixed()
    state = torch.get_rng_state()
    with left_as_found(model):
        wrapper = CAStream(model)
        wrapper.train()(images()).sum().backward()
        wrapper.eval()(images())
        wrapper.train()
        assert wrapper.unwrap() is model
        torch.set_rng_state(state)  # the stream's first values were drawn
    assert wrapper.backbone is model


@pytest.mark.parametrize("options", [{"stages": ["layer1", "nothing"]}, {"start_stage": 5}, {"stages": "layer4"}])
def test_a_wrapper_that_cannot_be_made_leaves_the_model_as_found(options):
    model = mixed()
    with left_as_found(model), pytest.raises((TypeError, ValueError)):
        CAStream(model, **options)


def test_looking_for_stages_does_not_move_batch_norm_statistics():
    model = resnet().train()
    before = copy.deepcopy(model.state_dict())
    CAStream(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_wrapped_backbone_alone_answers_as_before():
    model = resnet()
    expected = model(images()).detach()
    wrapper = CAStream(model).eval()
    assert torch.equal(model(images()), expected)
    with left_as_found(model):
        wrapper(images())
        assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", ["conv1", "layer3.0.bn1", "avgpool", "fc"])
def test_an_error_leaves_nothing_behind(place, error):
    model = resnet()
    wrapper = stream_on(model)
    expected, plain = wrapper(images()), model(images())
    parent, _, name = place.rpartition(".")
    kept = model.get_submodule(place)
    setattr(model.get_submodule(parent), name, Breaks(error))
    with left_as_found(model), pytest.raises(type(error)):
        wrapper(images())
    setattr(model.get_submodule(parent), name, kept)
    assert torch.equal(model(images()), plain)
    assert torch.equal(wrapper(images()), expected)


# pytorch-grad-cam, Captum, Quantus


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


# Saving


OPTIONS = {"stages": ["layer1", "layer3", "layer4"], "start_stage": 1, "projections": True, "class_specific": True}


def test_stream_is_saved_without_its_backbone(tmp_path):
    wrapper = stream_on(resnet(), **OPTIONS)
    wrapper.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.items() >= OPTIONS.items()
    weights = sum(p.numel() * 8 for p in wrapper.stream.parameters())
    assert weights < (tmp_path / "model.safetensors").stat().st_size < weights + 5000
    other = CAStream.from_pretrained(tmp_path, model=resnet())
    assert not other.training
    assert other.stages == ("layer3", "layer4")
    assert torch.equal(other(images()), wrapper(images()))
    changed = resnet()
    changed.fc.weight.data.mul_(2)
    changed.fc.bias.data.mul_(2)
    torch.testing.assert_close(
        CAStream.from_pretrained(str(tmp_path), model=changed)(images(), torch.tensor([1, 0])),
        2 * wrapper(images(), torch.tensor([1, 0])),
    )


def test_stream_is_saved_with_its_backbone(tmp_path):
    wrapper = stream_on(resnet())
    wrapper.save_pretrained(tmp_path, with_backbone=True)
    fresh = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).double()
    assert torch.equal(CAStream.from_pretrained(tmp_path, model=fresh)(images()), wrapper(images()))
    assert torch.equal(fresh.eval()(images()), resnet()(images()))


def test_weights_of_another_layout_name_keys_and_shapes(tmp_path):
    stream_on(resnet(), start_stage=3).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"start_stage": 2}))
    with pytest.raises(ValueError) as error:
        CAStream.from_pretrained(tmp_path, model=resnet())
    for words in ("stream.query", "(256,)", "(128,)", "stream.projections.2.weight", "stream.projections.0.weight"):
        assert words in str(error.value)


def test_loading_needs_a_model(tmp_path):
    stream_on(resnet()).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="model="):
        CAStream.from_pretrained(tmp_path)


@pytest.mark.parametrize("with_backbone", [None, True])
def test_pushing_uploads_weights_and_settings(monkeypatch, tmp_path, with_backbone):
    from huggingface_hub import HfApi
    from safetensors.torch import load_file

    seen = {}

    def upload(_, *, repo_id, folder_path, **__):
        seen["repo"] = repo_id
        seen["files"] = {p.name for p in type(tmp_path)(folder_path).iterdir()}
        seen["state"] = load_file(type(tmp_path)(folder_path) / "model.safetensors")
        seen["config"] = json.loads((type(tmp_path)(folder_path) / "config.json").read_text())
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **__: type("Url", (), {"repo_id": repo_id})())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    wrapper = stream_on(resnet(), start_stage=2)
    wrapper.push_to_hub("someone/stream", with_backbone=with_backbone)
    assert seen["repo"] == "someone/stream"
    assert seen["files"] >= {"model.safetensors", "config.json"}
    assert seen["config"]["start_stage"] == 2
    state = {k: v for k, v in wrapper.state_dict().items() if with_backbone or k.startswith("stream.")}
    assert seen["state"].keys() == state.keys()
    assert all(torch.equal(seen["state"][k], state[k]) for k in state)


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
    with pytest.raises(TypeError, match="images"):
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
