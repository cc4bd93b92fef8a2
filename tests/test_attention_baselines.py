"""Maps of attention weights against matrices that the models' own code multiplies, and the promises of every class."""

import copy
import functools
import gc
import warnings
from dataclasses import replace

import pytest
import real_models
import torch
from captum.attr import LayerAttribution, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from contracts import Breaks, in_threads, left_as_found
from real_models import CASES, TEXT_CASES, build, set_fused, timm_case, vit
from timm.models import vision_transformer
from torch import nn
from torch.nn import functional as F
from toy_models import tiny_vit

from captum_ext import CDAM, AttentionMap, AttentionRollout, ConceptTarget, PartialLRP, RelevancePropagation

METHODS = [AttentionMap, AttentionRollout, RelevancePropagation, PartialLRP]
WITH_TARGET = METHODS[2:]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
TARGETS = torch.tensor([1, 4, 0])

UNKNOWN = {
    "timm-diff-attention": "what it computes",
    "timm-low-rank-adapter": "what it computes",
    "timm-weight-norm": "what it computes",
    "timm-parallel-scaling": "no attention module",
    "timm-diff-parallel-scaling": "no attention module",
    "timm-hook-on-attention": "hooks",
    "timm-hook-on-qkv": "hooks",
    "hf-vit-eager": "what it computes",  # in float64, where its softmax is in float32
    "hf-bert-eager": "what it computes",
}
READS_PATCHES = {
    *("timm-avg", "timm-avg-no-class-token", "timm-avg-only-registers", "timm-avgmax", "timm-max", "timm-map"),
    *("timm-map-no-class-token", "eva-avg", "eva02", "beit-rel-pos", "beit-shared-rel-pos"),
    "hf-clip-classifier",
}
KNOWN = [name for name in CASES if name not in UNKNOWN]

each_method = pytest.mark.parametrize("method", METHODS)
each_with_target = pytest.mark.parametrize("method", WITH_TARGET)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert torch.isfinite(actual).all()
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


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
    return rows[prefix:].mean(0) if name in READS_PATCHES else rows[0]


def expected_scores(name, case, target):
    """{class: (batch, tokens)}, with full matrices in plain loops."""
    logits, seen = opened(case)
    layers = {"timm-48px-depth3": 3, "timm-depth1": 1}.get(name, 2)
    assert len(seen) == layers + (name == "timm-prr")  # which pools by another one
    seen = seen[:layers]
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


def as_map(case, scores):
    if case.grid is None:
        return scores
    return scores[:, case.prefix :].reshape(len(scores), 1, *case.grid)


def per_sample_targets(case):
    return torch.arange(len(case.inputs)) * 2 % (case.logits().shape[1] - 1) + 1


POOLING = ("timm-map", "timm-map-no-class-token", "timm-prr")  # their last attention looks at other tokens


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in POOLING])
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


# Inputs and outputs.


@each_method
@pytest.mark.parametrize("name", TEXT_CASES)
def test_padding_scores_exactly_zero_and_words_do_not(method, name):
    case = build(name)
    if name in UNKNOWN:
        case.model.float()
    mask = case.extra[0].bool()
    scores = method(case.model).attribute(case.inputs, 2, case.extra)
    assert (scores[~mask] == 0).all()
    assert (scores[mask] > 0).sum() > mask.sum() // 2


