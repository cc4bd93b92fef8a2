"""Maps of attention weights against matrices that the models' own code multiplies, and against closed forms."""

import copy
import functools
from dataclasses import replace

import pytest
import real_models
import torch
from attention_methods import METHODS, WITH_TARGET
from by_autograd import as_map, per_sample_targets
from comparing import same
from contracts import IMAGES, TARGETS
from real_models import CASES, build, parameters, set_fused
from torch import nn
from torch.nn import functional as F
from toy_models import tiny_vit

from captum_ext import AttentionMap, AttentionRollout, PartialLRP, RelevancePropagation

KNOWN = [name for name, entry in CASES.items() if not entry.no_matrices]


# The re-derivation: attention written down by the test, in a copy of the model.


def open_attention(seen, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
    assert not dropout_p
    assert not is_causal
    products = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        products = products.masked_fill(~attn_mask, -float("inf"))
    elif attn_mask is not None:
        products = products + attn_mask
    weights = products.softmax(-1)
    if query.shape[-2] == key.shape[-2]:  # and not a pooling by attention
        seen.append(weights)
    return weights @ value


def opened(case):
    """The logits of a copy of the case, and the attention weights that they depend on."""
    model = copy.deepcopy(case.model)
    set_fused(model, True)
    inputs = case.inputs.clone()
    inputs = inputs.requires_grad_() if inputs.is_floating_point() else inputs
    for module in model.modules():
        if getattr(module, "grad_checkpointing", False) is True:
            module.set_grad_checkpointing(False)
    seen = []
    for module in model.modules():
        if isinstance(module, real_models.HubAttention):
            module.attn_drop.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", functools.partial(open_attention, seen))
        logits = replace(case, model=model, inputs=inputs).logits()
    return logits, seen


def read(rows, name, prefix):
    return rows[prefix:].mean(0) if CASES[name].average else rows[0]


def expected_scores(name, case, target):
    """{class: (batch, tokens)}, with full matrices in plain loops."""
    logits, seen = opened(case)
    assert len(seen) == CASES[name].layers
    score = sum(row[c] for row, c in zip(logits, target, strict=True))
    gradients = torch.autograd.grad(score, seen, allow_unused=True)
    gradients = [torch.zeros_like(a) if g is None else g for a, g in zip(seen, gradients, strict=True)]
    found = {method: [] for method in METHODS}
    for sample in range(len(case.inputs)):
        count = seen[0].shape[-1]
        rollout = relevance = torch.eye(count, dtype=torch.float64)
        for weights, gradient in zip(seen, gradients, strict=True):
            heads = weights.shape[1]
            mean, part = torch.zeros(2, count, count, dtype=torch.float64)
            for head in range(heads):
                a, g = weights[sample, head].detach(), gradient[sample, head]
                mean = mean + a / heads
                part = part + torch.where(g * a > 0, g * a, 0) / heads
            rollout = (mean + torch.eye(count)) / 2 @ rollout
            relevance = relevance + part @ relevance
        for method, rows in zip(METHODS, (mean, rollout, relevance, part), strict=True):
            found[method].append(read(rows, name, case.prefix))
    return {method: torch.stack(rows) for method, rows in found.items()}


@pytest.mark.parametrize("name", parameters(name for name in KNOWN if not CASES[name].pools))
def test_all_maps_of_every_architecture(name):
    case = build(name)
    target = per_sample_targets(case)
    expected = expected_scores(name, case, target)
    for method in METHODS:
        scores = method(case.model).attribute(case.inputs, target, case.forward_args, return_tokens=True)
        same(scores, expected[method])
    same(method(case.model).attribute(case.inputs, target, case.forward_args), as_map(case, expected[method]))


@pytest.mark.parametrize("name", ["hf-vit-eager", "hf-bert-eager"])
def test_transformers_own_attentions_give_the_same_maps(name):
    case = build(name)
    model = case.model.float()
    inputs = case.inputs.float() if case.grid else case.inputs
    output = model(inputs, *case.extra, output_attentions=True)
    gradients = torch.autograd.grad(output.logits[:, 3].sum(), output.attentions)
    part = (gradients[-1] * output.attentions[-1]).clamp(min=0).mean(1)
    same(PartialLRP(model).attribute(inputs, 3, case.extra, return_tokens=True), part[:, 0].detach(), 1e-4)
    mean = output.attentions[-1].mean(1)
    same(AttentionMap(model).attribute(inputs, 3, case.extra, return_tokens=True), mean[:, 0].detach(), 1e-4)


# Closed forms.


def uniform_vit(depth):
    """Attention that looks at all tokens alike, as all queries are zero."""
    model = tiny_vit(depth=depth).double()
    for block in model.blocks:
        block.attn.qkv.weight.data[:32] = 0
        block.attn.qkv.bias.data[:32] = 0
    return model


@pytest.mark.parametrize("depth", [1, 3])
def test_uniform_attention_has_uniform_maps(depth):
    model, x = uniform_vit(depth), IMAGES.double()
    uniform = torch.full((3, 17), 1 / 17, dtype=torch.float64)
    same(AttentionMap(model).attribute(x, return_tokens=True), uniform)
    rolled = (1 - 0.5**depth) * uniform
    rolled[:, 0] += 0.5**depth
    same(AttentionRollout(model).attribute(x, return_tokens=True), rolled)


def test_one_linear_layer_by_hand():
    model, x = uniform_vit(1), IMAGES.double()
    block = model.blocks[0]
    model.norm = block.norm1 = nn.Identity()
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    values = block.attn.qkv.weight[64:].detach()  # of two heads, one above the other
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(x))
        of_heads = [
            tokens @ values[half].T @ block.attn.proj.weight[:, half].T @ model.head.weight[TARGETS].T
            for half in (slice(0, 16), slice(16, 32))
        ]
    by_hand = sum(part[range(3), :, range(3)].clamp(min=0) for part in of_heads) / 2 / 17
    assert torch.allclose(block.attn.qkv.bias, torch.zeros(96, dtype=torch.float64))
    same(PartialLRP(model).attribute(x, TARGETS, return_tokens=True), by_hand)
    by_hand[:, 0] += 1
    same(RelevancePropagation(model).attribute(x, TARGETS, return_tokens=True), by_hand)


@pytest.mark.parametrize("name", ["timm-4registers", "timm-avg", "hf-bert", "beit-rel-pos"])
def test_map_and_rollout_are_shares(name):
    case = build(name)
    for method in (AttentionMap, AttentionRollout):
        scores = method(case.model).attribute(case.inputs, None, case.forward_args, return_tokens=True)
        same(scores.sum(1), torch.ones(len(scores), dtype=torch.float64))
        assert (scores >= 0).all()


def test_only_two_methods_follow_the_target():
    case = build("timm-4registers")
    for method in METHODS:
        first, second = (method(case.model).attribute(case.inputs, target) for target in (1, 2))
        assert torch.equal(first, second) == (method not in WITH_TARGET)
