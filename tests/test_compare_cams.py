"""Every CAM of pytorch-grad-cam by its name equals one that is made by hand, with layer and transform written down."""

import contextlib
import io

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchvision
from pytorch_grad_cam.ablation_layer import AblationLayerVit
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from xai_compare._cams import CAMS
from xai_compare._methods import methods
from xai_compare._names import slug

NAMES = [name for rows in CAMS.values() for name in rows]
TARGETS = [1, 2]
SESS = {"num_scales": 2}
NOT_ON_VITS = ("fullgrad", "shapleycam")


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        yield


def small_resnet():
    model = ResNet(BasicBlock, [1] * 4, num_classes=6, channels=(8, 12, 16, 24), stem_width=8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
    nn.init.uniform_(model.fc.weight)  # so that no map is negative everywhere
    return model


def small_vit(height=64, width=48):
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=(height, width), num_classes=6, depth=5, embed_dim=24
    ).eval()


def by_name(name, model, images, targets=TARGETS, **options):
    np.random.seed(0)
    return methods()[name].explain(options, 16)(model, images, torch.tensor(targets))[:, 0]


def by_hand(name, model, images, layers, **given):
    """As the library's own examples do it, each image alone where classes are compared."""
    cls = next(row.title for rows in CAMS.values() for own, row in rows.items() if own == name)
    np.random.seed(0)
    cam = getattr(pytorch_grad_cam, cls)(model, [] if name == "fullgrad" else layers, **given)
    if name == "finercam":
        pairs = zip(images.split(1), TARGETS, strict=True)
        return np.concatenate([cam(one, None, target_idx=target) for one, target in pairs])
    return cam(images.clone().requires_grad_(), [ClassifierOutputTarget(target) for target in TARGETS])


def compared(name, model, images, layers, **given):
    """By name, and by hand at the last of these layers, or all where several are read."""
    options = SESS if name == "sess" else {}
    by_itself = {"ablation_layer": AblationLayerVit()} if name == "ablationcam" and given else {}
    used = layers if name == "refinecam" else layers[-1:]
    theirs = by_hand(name, model, images, used, **given, **options, **by_itself)
    assert theirs.std() > 0.01
    np.testing.assert_allclose(by_name(name, model, images, **options), theirs, atol=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_of_a_small_resnet(name):
    model = small_resnet()
    compared(name, model, torch.randn(2, 3, 112, 80), [model.layer1, model.layer2, model.layer3, model.layer4])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_of_a_resnet18(name):
    model = torchvision.models.resnet18(num_classes=6).eval()
    compared(name, model, torch.randn(2, 3, 112, 80), [model.layer1, model.layer2, model.layer3, model.layer4])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_ON_VITS])
def test_of_a_vit(name):
    height, width = (64, 64) if name == "sess" else (64, 48)  # its windows are squares
    model = small_vit(height, width)

    def on_grid(tokens):
        return tokens[:, 1:].reshape(len(tokens), 4, width // 16, 24).permute(0, 3, 1, 2)

    images = torch.randn(2, 3, height, width)
    compared(name, model, images, [block.norm1 for block in model.blocks[-4:]], reshape_transform=on_grid)


@pytest.mark.parametrize(("name", "said"), [("fullgrad", "blocks.0.norm1 is a LayerNorm"), ("shapleycam", "tokens")])
def test_what_cannot_work_on_a_vit_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        by_name(name, small_vit(), torch.randn(2, 3, 64, 48))


def test_every_cam_of_the_installed_version_has_a_name():
    exported = {name for name, value in vars(pytorch_grad_cam).items() if isinstance(value, type)}
    no_maps = {"ActivationsAndGradients", "GuidedBackpropReLUModel", "DeepFeatureFactorization"}
    no_maps |= {name for name in exported if name.startswith("AblationLayer")}
    assert {row.title for rows in CAMS.values() for row in rows.values()} == exported - no_maps
    assert all(slug(row.title) == name for rows in CAMS.values() for name, row in rows.items() if name != "gradcam++")


class Backwards(nn.Module):
    """Its second convolution runs first."""

    def __init__(self):
        super().__init__()
        self.late, self.early, self.head = nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, x):
        return self.head(self.late(self.early(x).relu()).relu().mean((2, 3)))