class MeanOfWords(nn.Module):
    """A text model that averages the words that are none of the padding and not the first."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask):
        states = self.model(ids, mask)[0]
        weights = mask[..., None] * (torch.arange(mask.shape[1]) > 0)[:, None]
        return (states * weights).sum(1)


@each_method
def test_padding_scores_zero_where_all_words_are_averaged(method):
    case = build("hf-bert")
    model = MeanOfWords(case.model.bert)
    mask = case.extra[0].bool()
    scores = method(model).attribute(case.inputs, 2, case.extra)
    assert (scores[~mask] == 0).all()
    if method not in WITH_TARGET:
        same(scores.sum(1), torch.ones(3, dtype=torch.float64))


@each_method
def test_the_row_is_read_from_what_the_model_is_now(method):
    case = build("timm")
    explain = functools.partial(method(case.model).attribute, case.inputs, 1, return_tokens=True)
    before = explain()
    case.model.global_pool = "avg"
    changed = explain()
    same(changed, method(copy.deepcopy(case.model)).attribute(case.inputs, 1, return_tokens=True))
    assert not torch.allclose(changed, before, rtol=1e-3)
    case.model.global_pool = "token"
    assert torch.equal(explain(), before)


@each_with_target
def test_targets_of_every_kind_and_concepts(method):
    case = timm_case(vit(global_pool=""), 1)
    explain = functools.partial(method(case.model).attribute, case.inputs, return_tokens=True)
    same(explain([(3, 2), (0, 1)])[1:], explain((0, 1))[1:])
    case = build("timm-4registers")
    explain = functools.partial(method(case.model).attribute, case.inputs)
    maps = explain(torch.tensor([1, 3]))
    same(explain([1, 3]), maps)
    same(torch.cat([explain(1)[:1], explain(3)[1:]]), maps)
    for name in ("timm-4registers", "hf-bert"):  # the latent is the last block's there
        case = build(name)
        explain = functools.partial(
            method(case.model).attribute, case.inputs, additional_forward_args=case.forward_args
        )
        vector = case.latents()[0].detach() + 1
        same(explain(ConceptTarget(vector)), explain_linear(method, case, vector))


class Product(nn.Module):
    """The product of a model's latents with a vector."""

    def __init__(self, model, vector):
        super().__init__()
        self.model = getattr(model, "bert", getattr(model, "distilbert", model))
        self.vector = vector

    def forward(self, *args):
        if isinstance(self.model, vision_transformer.VisionTransformer):
            return self.model.forward_features(*args)[:, 0] @ self.vector
        states, *pooled = self.model(*args, return_dict=False)
        return (pooled[0] if pooled else states[:, 0]) @ self.vector


def explain_linear(method, case, vector):
    return method(Product(case.model, vector)).attribute(case.inputs, None, case.forward_args)


@each_method
def test_what_follows_the_attention_may_work_in_place(method):
    case = build("timm-layer-scale")
    expected = method(case.model).attribute(case.inputs, 1)
    for block in case.model.blocks:
        block.ls1.inplace = block.ls2.inplace = True
    same(method(case.model).attribute(case.inputs, 1), expected)


@each_method
def test_a_batch_equals_its_samples(method):
    case = build("timm-dynamic-nonsquare")
    together = method(case.model).attribute(case.inputs, [1, 3])
    assert together.shape == (2, 1, 4, 6)
    apart = [method(case.model).attribute(x, t) for x, t in zip(case.inputs.split(1), (1, 3), strict=True)]
    same(together, torch.cat(apart), 1e-10)


@each_method
def test_a_tuple_gives_a_tuple_and_a_function_of_the_model_the_same(method):
    model = tiny_vit()
    maps = method(model).attribute(IMAGES, 1)
    (of_tuple,) = method(model).attribute((IMAGES,), 1)
    assert torch.equal(of_tuple, maps)
    assert torch.equal(method(functools.partial(model)).attribute(IMAGES, 1), maps)
    assert torch.equal(method(model.forward).attribute(IMAGES, 1), maps)
    wrapped = nn.Sequential(nn.Identity(), model, nn.Softmax(-1))
    assert method(wrapped).attribute(IMAGES, 1).shape == maps.shape


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32(method, dtype):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS)
    maps = method(model.to(dtype)).attribute(IMAGES.to(dtype), TARGETS)
    assert maps.dtype == torch.float32
    assert 0 < (maps - expected).abs().max() < 0.08 * expected.abs().max()


