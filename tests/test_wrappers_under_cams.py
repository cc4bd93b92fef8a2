"""Every CAM of the installed pytorch-grad-cam on MHEX and CAStream, at the layers they offer and that users write."""

import contextlib
import copy
import functools
import io
import warnings

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

from adapters import MHEX, CAStream, MHEXEvidenceCAM, RawAttentionCAM

ABLATING, META = ("AblationCAM",), ("FinerCAM", "RefineCAM", "SESS")
GRADIENTS = ("GradCAM", "HiResCAM", "GradCAMElementWise", "XGradCAM", "GradCAMPlusPlus", "LayerCAM", "EigenGradCAM")
OTHERS = ("ScoreCAM", "EigenCAM", "KPCA_CAM", "RandomCAM", "FEM", "SegEigenCAM", "FullGrad", "ShapleyCAM")
CAMS = GRADIENTS + OTHERS + ABLATING + META
TARGETS = [ClassifierOutputTarget(1), ClassifierOutputTarget(2)]


def small_resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def run_cam(name, model, layers, images, targets=TARGETS):
    """Its maps, made as users do, in a `with` block where there is one."""
    kind = getattr(pytorch_grad_cam, name)
    cam = kind(model, layers, **({"num_scales": 2} if name == "SESS" else {}))
    quiet = contextlib.redirect_stderr(io.StringIO())  # progress bars
    with warnings.catch_warnings(), quiet, cam if hasattr(cam, "__enter__") else contextlib.nullcontext():
        warnings.simplefilter("ignore")  # of scikit-learn, about the images' sizes
        return cam(images, targets)


def state(model):
    return [(name, module, len(module._forward_hooks)) for name, module in model.named_modules()]


