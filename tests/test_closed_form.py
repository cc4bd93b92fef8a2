"""The fast way: which models take it, that it equals the general one, is never stale and costs what it should."""

import functools
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import real_models
import torch
from contracts import in_threads, left_as_found
from real_models import CASES, WIDTH, LowRankLinear, build, hooked, images, randomised, small, timm_case, vit
from test_real_models import expected_cdam, gradients, logit, per_sample_targets, random_baseline, seeded, site_tokens
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.recording import LastAttention, TokenPass, latents_of
from captum_ext import CDAM, ConceptTarget, IntegratedCDAM, SmoothCDAM, without_closed_form
from captum_ext._closed_form import closed_form_relevance
from captum_ext._perturbed_tokens import NoisyTokens
from captum_ext._token_attribution import AUTOGRAD, CLOSED_FORM

CLOSED = [
    "timm",
    "timm-48px-depth3",
    "timm-1register",
    "timm-4registers",
    "timm-4registers-no-embed-class",
    "timm-unfused",
    "timm-4registers-unfused",
    "timm-distilled",
    "timm-layer-scale",
    "timm-no-qkv-bias",
    "timm-no-proj-bias",
    "timm-qk-norm",
    "timm-qk-norm-unfused",
    "timm-scale-attn-norm",
    "timm-scale-mlp-norm",
    "timm-gated-attention",
    "timm-swiglu",
    "timm-rms-norm",
    "timm-pre-norm",
    "timm-no-final-norm",
    "timm-token-fc-norm",
    "timm-drop-rates",
    "timm-map",
    "timm-map-no-class-token",
    "timm-dynamic-nonsquare",
    "timm-static-nonsquare",
    "timm-res-post",
    "timm-checkpointing",
    "timm-checkpointing-qk-norm",
    "timm-depth1",
    "timm-no-head",
    "timm-mlp-head",
    "timm-weight-norm",
    "timm-hook-on-attention",
    "timm-hook-on-head",
    "timm-hook-on-block",
    "timm-hook-on-first-block",
    "timm-wrapped-softmax-dict",
    "timm-attention-mask",
    "timm-subclass-pool",
    "timm-subclass-skip",
    "timm-frozen",
    "eva-rope-registers",
    "eva-token-layer-scale",
    "eva-dinov3",
    "eva-rope-attention",
    "eva-mixed-rope",
    "eva-post-norm",
    "beit-rel-pos-token",
    "beit-no-rel-pos-token",
    "hf-vit",
    "hf-vit-tuple",
    "hf-vit-no-qkv-bias",
    "hf-vit-nonsquare-interpolated",
    "hf-deit",
    "hf-deit-teacher-tuple",
    "hf-deit-teacher",
    "hf-clip-projection",
    "hf-bert",
    "hf-bert-tuple",
    "hf-bert-eager",
    "hf-roberta",
    "hf-distilbert",
    "dino",
    "dino-linear",
    "dino-linear-nonsquare",
    "dinov2",
    "dinov2-registers",
    "dinov2-registers-linear",
    "torchvision",
    "torchvision-pre-logits",
    "torchvision-conv-stem",
]


def made(name):
    if name != "timm-low-rank-avg":
        return build(name)
    model = vit(global_pool="avg")
    model.blocks[-1].attn.qkv = LowRankLinear(model.blocks[-1].attn.qkv)
    return timm_case(model, 1)


def way(case):
    return CDAM(case.model).path(case.inputs, additional_forward_args=case.forward_args).way


def test_every_model_takes_its_way():
    ways = {name: way(made(name)) for name in [*CASES, "timm-low-rank-avg"]}
    assert [name for name in CASES if ways[name] == CLOSED_FORM] == [name for name in CASES if name in CLOSED]
    assert set(ways.values()) == {CLOSED_FORM, AUTOGRAD}


