"""The fast way is never stale: models whose weights, settings, hooks and functions change between calls."""

import functools
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from changed_attentions import (
    Cosine,
    Detached,
    block_case,
    convolution,
    gated,
    hub_case,
    model_case,
    parallel_mlp,
    patches,
    rolled,
    skip,
    unread_scale,
)
from comparing import all_same, differ
from real_models import (
    LowRankLinear,
    build,
    hooked,
    images,
    randomised,
    timm_case,
    vit,
)
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from ways import explained, is_right

from captum_ext import CDAM


def own_forward(module):
    old = module.forward
    module.forward = lambda x, **options: old((x * 1.5).sin(), **options)


def class_wide(patch, disguise):
    old = Attention.forward
    patch.setattr(Attention, "forward", disguise(lambda self, x, **options: old(self, (x * 1.5).sin(), **options)))


def scale(model, _):
    model.blocks[-1].attn.fused_attn, model.blocks[-1].attn.scale = False, 1.0


def average():
    return lambda x, pool_type=None: x.mean(1)


def another_function(model, _):
    model.pool = lambda x, pool_type=None: x[:, 0]
    CDAM(model).attribute(images(), 1)
    address = id(model.pool)
    del model.pool
    functions = [average()]
    while len(functions) < 100 and id(functions[-1]) != address:  # often the first lies where the old one was
        functions.append(average())
    model.pool = functions[-1]


def last(change):
    return lambda model, _: change(model.blocks[-1])


CHANGES = {
    "weights in place": lambda model, _: randomised(model, seed=3),
    "loaded weights": lambda model, _: model.load_state_dict({k: 1.3 * v for k, v in model.state_dict().items()}),
    "a parameter": last(lambda block: setattr(block.attn.qkv, "weight", nn.Parameter(block.attn.qkv.weight.roll(9)))),
    "a head": lambda model, _: (model.reset_classifier(7, "avg"), model.double()),
    "kind of pooling": lambda model, _: setattr(model, "global_pool", "avg"),
    "function for pooling": another_function,
    "pooling of the class": lambda _, patch: patch.setattr(VisionTransformer, "pool", lambda _, x: x.mean(1)),
    "a token-mixing MLP": last(lambda block: setattr(block, "mlp", nn.Sequential(block.mlp, nn.Softmax(dim=1)))),
    "an adapter": last(lambda block: setattr(block.attn, "qkv", randomised(LowRankLinear(block.attn.qkv)))),
    "forward of the attention": last(lambda block: own_forward(block.attn)),
    "forward of the model": lambda model, _: own_forward(model),
    "forward of the class": lambda _, patch: class_wide(patch, lambda new: new),
    "wrapped forward of the class": lambda _, patch: class_wide(patch, functools.wraps(Attention.forward)),
    "scale": scale,
    "half precision and back": lambda model, _: model.half().double(),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_explained_as_it_is_now(change, monkeypatch):
    case = build("timm")
    before = explained(case)
    change(case.model, monkeypatch)
    differ(is_right(case), before)


class Pooled(nn.Module):
    """A head with settings of every kind."""

    def __init__(self, model):
        super().__init__()
        self.model, self.pools, self.config = model, {"average": False}, SimpleNamespace(average=False)
        self.register_buffer("read", torch.arange(17) == 0)
        self.register_buffer("index", torch.tensor([0]))

    def forward(self, x):
        x = self.model.forward_features(x)
        if self.pools["average"] or self.config.average:
            return self.model.head(x.mean(1))
        return self.model.head(torch.where(self.read[:, None], x, 0).sum(1) + x[:, self.index].mean(1))


SETTINGS = {
    "in a dictionary": lambda model: model.pools.update(average=True),
    "in an object": lambda model: setattr(model.config, "average", True),
    "in a mask": lambda model: model.read.fill_(True),
    "in an index": lambda model: setattr(model, "index", torch.tensor([0, 3])),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_a_changed_setting_of_a_head_is_not_stale(change):
    case = build("timm")
    case.model = Pooled(case.model).eval()
    before = explained(case)
    change(case.model)
    differ(is_right(case), before)


HOOKED = [
    "",
    "patch_embed",
    "blocks.0",
    "blocks.1",
    "blocks.1.attn",
    "blocks.1.attn.qkv",
    "blocks.1.mlp",
    "norm",
    "head",
]


@pytest.mark.slow
@pytest.mark.parametrize("path", HOOKED)
def test_a_hook_is_respected_while_it_is_there(path):
    case = build("timm")
    before = explained(case)
    hook = case.model.get_submodule(path).register_forward_hook(lambda _, __, output: output * 1.5 + output.sin())
    with hooked(hook):
        differ(is_right(case), before)
    all_same(explained(case), before)


ATTENTIONS = {
    "timm": lambda model: model.blocks[-1].attn,
    "timm-res-post": lambda model: model.blocks[-1].attn,
    "hf-bert": lambda model: model.bert.encoder.layer[-1].attention.self,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_hook_in_front_of_the_attention_is_respected(name):
    case = build(name)
    before = explained(case)
    attention = ATTENTIONS[name](case.model)
    with hooked(attention.register_forward_pre_hook(lambda _, args: (args[0] + 2 * args[0].sin(), *args[1:]))):
        differ(is_right(case), before)


TRAPS = {
    "head": ("head.weight", lambda: build("timm-avg-include-prefix")),
    "patches": ("gamma", lambda: model_case("forward_features", patches)),
    "skip": ("gamma", lambda: model_case("forward_features", skip)),
    "block": ("blocks.1.gamma", lambda: block_case(convolution)),
    "norm": ("blocks.1.gamma", lambda: block_case(parallel_mlp)),
    "attention": ("blocks.1.attn.gamma", lambda: timm_case(vit(attn_layer=gated(Attention, "forward", rolled)), 1)),
    "other attention": ("0.blocks.1.attn.proj.weight", lambda: hub_case(Cosine)),
    "other scale": ("blocks.1.attn.proj.weight", unread_scale),
}


@pytest.mark.slow
@pytest.mark.parametrize(("path", "make"), TRAPS.values(), ids=TRAPS)
def test_weights_that_are_zero_at_first_do_not_fool_the_check(path, make):
    case = make()
    parameter = case.model.get_parameter(path)
    weights = parameter.data.clone()
    parameter.data.zero_()
    with suppress(ValueError):  # the map may be blank
        explained(replace(case, inputs=case.inputs[:1]))
    parameter.data.copy_(weights)
    is_right(case)


def test_a_scale_that_fused_attention_does_not_read_is_not_read_here_either():
    is_right(unread_scale())


@pytest.mark.parametrize("attention", [Cosine, Detached], ids=["other values", "other gradients"])
def test_an_attention_that_computes_something_else_is_explained_as_it_is(attention):
    is_right(hub_case(attention))
