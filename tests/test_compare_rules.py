"""Captum's rules of backpropagation: refused where they would give plain gradients without a word."""

import pytest
import timm
import torch
import torchvision
from captum import attr
from torch import nn
from torch.nn import functional as F

from xai_compare import methods_named
from xai_compare._cost import in_forwards

RULES = {"guided-backprop": attr.GuidedBackprop, "deconvolution": attr.Deconvolution, "deep-lift": attr.DeepLift}
pytestmark = pytest.mark.filterwarnings("ignore:Setting")  # Captum's, of the hooks it sets


def by_name(name, model, x):
    return torch.as_tensor(methods_named([name])[name].explain({}, 4)(model, x, torch.ones(len(x), dtype=torch.long)))


def net(activation):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).eval()


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.convolution, self.head, self.function = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), function

    def forward(self, x):
        return self.head(self.function(self.convolution(x)).mean((2, 3)))


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", RULES)
def test_networks_of_relu_layers_have_the_maps_of_captum(name):
    model = net(nn.ReLU())
    found = by_name(name, model, IMAGES)
    theirs = RULES[name](net(nn.ReLU())).attribute(IMAGES.clone().requires_grad_(), target=1).sum(1)
    torch.testing.assert_close(found, theirs.detach()[:, None].squeeze(1).view_as(found))
    plain = attr.Saliency(model).attribute(IMAGES.clone().requires_grad_(), target=1, abs=False).sum(1).view_as(found)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [*RULES, "deep-lift-shap"])
@pytest.mark.parametrize("function", [F.relu, torch.relu, F.relu6, F.gelu, F.silu, F.elu, torch.tanh, F.softplus])
def test_activations_that_are_functions_have_no_rule(name, function):
    with pytest.raises(ValueError, match=f"no rule for {function.__name__} as this Functional calls it"):
        by_name(name, Functional(function).eval(), IMAGES)


@pytest.mark.parametrize("name", RULES)
def test_relu6_has_no_rule_though_relu_has(name):
    with pytest.raises(ValueError, match=r"no rule for (relu6|hardtanh) as this Sequential calls it"):
        by_name(name, net(nn.ReLU6()), IMAGES)


def test_activations_in_place_are_seen_too():
    with pytest.raises(ValueError, match="no rule for relu as"):
        by_name("guided-backprop", Functional(torch.relu_).eval(), IMAGES)


def test_smooth_activations_may_stand_beside_relus_in_guided_backprop_and_not_in_deep_lift():
    assert by_name("guided-backprop", net(nn.Hardswish()), IMAGES).abs().sum() > 0
    with pytest.raises(ValueError, match="no rule for hardswish"):
        by_name("deep-lift", net(nn.Hardswish()), IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("guided-backprop", lambda: timm.create_model("tf_efficientnet_lite0", num_classes=3)),
        ("guided-backprop", lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)),
        ("guided-backprop", lambda: torchvision.models.googlenet(num_classes=3, init_weights=False, aux_logits=False)),
        ("deep-lift", lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)),
        ("deep-lift", lambda: torchvision.models.densenet121(num_classes=3)),
    ],
)
def test_real_models_without_relu_layers_are_refused_and_left_as_they_were(name, make):
    model = make().eval()
    with pytest.raises(ValueError, match="has no rule for"):
        by_name(name, model, torch.randn(1, 3, 32, 32))
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("groups", "channels"), [(1, 8), (8, 8), (4, 16)])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_backward_pass_of_grouped_convolutions_costs_two_forward_passes(groups, channels, kind):
    model, x = kind(8, channels, 3, groups=groups), torch.randn(1, 8, 16, 16).requires_grad_()
    assert in_forwards(lambda: model(x).sum().backward(), lambda: model(x)) == 3
    frozen = kind(8, channels, 3, groups=groups).requires_grad_(False)
    assert in_forwards(lambda: frozen(x).sum().backward(), lambda: frozen(x)) == 2