WRAPPERS = {
    "MHEX": (lambda: MHEX(small_resnet()), lambda model: model.target_layers),
    "MHEX, layer in front": (lambda: MHEX(small_resnet()), lambda model: [model.backbone.layer3[-1]]),
    "MHEX, original": (lambda: MHEX(small_resnet(), prediction="original"), lambda model: model.target_layers),
    "MHEX, original, container": (
        lambda: MHEX(small_resnet(), prediction="original"),
        lambda model: [model.backbone.layer4],
    ),
    "CAStream": (lambda: CAStream(small_resnet()), lambda model: [model.backbone.layer4[-1]]),
    "CAStream, container": (lambda: CAStream(small_resnet()), lambda model: [model.backbone.layer4]),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CAMS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_cam_works_and_leaves_the_model_as_it_was(wrapper, name, images):
    build, layers = WRAPPERS[wrapper]
    model = build().eval()
    before, logits = state(model), model(images)
    maps = run_cam(name, model, layers(model), images)
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()
    if name not in ("RandomCAM", "FullGrad", "FEM"):  # drawn weights, a scale of its own, too few places
        assert maps.max() > 0.9
    assert state(model) == before
    torch.testing.assert_close(model(images), logits, rtol=0, atol=0)


def test_the_list_holds_every_cam_of_the_installed_version():
    exported = {
        name
        for name, value in vars(pytorch_grad_cam).items()
        if isinstance(value, type) and name not in ("ActivationsAndGradients", "GuidedBackpropReLUModel")
        if not name.startswith("AblationLayer") and name != "DeepFeatureFactorization"
    }
    assert exported == set(CAMS)


def grad_cam_by_hand(model, images, sums, targets=(1, 2)):
    """ReLU of the sum over channels of activations times mean gradients, at tensors of this pass."""
    logits = model(images)
    (gradient,) = torch.autograd.grad(logits[[0, 1], list(targets)].sum(), sums[-1])
    cam = F.relu((gradient.mean((2, 3), keepdim=True) * sums[-1]).sum(1)).detach().numpy()
    cam = cam - cam.min((1, 2), keepdims=True)
    return cam / (1e-7 + cam.max((1, 2), keepdims=True))


def test_grad_cam_at_the_offered_layer_is_that_of_the_sum_that_the_last_head_reads(images):
    model = MHEX(small_resnet()).eval()
    block, seen = model.backbone.layer4[-1], []

    def last_branches(module, args, output):  # bn2 returns the residual branch, downsample the identity branch
        seen.append(output.clone())  # as the addition is written over one of them

    hooks = [block.bn2.register_forward_hook(last_branches), block.downsample.register_forward_hook(last_branches)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    residual, identity = seen[:2]
    gate = model.mhex_blocks[-1]
    total = (residual + identity).detach().requires_grad_()
    logits = gate.head(gate.gate(total.mean((2, 3)).relu()))
    torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(logits[[0, 1], [1, 2]].sum(), total)
    cam = F.relu((gradient.mean((2, 3), keepdim=True) * total).sum(1)).detach()
    cam = cam / (1e-7 + cam.amax((1, 2), keepdim=True))
    maps = run_cam("GradCAM", model, model.target_layers, images)
    peaks = maps[:, 16::32, 16::32]  # the upsampled map at the centres of the 2 x 2 cells, nearly
    assert np.corrcoef(peaks.ravel(), cam.numpy().ravel())[0, 1] > 0.95
    assert np.array_equal(maps.reshape(2, -1).argmax(1) // (64 * 32), cam.flatten(1).argmax(1).numpy() // 2)


BEHIND = r"does not depend on the target layer\(s\) \['layer4.0'\].*Pass `model.target_layers`"


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [*GRADIENTS, "FinerCAM", "RefineCAM", "AblationCAM"])
def test_the_line_that_everybody_writes_first_explains_itself(name, images):
    model = MHEX(small_resnet()).eval()
    before, logits = state(model), model(images)
    with pytest.raises(ValueError, match=BEHIND):
        run_cam(name, model, [model.backbone.layer4[-1]], images)
    torch.testing.assert_close(model(images), logits, rtol=0, atol=0)
    assert [module for _, module, _ in state(model)] == [module for _, module, _ in before]
    for advised in (model, MHEX(model.backbone, prediction="original").eval()):  # what the message says
        assert run_cam(name, advised, advised.target_layers, images).max() > 0.9


@pytest.mark.slow
def test_methods_without_gradients_may_read_a_layer_behind_the_prediction(images):
    model = MHEX(small_resnet()).eval()
    for name in ("EigenCAM", "ScoreCAM"):
        assert run_cam(name, model, [model.backbone.layer4[-1]], images).max() > 0.9
    hook = model.backbone.layer4.register_forward_hook(lambda *_: None)  # nor do other hooks matter
    model(images).sum().backward()
    hook.remove()


@pytest.mark.slow
def test_ablating_a_layer_in_front_equals_zeroing_its_channels_by_a_hook(images):
    model = MHEX(small_resnet()).eval()
    layer, kept = model.backbone.layer3[-1], []

    def zero(channel, _, __, output):
        kept.append(output)
        output = output.clone()
        output[:, channel : channel + 1] = 0
        return output

    def scores(channel):
        hook = layer.register_forward_hook(functools.partial(zero, channel))
        found = model(images)[[0, 1], [1, 2]]
        hook.remove()
        return found

    with torch.no_grad():
        whole = model(images)[[0, 1], [1, 2]]
        drops = torch.stack([(whole - scores(channel)) / whole for channel in range(256)], 1)
    cam = pytorch_grad_cam.AblationCAM(model, [layer])
    with contextlib.redirect_stderr(io.StringIO()):
        cam(images, TARGETS)
        weights = cam.get_cam_weights(images, layer, TARGETS, kept[0].numpy(), None)
    np.testing.assert_allclose(weights, drops.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("cam", "wrapper"), [(MHEXEvidenceCAM, MHEX), (RawAttentionCAM, CAStream)])
def test_our_own_cams_under_methods_that_take_others(cam, wrapper, images):
    model = wrapper(small_resnet()).eval()
    sess = pytorch_grad_cam.SESS(model, [], base_method=cam, num_scales=2)
    assert sess(images, TARGETS).max() > 0.9
    refined = pytorch_grad_cam.RefineCAM(model, [None], base_method=cam)
    np.testing.assert_allclose(refined(images, TARGETS), cam(model)(images, TARGETS), atol=1e-5)
    with pytest.raises(TypeError, match=r"reads no gradients at layers.*with SESS or RefineCAM"):
        pytorch_grad_cam.FinerCAM(model, [], base_method=cam)(images)


def test_a_block_that_was_replaced_or_extended_after_wrapping_is_noticed(images):
    model = MHEX(small_resnet()).eval()
    changed = copy.deepcopy(model)
    changed.backbone.layer2[0] = nn.Conv2d(64, 128, 1, 2)
    with pytest.raises(ValueError, match=r"without its residual additions \['layer2.0'\].*Wrap it again"):
        changed(images)

    class Adapted(nn.Module):  # LoRA of a convolution: a second one of low rank beside it
        def __init__(self, conv):
            super().__init__()
            self.base, self.down = conv, nn.Conv2d(conv.in_channels, 2, 3, conv.stride, 1)
            self.up = nn.Conv2d(2, conv.out_channels, 1)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    late = copy.deepcopy(model)
    late.backbone.layer2[0].conv2 = Adapted(late.backbone.layer2[0].conv2)
    with pytest.raises(ValueError, match=r"'layer2.0' adds 2 pairs of branches, not 1.*Wrap it again"):
        late(images)
    again = MHEX(late.backbone).eval()  # as the message says: the residual addition is the last one
    block, seen = again.backbone.layer2[0], []
    hooks = [m.register_forward_hook(lambda *args: seen.append(args[2].clone())) for m in (block.bn2, block.downsample)]
    gates = again.mhex_blocks[again.names.index("layer2.0")]
    gates.gate.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    again(images)
    for hook in hooks:
        hook.remove()
    residual, identity, s = seen
    torch.testing.assert_close(s, gates.gate((residual + identity).mean((2, 3)).relu()), rtol=1e-4, atol=1e-5)