@each_method
def test_autocast_gives_float32(method):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        maps = method(model).attribute(IMAGES, TARGETS)
        shares = AttentionMap(model).attribute(IMAGES, return_tokens=True).sum(1)
    assert maps.dtype == torch.float32
    assert 0 < (maps - expected).abs().max() < 0.08 * expected.abs().max()
    same(shares, torch.ones(3), 1e-5)  # the softmax was not rounded to bfloat16


@each_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_it(method, mode):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES.clone().requires_grad_(), TARGETS)
    assert not expected.requires_grad
    with mode():
        assert torch.equal(method(model).attribute(IMAGES + 0, TARGETS), expected)


# What stays as it was.


def used_model():
    """A model in the middle of a user's life: mixed train flags, frozen parts, gradients, hooks, an own forward."""
    model = tiny_vit(drop_rate=0.3, attn_drop_rate=0.3, proj_drop_rate=0.3, drop_path_rate=0.3)
    model(IMAGES).sum().backward()
    model.train()
    model.blocks[1].eval()
    model.norm.requires_grad_(False)
    model.blocks[0].register_forward_hook(lambda _, __, out: out * 1.5)
    own = model.blocks[0].mlp.forward
    model.blocks[0].mlp.forward = lambda x: own(x) * 2
    return model


@each_method
def test_a_used_model_is_left_as_found_and_explained_in_evaluation_mode(method):
    model, x = used_model(), IMAGES.clone()
    assert all(block.attn.fused_attn for block in model.blocks)
    with left_as_found(model):
        maps = method(model).attribute(x, TARGETS)
    assert torch.equal(x, IMAGES)
    assert all(block.attn.fused_attn for block in model.blocks)
    assert torch.equal(method(model.eval()).attribute(x, TARGETS), maps)


@each_method
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("block", [0, -1])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_model_that_fails_is_left_as_found(method, error, block, calls):
    model = tiny_vit().train()
    model.blocks[block].ls1 = Breaks(error, after=calls)
    if calls and method is not RelevancePropagation:
        return  # the model runs once
    with left_as_found(model), pytest.raises(type(error)):
        method(model).attribute(IMAGES, TARGETS)


@each_with_target
@pytest.mark.parametrize("target", [9, "cat", [0, 1], None])
def test_a_wrong_target_leaves_the_model_as_found(method, target):
    model, calls = tiny_vit(), []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    with left_as_found(model), pytest.raises((TypeError, ValueError), match="target"):
        method(model).attribute(IMAGES, target)
    assert len(calls) <= 2


def test_threads_share_a_model_in_training_mode():
    model = tiny_vit(drop_rate=0.5).train()
    explainers = [method(model) for method in METHODS]
    batches = [torch.randn(2, 3, 32, 32) for _ in range(6)]
    expected = [[explainer.attribute(x, 1) for explainer in explainers] for x in batches]
    with left_as_found(model):
        actual = in_threads([lambda x=x: [explainer.attribute(x, 1) for explainer in explainers] for x in batches])
    for maps, alone in zip(actual, expected, strict=True):
        assert all(map(torch.equal, maps, alone))


@each_method
def test_a_changed_model_is_never_stale(method):
    model = tiny_vit()
    explainer = method(model)
    first = explainer.attribute(IMAGES, TARGETS)
    model.blocks[1] = tiny_vit().blocks[1]
    model.blocks[2].attn.qkv.weight.data.mul_(3)
    changed = explainer.attribute(IMAGES, TARGETS)
    assert torch.equal(changed, method(copy.deepcopy(model)).attribute(IMAGES, TARGETS))
    assert not torch.allclose(changed, first, rtol=1e-2)
    model.blocks[-1].attn.register_forward_hook(lambda _, __, out: out * 3)


@pytest.mark.parametrize("method", [AttentionRollout, RelevancePropagation])
def test_memory_is_free_after_a_call_without_the_garbage_collector(method):
    explainer = method(tiny_vit())

    def tensors():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    explainer.attribute(IMAGES, TARGETS)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        explainer.attribute(IMAGES, TARGETS)
        assert tensors() <= before
    finally:
        gc.enable()


# Captum's tools.