def test_fullgrad_multiplies_gradients_by_the_biases_of_their_own_layers():
    model, images = Backwards().eval(), torch.randn(2, 3, 16, 16)
    x = images.clone().requires_grad_()
    early = model.early(x)
    late = model.late(early.relu())
    logits = model.head(late.relu().mean((2, 3)))
    gradients = torch.autograd.grad(logits[[0, 1], TARGETS].sum(), [x, early, late])
    factors = [x, model.early.bias[:, None, None], model.late.bias[:, None, None]]
    total = 0
    for gradient, factor in zip(gradients, factors, strict=True):
        parts = (gradient * factor).abs().detach().flatten(0, 1).numpy()
        total = total + scale_cam_image(parts, (16, 16)).reshape(2, -1, 16, 16).sum(1)
    np.testing.assert_allclose(by_name("fullgrad", model, images), scale_cam_image(total), atol=1e-5)


def test_fullgrad_refuses_biases_that_it_does_not_read():
    model = small_resnet()
    model.layer2[0].bn1 = nn.GroupNorm(2, 12)
    with pytest.raises(ValueError, match=r"incomplete: layer2\.0\.bn1 is a GroupNorm"):
        by_name("fullgrad", model, torch.randn(2, 3, 64, 64))


def test_shapleycam_of_frozen_weights_is_that_of_trainable_ones():
    model, images = small_resnet(), torch.randn(2, 3, 112, 80)
    before = by_name("shapleycam", model, images)
    np.testing.assert_allclose(by_name("shapleycam", model.requires_grad_(False), images), before, atol=1e-5)


def test_finercam_compares_each_image_with_its_own_alike_classes():
    model, images = small_resnet(), torch.randn(2, 3, 112, 80)
    found = by_name("finercam", model, images, comparison_categories=[1, 5], alpha=0.5)
    for one, target, ours in zip(images.split(1), TARGETS, found, strict=True):
        logits = model(one)[0].tolist()
        order = sorted(set(range(6)) - {target}, key=lambda other: abs(logits[other] - logits[target]))
        of = FinerWeightedTarget(target, [order[0], order[4]], 0.5)
        theirs = pytorch_grad_cam.GradCAM(model, [model.layer4])(one.requires_grad_(), [of])
        np.testing.assert_allclose(ours, theirs[0], atol=1e-5)


@pytest.mark.parametrize("name", ["finercam", "sess"])
def test_what_compares_classes_takes_no_functions(name):
    explain = methods()[name].explain({}, 16)
    with pytest.raises(ValueError, match=r"compares classes, got a function as target.*gradcam"):
        explain(small_resnet(), torch.randn(1, 3, 64, 64), [lambda output: output[0]])


def test_an_error_under_ablationcam_leaves_the_models_own_layer():
    model, calls = small_resnet(), []

    def breaks(output):
        calls.append(output)
        if len(calls) == 2:
            raise RuntimeError("while the layer is another one")
        return output[0]

    layer, explain = model.layer4, methods()["ablationcam"].explain({}, 16)
    with pytest.raises(RuntimeError, match="another one"):
        explain(model, torch.randn(1, 3, 64, 64), [breaks])
    assert model.layer4 is layer


def test_ablationcam_of_signals_equals_zeroing_channels_by_a_hook():
    layers = nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 6)).eval()
    x, kept = torch.randn(1, 2, 60), []
    whole, activations = model(x)[0, 1], model[:4](x).detach()
    for channel in range(4):
        changed = activations.clone()
        changed[:, channel] = 0
        kept.append((whole - model[4:](changed)[0, 1]) / whole)
    cam = (torch.stack(kept)[:, None] * activations[0]).sum(0).relu().detach().numpy()
    cam = np.interp((np.arange(60) + 0.5) * 56 / 60 - 0.5, np.arange(56), cam)
    ours = by_name("ablationcam", model, x, [1], target_layers="3")[0]
    np.testing.assert_allclose(ours, (cam - cam.min()) / np.ptp(cam), atol=1e-4)
