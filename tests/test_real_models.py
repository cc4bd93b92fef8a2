"""CDAM of every architecture against hooks and autograd through the whole model, derived from the specification."""

import copy

import pytest
import real_models
import torch
from by_autograd import (
    NOISE,
    SAMPLES,
    STEPS,
    as_map,
    expected_cdam,
    expected_integrated,
    expected_smooth,
    logit,
    per_sample_targets,
    random_baseline,
    rise,
    seeded,
    site_tokens,
)
from captum.attr import LayerGradientXActivation
from comparing import same
from real_models import CASES, TEXT_CASES, build, parameters, vit
from torch.nn import functional as F

from captum_ext import CDAM, ConceptTarget, IntegratedCDAM, SmoothCDAM


@pytest.fixture(scope="module", params=parameters(CASES))
def case(request):
    return build(request.param)


def test_cdam_is_token_times_gradient(case):
    target = per_sample_targets(case)
    expected = expected_cdam(case, logit(case, target))
    cdam = CDAM(case.model)
    same(cdam.attribute(case.inputs, target, case.forward_args), as_map(case, expected))
    tokens = cdam.attribute(case.inputs, target, case.forward_args, return_tokens=True)
    same(tokens, expected)


def test_integrated_cdam_from_zero_is_the_mean_gradient_on_the_path(case):
    target = per_sample_targets(case)
    zero = torch.zeros_like(site_tokens(case))
    expected = expected_integrated(case, logit(case, target), zero)
    integrated = IntegratedCDAM(case.model)
    heat = integrated.attribute(case.inputs, target, case.forward_args, n_steps=STEPS)
    same(heat, as_map(case, expected))
    chunked = integrated.attribute(
        case.inputs, target, case.forward_args, return_tokens=True, n_steps=STEPS, internal_batch_size=3
    )
    same(chunked, expected)


def test_integrated_cdam_from_random_tokens_and_its_convergence_delta(case):
    target = per_sample_targets(case)
    baseline = random_baseline(case)
    score = logit(case, target)
    expected = expected_integrated(case, score, baseline)
    tokens, delta = IntegratedCDAM(case.model).attribute(
        case.inputs, target, case.forward_args, True, baselines=baseline, n_steps=STEPS, return_convergence_delta=True
    )
    same(tokens, expected)
    same(delta, expected.sum(1) - rise(case, score, baseline))


def test_smooth_cdam_is_the_mean_over_noisy_tokens(case):
    target = per_sample_targets(case)
    expected = expected_smooth(case, logit(case, target), seed=7)
    smooth = SmoothCDAM(case.model)
    options = {"nt_samples": SAMPLES, "stdevs": NOISE}
    heat = smooth.attribute(case.inputs, target, case.forward_args, generator=seeded(), **options)
    same(heat, as_map(case, expected))
    tokens = smooth.attribute(
        case.inputs, target, case.forward_args, True, generator=seeded(), nt_samples_batch_size=2, **options
    )
    same(tokens, expected)


@pytest.mark.sampled(3)
def test_several_targets_equal_one_call_for_each(case):
    targets = [0, per_sample_targets(case)]
    methods = [
        (CDAM(case.model), {}),
        (IntegratedCDAM(case.model), {"n_steps": STEPS}),
        (SmoothCDAM(case.model), {"nt_samples": SAMPLES, "stdevs": NOISE}),
    ]
    for method, options in methods:
        extra = {"generator": seeded()} if isinstance(method, SmoothCDAM) else {}
        together = method.attribute_targets(case.inputs, targets, case.forward_args, **options, **extra)
        apart = []
        for target in targets:
            extra = {"generator": seeded()} if isinstance(method, SmoothCDAM) else {}
            apart.append(method.attribute(case.inputs, target, case.forward_args, **options, **extra))
        join = torch.stack if case.grid is None else torch.cat
        same(together, join(apart, dim=1))


def similarity_of(latents, vector, similarity):
    if similarity == "dot":
        return latents @ vector
    if similarity == "cosine":
        return F.cosine_similarity(latents, vector[None], dim=1)
    return -(latents - vector).norm(dim=1)


def test_a_concept_is_the_mean_latent_and_cdam_follows_its_similarity(case):
    with torch.no_grad():
        mean = case.latents().mean(0)
    concept = ConceptTarget.from_examples(
        case.model, case.inputs, additional_forward_args=case.forward_args, batch_size=1
    )
    same(concept.vector, mean)
    vector = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for similarity in ("dot", "cosine", "l2"):
        expected = expected_cdam(case, lambda similarity=similarity: similarity_of(case.latents(), vector, similarity))
        target = ConceptTarget(vector, similarity)
        same(CDAM(case.model).attribute(case.inputs, target, case.forward_args, return_tokens=True), expected)


