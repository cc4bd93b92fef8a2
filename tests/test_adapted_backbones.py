"""Frozen, half-frozen and LoRA models: numbers as by plain autograd, and wrappers that train what is theirs."""

import copy

import pytest
import timm
import torch
import torchvision
from pytorch_grad_cam import GradCAM
from torch import nn
from toy_models import tiny_vit

from adapters import MHEX, CAStream, deep_supervision_loss
from captum_ext import CDAM, MHEXCAM, IntegratedCDAM, RawAttention, RelevancePropagation


class LoRA(nn.Module):
    """A layer with a trainable one of low rank beside it, as libraries of adapters put it there."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        if isinstance(base, nn.Linear):
            self.down, self.up = nn.Linear(base.in_features, rank, False), nn.Linear(rank, base.out_features, False)
        else:
            down = {"kernel_size": base.kernel_size, "stride": base.stride, "padding": base.padding, "bias": False}
            self.down = nn.Conv2d(base.in_channels, rank, **down)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.up(self.down(x))


def with_lora(model, endings):
    """The model with LoRA in place of the layers whose names end so; all else is frozen."""
    model = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.endswith(endings):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, LoRA(module))
    return model.eval()


def frozen(model):
    return copy.deepcopy(model).requires_grad_(False).eval()


def half_frozen(model):
    model = frozen(model)
    for parameter in list(model.parameters())[-8:]:
        parameter.requires_grad_()
    return model


def vit():
    torch.manual_seed(0)
    return tiny_vit().double().eval()


def resnet():
    torch.manual_seed(0)
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.resnet.ResNet(block, [1, 1, 1, 1], num_classes=4).eval()


VITS = {
    "frozen": lambda: frozen(vit()),
    "half-frozen": lambda: half_frozen(vit()),
    "LoRA on queries and values": lambda: with_lora(vit(), "attn.qkv").double(),
    "LoRA on all": lambda: with_lora(vit(), ("attn.qkv", "attn.proj", "fc1", "fc2")).double(),
    "LoRA on the head": lambda: with_lora(vit(), "head").double(),
}
CNNS = {
    "frozen": lambda: frozen(resnet()),
    "half-frozen": lambda: half_frozen(resnet()),
    "LoRA": lambda: with_lora(resnet(), ("conv1", "conv2")),
    "LoRA on the head": lambda: with_lora(resnet(), "fc"),
}


def gradients_at_the_last_norm(model, images, target):
    """The gradient of a logit by the tokens, and these."""
    seen = []

    def keep(module, args, output):
        seen.append(output.detach().requires_grad_())
        return seen[0]

    hook = model.blocks[-1].norm1.register_forward_hook(keep)
    try:
        return torch.autograd.grad(model(images)[:, target].sum(), seen)[0], seen[0]
    finally:
        hook.remove()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", VITS)
def test_cdam_and_relevance_equal_autograd(name):
    model = VITS[name]()
    images = torch.randn(2, 3, *model.patch_embed.img_size, dtype=torch.float64)
    flags = [p.requires_grad for p in model.parameters()]
    gradient, tokens = gradients_at_the_last_norm(model, images, 1)
    expected = (tokens * gradient).sum(-1).detach()
    found = CDAM(model).attribute(images, 1, return_tokens=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    maps, delta = IntegratedCDAM(model).attribute(images, 1, n_steps=200, return_convergence_delta=True)
    assert delta.abs().max() < 1e-2 * maps.abs().sum()
    whole = copy.deepcopy(model).requires_grad_()  # the weights' flags do not matter to the numbers
    for method in (CDAM, RelevancePropagation):
        torch.testing.assert_close(method(model).attribute(images, 1), method(whole).attribute(images, 1))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CNNS)
def test_mhex_learns_its_gates_and_what_was_not_frozen(name):
    backbone = CNNS[name]()
    learns = {n for n, p in backbone.named_parameters() if p.requires_grad}
    model = MHEX(backbone)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    deep_supervision_loss(model.deep_forward(images), labels, mode="finetune").backward()
    graded = {n.removeprefix("backbone.") for n, p in model.named_parameters() if p.grad is not None}
    assert {n for n in graded if not n.startswith("blocks.")} == {n for n in learns if not n.startswith("fc.")}
    assert {n for n in graded if n.startswith("blocks.")} == {n for n, _ in model.named_parameters() if "blocks." in n}
    assert model.names == tuple(f"layer{i}.0" for i in range(1, 5))
    whole = copy.deepcopy(model).requires_grad_().eval()
    model.eval()
    torch.testing.assert_close(model(images), whole(images), rtol=0, atol=0)
    heat = MHEXCAM(model).attribute(images, labels)
    torch.testing.assert_close(heat, MHEXCAM(whole).attribute(images, labels), rtol=0, atol=0)
    for one in (model, whole, copy.deepcopy(model).requires_grad_(False)):
        cam = GradCAM(one, one.target_layers)(images, None)
        assert abs(cam - GradCAM(whole, whole.target_layers)(images, None)).max() < 1e-5
        assert cam.max() > 0.9
    assert images.requires_grad is False


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", CNNS)
def test_ca_stream_of_adapted_networks(name):
    backbone = CNNS[name]()
    flags = {n: p.requires_grad for n, p in backbone.named_parameters()}
    torch.manual_seed(1)
    model = CAStream(backbone).eval()
    images = torch.randn(2, 3, 64, 64)
    features = []
    hooks = [backbone.get_submodule(n).register_forward_hook(lambda *a: features.append(a[2])) for n in model.stages]
    with torch.no_grad():
        backbone(images)
    for hook in hooks:
        hook.remove()
    query, tokens = model.stream.query.expand(2, -1), None
    for number, one in enumerate(features):
        tokens = one.flatten(2)
        attention = (torch.einsum("bcn,bc->bn", tokens, query) / tokens.shape[1] ** 0.5).softmax(1)
        query = model.stream.projections[number](torch.einsum("bcn,bn->bc", tokens, attention))
    torch.testing.assert_close(model(images), backbone.fc(query), rtol=1e-4, atol=1e-5)
    heat = RawAttention(model).attribute(images).flatten(1)
    torch.testing.assert_close(heat, attention, rtol=1e-4, atol=1e-6)
    assert GradCAM(model, [model.backbone.layer4[-1]])(images, None).max() > 0.9
    assert {n: p.requires_grad for n, p in model.unwrap().named_parameters()} == flags


def test_timms_own_frozen_networks_are_explained():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=3).double().eval()
    timm.utils.freeze(model, ["blocks.0", "patch_embed"])
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gradient, tokens = gradients_at_the_last_norm(model, images, 2)
    found = CDAM(model).attribute(images, 2, return_tokens=True)
    torch.testing.assert_close(found, (tokens * gradient).sum(-1).detach(), rtol=1e-9, atol=1e-12)