@each_method
def test_captum_metrics_take_the_class_and_its_maps(method):
    model = tiny_vit()
    explainer = method(model)
    maps = LayerAttribution.interpolate(explainer.attribute(IMAGES, TARGETS), (32, 32)).expand(-1, 3, -1, -1)

    def perturb(images):
        noise = torch.full_like(images, 0.01)
        return noise, images - noise

    measured = infidelity(model, perturb, IMAGES, maps, target=TARGETS)
    change = model(IMAGES)[range(3), TARGETS] - model(IMAGES - 0.01)[range(3), TARGETS]
    torch.testing.assert_close(measured, (0.01 * maps.flatten(1).sum(1) - change).square(), rtol=1e-4, atol=1e-7)
    assert sensitivity_max(explainer.attribute, IMAGES, lambda x: x, target=TARGETS).abs().max() < 1e-5
    assert sensitivity_max(explainer.attribute, IMAGES, target=TARGETS, perturb_radius=0.5).min() > 1e-4
    averaged = NoiseTunnel(explainer).attribute(IMAGES, nt_samples=2, stdevs=0.0, target=TARGETS)
    torch.testing.assert_close(averaged, explainer.attribute(IMAGES, TARGETS), rtol=1e-4, atol=1e-7)
    assert method.get_name()


@each_method
def test_a_compiled_model_is_unwrapped_and_one_compiled_in_place_refused(method):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS)
    assert torch.equal(method(torch.compile(model, backend="eager")).attribute(IMAGES, TARGETS), expected)
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with pytest.raises(ValueError, match=r"'blocks\.1' is"):
        method(model).attribute(IMAGES, TARGETS)


# What is refused.


@each_method
def test_bad_inputs_are_refused_as_by_cdam(method):
    model, bad = tiny_vit(), IMAGES.clone()
    bad[1, 0, 3, 4] = float("nan")
    for inputs in (bad, IMAGES[0], IMAGES[:0], "cat", ()):
        messages = []
        for explainer in (method(model), CDAM(model)):
            with pytest.raises((TypeError, ValueError)) as raised:
                explainer.attribute(inputs, 1)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


@each_method
def test_weights_that_are_not_finite_are_reported(method):
    model = tiny_vit()
    model.blocks[0].mlp.fc1.weight.data[4] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite for sample\(s\) \[0, 1, 2\]"):
        method(model).attribute(IMAGES, TARGETS)
    model.blocks[0].mlp.fc1.weight.data[4] = 0  # what was seen of the broken model is forgotten
    same(method(model).attribute(IMAGES, TARGETS), method(copy.deepcopy(model)).attribute(IMAGES, TARGETS))


@each_with_target
def test_an_untrained_head_is_an_error_not_a_blank_map(method):
    model = tiny_vit()
    model.head.weight.data[1] = 0
    with pytest.raises(ValueError, match=r"sample\(s\) \[0\].*head's weights for this target are zero"):
        method(model).attribute(IMAGES, TARGETS)


class Twice(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + self.model(x.flip(-1))


class SkipsABlock(vision_transformer.VisionTransformer):
    """Leaves out the first block of dark images."""

    def forward_features(self, x, **_):
        blocks = self.blocks[1:] if x.mean() < 0 else self.blocks
        return self.norm(blocks(self._pos_embed(self.patch_embed(x))))


class WithoutGradient(nn.Sequential):
    def forward(self, x):
        with torch.no_grad():
            features = self[0](x)
        return self[1](features)


@each_with_target
def test_a_model_that_cuts_gradients_is_refused(method):
    with pytest.raises(ValueError, match="gradients are cut"):
        method(WithoutGradient(tiny_vit(), nn.Linear(5, 3))).attribute(IMAGES, 1)


class Cosine(real_models.HubAttention):
    """Has the parts of DINO's attention, but computes something else."""

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2)), weights


class UnreadScale(real_models.HubAttention):
    """One whose formula with another scale gives the same output, so that comparing them says nothing."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        nn.init.zeros_(self.proj.weight)