def same(actual, expected):
    for ours, wanted in zip(actual, expected, strict=True):
        assert ours.shape == wanted.shape
        assert wanted.abs().max() > 0
        assert (ours - wanted).abs().max().item() <= 1e-9 * wanted.abs().max().item()


def differ(actual, before):
    assert all((a - b).abs().max() > 1e-6 * b.abs().max() for a, b in zip(actual, before, strict=True))


def explained(case):
    given = (case.inputs, 1, case.forward_args, True)
    return [
        CDAM(case.model).attribute(*given),
        IntegratedCDAM(case.model).attribute(*given, n_steps=4),
        SmoothCDAM(case.model).attribute(*given, nt_samples=3, generator=seeded()),
    ]


def is_right(case):
    """Compares all methods with the general way, and CDAM with plain autograd."""
    with without_closed_form():
        expected = explained(case)
    actual = explained(case)
    same(actual, expected)
    at_projection = as_read_by_the_projection(case)
    same(actual[:1], [expected_cdam(at_projection, logit(at_projection, 1))])
    return actual


def as_read_by_the_projection(case):
    """The case with its tokens where the last block's projection reads them."""
    blocks = getattr(case.model, "blocks", None)
    if blocks is None or not hasattr(blocks[-1].attn, "qkv") or not isinstance(blocks[-1].attn.qkv, nn.Linear):
        return case
    return replace(case, site=blocks[-1].attn.qkv, enters=True)


@pytest.mark.parametrize("name", CLOSED)
def test_the_fast_way_equals_the_general_one(name):
    case = made(name)
    width = latents_of(case.model, (case.inputs, *case.extra)).shape[1]
    vector = torch.randn(width, generator=seeded(), dtype=torch.float64)
    targets = [0, per_sample_targets(case), ConceptTarget(vector, "cosine")]
    path = {"baselines": random_baseline(case), "n_steps": 4, "method": "gausslegendre"}

    def both():
        given = (case.inputs, targets, case.forward_args, True)
        noisy = SmoothCDAM(case.model).attribute_targets(*given, nt_samples=3, generator=seeded())
        return [*IntegratedCDAM(case.model).attribute_targets(*given, **path).unbind(1), *noisy.unbind(1)]

    with without_closed_form():
        expected = both()
    same(both(), expected)


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


@pytest.mark.parametrize("path", HOOKED)
def test_a_hook_is_respected_while_it_is_there(path):
    case = build("timm")
    before = explained(case)
    hook = case.model.get_submodule(path).register_forward_hook(lambda _, __, output: output * 1.5 + output.sin())
    with hooked(hook):
        differ(is_right(case), before)
    same(explained(case), before)


ATTENTIONS = {
    "timm": lambda model: model.blocks[-1].attn,
    "timm-res-post": lambda model: model.blocks[-1].attn,
    "hf-bert": lambda model: model.bert.encoder.layer[-1].attention.self,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_hook_in_front_of_the_attention_is_respected(name):
    case = build(name)
    before = explained(case)
    attention = ATTENTIONS[name](case.model)
    with hooked(attention.register_forward_pre_hook(lambda _, args: (args[0] + 2 * args[0].sin(), *args[1:]))):
        differ(is_right(case), before)


def test_training_mode_and_frozen_weights_change_no_value():
    rates = {"drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3}
    case = timm_case(vit(**rates), 1)
    before = is_right(case)
    case.model.train()
    same(explained(case), before)
    case.model.requires_grad_(False)
    same(explained(case), before)


def test_what_was_checked_with_one_sample_holds_for_more():
    case = model_case("forward", lambda self, x: VisionTransformer.forward(self, x) * x.mean((1, 2, 3))[:, None])
    is_right(replace(case, inputs=case.inputs[:1]))
    is_right(case)


def gated(base, name, forward):
    """A class whose function adds something else, times gamma."""

    def init(self, *args, **options):
        base.__init__(self, *args, **options)
        self.gamma = nn.Parameter(torch.ones(()))

    return type("Gated", (base,), {"__init__": init, name: lambda self, x, **_: forward(self, x)})


def patches(self, x):
    x = VisionTransformer.forward_features(self, x)
    return torch.cat([x[:, :1] + self.gamma * (x.sum(1, keepdim=True) - x[:, :1]), x[:, 1:]], 1)


def skip(self, x):
    middle = self.blocks[0](self._pos_embed(self.patch_embed(x)))
    return self.norm(self.blocks[1](middle)) + self.gamma * middle.mean(1, keepdim=True)


def convolution(self, x):
    return Block.forward(self, x) + self.gamma * F.conv1d(x.mT, x.new_ones(WIDTH, 1, 3), padding=1, groups=WIDTH).mT


def parallel_mlp(self, x):
    tokens = self.norm1(x)
    return x + self.attn(tokens) + self.gamma * self.mlp(tokens)


def rolled(self, x):
    return Attention.forward(self, x) + self.gamma * x.roll(1, 1).tanh()


class Cosine(real_models.HubAttention):
    """Has the parts of DINO's attention, but computes something else."""

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2)), weights


