"""Maps of attention weights: padding, targets, tuples, batches, number types, and what is refused."""

import copy
import functools

import pytest
import torch
from attention_methods import WITH_TARGET, each_method, each_with_target
from comparing import same
from contracts import IMAGES, TARGETS
from real_models import CASES, TEXT_CASES, build, timm_case, vit
from timm.models import vision_transformer
from torch import nn
from toy_models import tiny_vit

from captum_ext import CDAM, AttentionMap, ConceptTarget

pytestmark = pytest.mark.slow

# Inputs and outputs.


@each_method
@pytest.mark.parametrize("name", TEXT_CASES)
def test_padding_scores_exactly_zero_and_words_do_not(method, name):
    case = build(name)
    if CASES[name].no_matrices:
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


class WithoutGradient(nn.Sequential):
    def forward(self, x):
        with torch.no_grad():
            features = self[0](x)
        return self[1](features)


@each_with_target
def test_a_model_that_cuts_gradients_is_refused(method):
    with pytest.raises(ValueError, match="gradients are cut"):
        method(WithoutGradient(tiny_vit(), nn.Linear(5, 3))).attribute(IMAGES, 1)