def hook_counts(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def state_of(model):
    flags = [module.training for module in model.modules()]
    needs = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    attributes = [sorted(vars(module)) for module in model.modules()]
    return flags, needs, attributes, hook_counts(model)


@pytest.mark.sampled(3)
def test_the_model_is_left_as_found(case):
    with torch.no_grad():
        logits = case.logits()
    state = state_of(case.model)
    weights = copy.deepcopy(case.model.state_dict())
    concept = ConceptTarget.from_examples(case.model, case.inputs, additional_forward_args=case.forward_args)
    for target in (1, concept):
        CDAM(case.model).attribute(case.inputs, target, case.forward_args)
        SmoothCDAM(case.model).attribute(case.inputs, target, case.forward_args, nt_samples=2)
        IntegratedCDAM(case.model).attribute(case.inputs, target, case.forward_args, n_steps=2)
    assert state_of(case.model) == state
    assert all(torch.equal(value, weights[name]) for name, value in case.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(case.logits(), logits)


@pytest.mark.parametrize("name", parameters(TEXT_CASES))
def test_padded_tokens_score_exactly_zero_and_others_do_not(name):
    case = build(name)
    mask = case.extra[0].bool()
    everything = [
        CDAM(case.model).attribute(case.inputs, 2, case.extra),
        SmoothCDAM(case.model).attribute(case.inputs, 2, case.extra, nt_samples=SAMPLES),
        IntegratedCDAM(case.model).attribute(case.inputs, 2, case.extra, n_steps=STEPS),
        IntegratedCDAM(case.model).attribute(
            case.inputs, 2, case.extra, n_steps=STEPS, baselines=random_baseline(case)
        ),
    ]
    for scores in everything:
        assert scores.shape == case.inputs.shape
        assert (scores[~mask] == 0).all()
        assert (scores[mask] != 0).all()


@pytest.mark.parametrize("name", ["timm-4registers", "timm-avg", "hf-bert"])
def test_completeness_error_of_the_right_rule_halves_with_twice_the_steps(name):
    case = build(name)
    target = per_sample_targets(case)
    wanted = rise(case, logit(case, target), torch.zeros_like(site_tokens(case)))
    errors = []
    for n_steps in (16, 32, 64):
        scores = IntegratedCDAM(case.model).attribute(
            case.inputs, target, case.forward_args, return_tokens=True, n_steps=n_steps
        )
        errors.append((scores.sum(1) - wanted).abs())
    ratios = torch.stack([errors[0] / errors[1], errors[1] / errors[2]])
    assert ((ratios > 1.6) & (ratios < 2.5)).all(), ratios


@pytest.mark.parametrize("name", ["timm-4registers", "timm-avg", "hf-bert"])
def test_completeness_error_of_gauss_legendre_is_tiny(name):
    case = build(name)
    target = per_sample_targets(case)
    baseline = random_baseline(case)
    scores, delta = IntegratedCDAM(case.model).attribute(
        case.inputs,
        target,
        case.forward_args,
        True,
        baselines=baseline,
        n_steps=48,
        method="gausslegendre",
        return_convergence_delta=True,
    )
    same(scores.sum(1), rise(case, logit(case, target), baseline), 1e-6)
    assert delta.abs().max() < 1e-6


@pytest.mark.parametrize("name", ["timm", "timm-4registers", "timm-qk-norm", "timm-avg"])
def test_cdam_is_captums_layer_gradient_times_activation(name):
    case = build(name)
    target = per_sample_targets(case)
    product = LayerGradientXActivation(case.model, case.site).attribute(case.inputs, target)
    same(CDAM(case.model).attribute(case.inputs, target, return_tokens=True), product.sum(-1))


def test_the_random_models_differ_between_classes_and_samples():
    for name in ("timm", "hf-vit", "torchvision", "dino-linear"):
        case = build(name)
        heat = CDAM(case.model).attribute_targets(case.inputs, [0, 1])
        assert (heat[:, 0] - heat[:, 1]).abs().max() > 1e-3
        assert (heat[0] - heat[1]).abs().max() > 1e-3


def test_one_logit_of_one_token_of_an_unpooled_model():
    case = real_models.timm_case(vit(global_pool=""), 1)
    expected = expected_cdam(case, lambda: case.logits()[:, 3, 2])
    same(CDAM(case.model).attribute(case.inputs, (3, 2), return_tokens=True), expected)
    zero = torch.zeros_like(site_tokens(case))
    expected = expected_integrated(case, lambda: case.logits()[:, 3, 2], zero)
    same(IntegratedCDAM(case.model).attribute(case.inputs, (3, 2), return_tokens=True, n_steps=STEPS), expected)