class Detached(real_models.HubAttention):
    """Returns what DINO's attention does, with other gradients."""

    def forward(self, x):
        output, weights = super().forward(x)
        return output.detach() + 2 * (output - output.detach()), weights


def hub_case(attention):
    model = real_models.with_linear(real_models.VisionTransformer())
    model[0].blocks[-1].attn = attention(WIDTH, 4)
    return real_models.hub_case(model, lambda model: model[0])


def unread_scale():
    case = build("timm")
    case.model.blocks[-1].attn.scale = 1.0  # fused attention does not look at it
    return case


def model_case(name, forward):
    return timm_case(gated(VisionTransformer, name, forward)(**small()), 1)


def block_case(forward):
    return timm_case(vit(block_fn=gated(Block, "forward", forward)), 1)


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


KINDS = ["timm", "timm-avg", "timm-low-rank-adapter"]


SEEN = []  # not the module's own, whose settings make the model another one


class Looking(nn.Module):
    """Looks from inside whether the model holds replaced forwards."""

    def __init__(self, inner, model):
        super().__init__()
        self.inner, self.model = inner, [model]

    def forward(self, x):
        SEEN.append(any("forward" in vars(module) for module in self.model[0].modules()))
        return self.inner(x)


@pytest.mark.parametrize("name", KINDS)
def test_the_fast_way_needs_no_hooks_and_replaces_nothing(name, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a hook")

    case = build(name)
    case.model.norm = Looking(case.model.norm, case.model).eval()
    expected = is_right(case)
    SEEN.clear()
    for kind in ("forward_hook", "forward_pre_hook"):
        monkeypatch.setattr(nn.Module, f"register_{kind}", refuse)
        monkeypatch.setattr(nn.modules.module, f"register_module_{kind}", refuse)
        monkeypatch.setattr(f"adapters.models.hooks.register_module_{kind}", refuse)
    with left_as_found(case.model):
        same(explained(case), expected)
    assert len(SEEN) >= 3
    assert not any(SEEN)


@pytest.mark.parametrize("name", KINDS)
def test_threads_explain_and_run_one_model_at_once(name):
    case = build(name)
    cases = [replace(case, inputs=case.inputs + i / 4) for i in range(3)]
    expected, logits = [explained(one) for one in cases], case.logits()
    model = build(name).model  # not known yet
    fresh = [replace(one, model=model) for one in cases]
    explaining = [lambda one=one: [explained(one) for _ in range(2)] for one in fresh]
    *actual, outputs = in_threads([*explaining, lambda: [fresh[0].logits() for _ in range(20)]])
    for repeated, alone in zip(actual, expected, strict=True):
        for maps in repeated:
            same(maps, alone)
    assert all(torch.equal(output, logits) for output in outputs)


class HostReads(TorchDispatchMode):
    """Counts what a program waits for the device for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")
        return func(*args, **(kwargs or {}))


FIRST = dict.fromkeys([*KINDS, "timm-qk-norm", "timm-distilled"], lambda model: model.blocks[0])
FIRST["hf-vit"] = lambda model: model.vit.layers[0] if hasattr(model.vit, "layers") else model.vit.encoder.layer[0]


@pytest.mark.parametrize("name", FIRST)
def test_work_on_the_host_and_before_the_last_block_does_not_grow(name):
    case, calls = build(name), []
    cdam, integrated, smooth = (method(case.model) for method in (CDAM, IntegratedCDAM, SmoothCDAM))
    before, first = explained(case), FIRST[name](case.model)
    first.register_forward_hook(lambda _, __, output: (output * 1.5 + output.sin(), calls.append(1))[0])
    differ(is_right(case), before)

    def cost(method, *args, **options):
        calls.clear()
        with HostReads() as reads:
            method(case.inputs, *args, **options)
        return reads.count, len(calls)

    few, many = (
        [
            cost(integrated.attribute, 1, n_steps=n, internal_batch_size=2 * len(case.inputs)),
            cost(smooth.attribute, 1, nt_samples=n, nt_samples_batch_size=2),
            cost(cdam.attribute_targets, [0, 1, 2, 3] * (n // 8)),
        ]
        for n in (8, 64)
    )
    assert few == many
    assert all(reads > 0 and calls == 1 for reads, calls in few)


def method_case():
    case = model_case("log_probabilities", lambda self, x: self(x).log_softmax(-1))
    return replace(case, model=case.model.log_probabilities)


def sequence_case():
    case = build("timm-no-head")
    return replace(case, model=nn.Sequential(case.model, nn.Linear(WIDTH, 5).double()).eval())


def partial_case():
    case = build("timm-attention-mask")
    return replace(case, model=functools.partial(case.model.model, attn_mask=case.model.mask))


@pytest.mark.parametrize("make", [method_case, sequence_case, partial_case, lambda: build("timm-wrapped-softmax-dict")])
def test_wrapped_models_take_the_fast_way(make):
    case = make()
    assert way(case) == CLOSED_FORM
    is_right(case)


def test_data_parallel_is_explained():
    case = build("timm")
    same(explained(replace(case, model=nn.DataParallel(case.model))), explained(case))


NOISY = ["timm", "timm-qk-norm", "eva-rope-registers", "timm-distilled", "hf-bert"]


@pytest.mark.parametrize("name", NOISY)
def test_smooth_cdam_of_given_noise_is_its_definition(name):
    case, sigma = build(name), 0.4
    target, tokens, rows = per_sample_targets(case), site_tokens(case), torch.arange(len(case.inputs))
    drawn = torch.randn((5, *tokens.shape[1:]), generator=seeded(), dtype=torch.float64)
    expected = torch.zeros(tokens.shape[:2], dtype=torch.float64)
    for noise in drawn:
        noisy = tokens + sigma * noise
        expected += (noisy * gradients(case, noisy, logit(case, target))).sum(-1) / len(drawn)
    left = iter(drawn)
    copies = NoisyTokens(len(drawn), lambda to: to.copy_(next(left)), sigma, at_once=2)

    def score(prediction):
        return prediction.outputs.unflatten(0, (-1, len(rows)))[:, rows, target].flatten()

    run = TokenPass(case.model, (case.inputs, *case.extra))
    same(closed_form_relevance(LastAttention(run), [score], copies), [expected])


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
def test_hooks_that_transformers_leaves_behind_change_nothing():
    case = build("hf-vit")
    case.model.set_attn_implementation("eager")
    case.model(case.inputs, output_hidden_states=True, output_attentions=True)
    case.model.set_attn_implementation("sdpa")
    assert any(module._forward_hooks for module in case.model.modules())
    assert way(case) == CLOSED_FORM
    is_right(case)
