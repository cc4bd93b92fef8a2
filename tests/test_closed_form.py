"""The fast way: which models take it, and that it equals the general one."""

import functools
from dataclasses import replace

import pytest
import torch
from by_autograd import gradients, logit, per_sample_targets, random_baseline, seeded, site_tokens
from changed_attentions import model_case
from comparing import all_same
from real_models import (
    AUTOGRAD,
    CASES,
    CLOSED_FORM,
    WIDTH,
    LowRankLinear,
    build,
    parameters,
    timm_case,
    vit,
)
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from ways import explained, is_right, way

from adapters.recording import LastAttention, TokenPass, latents_of
from captum_ext import CDAM, ConceptTarget, IntegratedCDAM, SmoothCDAM, without_closed_form
from captum_ext._closed_form import closed_form_relevance
from captum_ext._perturbed_tokens import NoisyTokens

CLOSED = [name for name, entry in CASES.items() if entry.way == CLOSED_FORM]


@pytest.mark.slow
def test_every_model_takes_its_way():
    assert {name: way(build(name)) for name in CASES} == {name: entry.way for name, entry in CASES.items()}
    assert {entry.way for entry in CASES.values()} == {CLOSED_FORM, AUTOGRAD}


def test_an_average_behind_an_adapter_is_explained_by_autograd():
    model = vit(global_pool="avg")
    model.blocks[-1].attn.qkv = LowRankLinear(model.blocks[-1].attn.qkv)
    assert way(timm_case(model, 1)) == AUTOGRAD


@pytest.mark.parametrize("name", parameters(CLOSED))
def test_the_fast_way_equals_the_general_one(name):
    case = build(name)
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
    all_same(both(), expected)


def test_training_mode_and_frozen_weights_change_no_value():
    rates = {"drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3}
    case = timm_case(vit(**rates), 1)
    before = is_right(case)
    case.model.train()
    all_same(explained(case), before)
    case.model.requires_grad_(False)
    all_same(explained(case), before)


def test_what_was_checked_with_one_sample_holds_for_more():
    case = model_case("forward", lambda self, x: VisionTransformer.forward(self, x) * x.mean((1, 2, 3))[:, None])
    is_right(replace(case, inputs=case.inputs[:1]))
    is_right(case)


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
    all_same(explained(replace(case, model=nn.DataParallel(case.model))), explained(case))
    spread = CDAM(nn.DataParallel(case.model), case.site, device_ids=[0])  # as Captum's layer classes take it
    torch.testing.assert_close(spread.attribute(case.inputs, 1), CDAM(case.model, case.site).attribute(case.inputs, 1))


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
    all_same(closed_form_relevance(LastAttention(run), [score], copies), [expected])


@pytest.mark.filterwarnings("ignore::UserWarning:transformers")
def test_hooks_that_transformers_leaves_behind_change_nothing():
    case = build("hf-vit")
    case.model.set_attn_implementation("eager")
    case.model(case.inputs, output_hidden_states=True, output_attentions=True)
    case.model.set_attn_implementation("sdpa")
    assert any(module._forward_hooks for module in case.model.modules())
    assert way(case) == CLOSED_FORM
    is_right(case)
