"""CDAM of every architecture against hooks and autograd through the whole model, derived from the specification."""

import copy

import numpy as np
import pytest
import real_models
import timm
import torch
import torchvision
from captum.attr import LayerGradientXActivation
from real_models import CASES, TEXT_CASES, build, hooked, images, randomised, set_fused, vit
from torch.nn import functional as F

from adapters import reshape_transform_for
from captum_ext import CDAM, ConceptTarget, IntegratedCDAM, SmoothCDAM

IMAGE_NAMES = [name for name in CASES if name not in TEXT_CASES]
STEPS = 4
SAMPLES = 3
NOISE = 0.3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return build(request.param)


def same(actual, expected, tolerance=1e-9):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert torch.isfinite(actual).all()
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def site_tokens(case):
    seen = []
    if case.enters:
        handle = case.site.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    else:
        handle = case.site.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with hooked(handle), torch.no_grad():
        case.logits()
    return seen[0].clone()


def with_tokens(case, tokens, run):
    if case.enters:
        handle = case.site.register_forward_pre_hook(lambda _module, args: (tokens, *args[1:]))
    else:
        handle = case.site.register_forward_hook(lambda _module, _args, _output: tokens)
    with hooked(handle):
        return run()


def gradients(case, tokens, score):
    leaf = tokens.clone().requires_grad_()
    return with_tokens(case, leaf, lambda: torch.autograd.grad(score().sum(), leaf)[0])


def per_sample_targets(case):
    return torch.arange(len(case.inputs)) * 2 % (case.logits().shape[1] - 1) + 1


def logit(case, target):
    rows = torch.arange(len(case.inputs))
    return lambda: case.logits()[rows, target]


def expected_cdam(case, score):
    tokens = site_tokens(case)
    return (tokens * gradients(case, tokens, score)).sum(-1)


def expected_smooth(case, score, seed):
    tokens = site_tokens(case)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(tokens.shape[:2], dtype=tokens.dtype)
    for _ in range(SAMPLES):
        noisy = tokens + NOISE * torch.randn(tokens.shape[1:], generator=generator, dtype=tokens.dtype)
        total += (noisy * gradients(case, noisy, score)).sum(-1)
    return total / SAMPLES


def expected_integrated(case, score, baseline, n_steps=STEPS):
    tokens = site_tokens(case)
    mean = torch.zeros_like(tokens)
    for step in range(1, n_steps + 1):
        mean += gradients(case, baseline + step / n_steps * (tokens - baseline), score) / n_steps
    return ((tokens - baseline) * mean).sum(-1)


def rise(case, score, baseline):
    with torch.no_grad():
        return with_tokens(case, site_tokens(case), score) - with_tokens(case, baseline, score)


def as_map(case, scores):
    if case.grid is None:
        return scores
    return scores[:, case.prefix :].reshape(len(scores), 1, *case.grid)


def random_baseline(case):
    shape = site_tokens(case).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(7)


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


@pytest.mark.parametrize("name", TEXT_CASES)
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


FUSED_OR_NOT = ["timm", "timm-4registers", "timm-qk-norm", "timm-avg", "timm-parallel-scaling", "timm-gated-attention"]
FUSED_OR_NOT += ["timm-map", "timm-diff-attention", "eva-rope-registers", "beit-rel-pos", "beit-rel-pos-token"]


@pytest.mark.parametrize("name", FUSED_OR_NOT)
def test_fused_and_unfused_attention_give_the_same_maps(name):
    case = build(name)
    heats = []
    for fused in (True, False):
        set_fused(case.model, fused)
        assert {module.fused_attn for module in case.model.modules() if hasattr(module, "fused_attn")} == {fused}
        heats.append(CDAM(case.model).attribute(case.inputs, 1))
        heats.append(IntegratedCDAM(case.model).attribute(case.inputs, 1, n_steps=STEPS))
    same(heats[0], heats[2])
    same(heats[1], heats[3])


@pytest.mark.parametrize("name", ["timm-checkpointing", "timm-checkpointing-qk-norm"])
def test_gradient_checkpointing_changes_no_map(name):
    case = build(name)
    plain = copy.deepcopy(case.model)
    plain.set_grad_checkpointing(False)
    same(CDAM(case.model).attribute(case.inputs, 1), CDAM(plain).attribute(case.inputs, 1))
    heats = [IntegratedCDAM(model).attribute(case.inputs, 1, n_steps=STEPS) for model in (case.model, plain)]
    same(*heats)


@pytest.mark.parametrize(("sdpa", "eager"), [("hf-vit", "hf-vit-eager"), ("hf-bert", "hf-bert-eager")])
def test_sdpa_and_eager_agree_to_the_float32_of_the_eager_softmax(sdpa, eager):
    heats = [CDAM(case.model).attribute(case.inputs, 1, case.forward_args) for case in (build(sdpa), build(eager))]
    same(heats[0], heats[1], 1e-5)


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


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


GRAD_CAM = ["timm", "timm-4registers", "timm-distilled", "timm-static-nonsquare", "timm-dynamic-nonsquare"]
GRAD_CAM += ["timm-avg-no-class-token", "eva-rope-registers", "torchvision", "dino", "dinov2-registers"]
GRAD_CAM += ["hf-vit", "hf-deit", "hf-dinov2-registers"]


@pytest.mark.parametrize("name", GRAD_CAM)
def test_grad_cam_with_our_reshape_transform_equals_one_by_hand(name):
    import pytorch_grad_cam as grad_cam
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    case = build(name)
    targets = per_sample_targets(case)
    model = Logits(case.model) if name.startswith("hf") else case.model
    height, width = case.inputs.shape[-2:]
    transform = reshape_transform_for(model, (height, width) if case.grid[0] != case.grid[1] else None)

    tokens = site_tokens(case)
    activations = tokens[:, case.prefix :].unflatten(1, case.grid).permute(0, 3, 1, 2)
    assert torch.equal(transform(tokens), activations)

    grads = gradients(case, tokens, logit(case, targets))[:, case.prefix :]
    weighted = (activations * grads.mean(1)[:, :, None, None]).sum(1).relu()
    assert (weighted.flatten(1).amax(1) > 0).all()
    with grad_cam.GradCAM(model, [case.site], reshape_transform=transform) as cam:
        theirs = cam(case.inputs, [ClassifierOutputTarget(int(target)) for target in targets])
    by_hand = scale_cam_image(scale_cam_image(weighted.numpy(), (width, height)))
    assert np.abs(theirs - by_hand).max() < 1e-5
    for heat, hand in zip(theirs, weighted, strict=True):
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        best = divmod(int(hand.argmax()), case.grid[1])
        assert (row // real_models.PATCH, column // real_models.PATCH) == best


def test_reshape_transform_reads_a_static_nonsquare_size_from_the_model():
    case = build("timm-static-nonsquare")
    tokens = site_tokens(case)
    expected = tokens[:, case.prefix :].unflatten(1, case.grid).permute(0, 3, 1, 2)
    assert torch.equal(reshape_transform_for(case.model)(tokens), expected)


def timm_swin(**options):
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)}
    return timm.models.swin_transformer.SwinTransformer(**settings, window_size=2, num_classes=5, **options)


def torchvision_swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [1, 2], [2, 4], [2, 2], num_classes=5)


@pytest.mark.parametrize("method", [CDAM, SmoothCDAM, IntegratedCDAM])
def test_a_cnn_is_refused_with_another_method(method):
    with pytest.raises(ValueError, match="LayerGradCam"):
        method(torchvision.models.resnet18().eval()).attribute(torch.randn(1, 3, 64, 64), 1)


def parallel_things():
    return vit(block_fn=timm.models.vision_transformer.ParallelThingsBlock)


@pytest.mark.parametrize("number", [0, 1])
def test_one_of_several_attentions_can_be_chosen(number):
    model = randomised(parallel_things())
    branch = model.blocks[-1].attns[number]
    expected = LayerGradientXActivation(model, branch.norm).attribute(images(), 1).sum(-1)
    choices = [{"layer": branch.norm}, {"attention": branch}, {"attention": number - 2}, {"attention": 2 + number}]
    for choice in choices if number == 0 else [*choices, {}]:
        same(CDAM(model, **choice).attribute(images(), 1, return_tokens=True), expected)


def test_an_attention_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="one of the 4 attentions"):
        CDAM(randomised(parallel_things()), attention=4).attribute(images(), 1)


@pytest.mark.parametrize("make", [timm_swin, torchvision_swin])
@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_swin_with_a_layer_sums_over_the_last_axis(make, size):
    model = make() if make is torchvision_swin else make(strict_img_size=size == (32, 32))
    model = randomised(model)
    inputs = images(*size)
    layer = model.layers[-1].blocks[-1].norm1 if make is timm_swin else model.features[-1][-1].norm1
    product = LayerGradientXActivation(model, layer).attribute(inputs, torch.tensor([1, 3]))
    same(CDAM(model, layer=layer).attribute(inputs, torch.tensor([1, 3])), product.sum(-1)[:, None])


def test_resnet_with_a_layer_sums_over_the_channels():
    model = torchvision.models.resnet18(num_classes=5).double().eval()
    inputs = images(64, 96)
    product = LayerGradientXActivation(model, model.layer4).attribute(inputs, torch.tensor([1, 3]))
    same(CDAM(model, layer=model.layer4).attribute(inputs, torch.tensor([1, 3])), product.sum(1, keepdim=True))


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


def test_a_function_with_a_layer_is_explained_like_a_model():
    case = build("timm-4registers")
    target = per_sample_targets(case)
    rows = torch.arange(len(target))
    expected = expected_cdam(case, lambda: case.logits().log_softmax(-1)[rows, target])
    cdam = CDAM(lambda pixels: case.model(pixels).log_softmax(-1), layer=case.site)
    same(cdam.attribute(case.inputs, target, return_tokens=True), expected)


def test_a_model_in_training_mode_is_explained_in_evaluation_mode_and_stays_in_training():
    case = build("timm-drop-rates")
    wanted = [method(case.model).attribute(case.inputs, 1) for method in (CDAM, IntegratedCDAM)]
    case.model.train()
    case.model.blocks[0].eval()
    modes = [module.training for module in case.model.modules()]
    got = [method(case.model).attribute(case.inputs, 1) for method in (CDAM, IntegratedCDAM)]
    assert [module.training for module in case.model.modules()] == modes
    same(got[0], wanted[0])
    same(got[1], wanted[1])


def test_a_sample_has_the_same_map_alone_and_in_a_batch():
    for name in ("timm-4registers", "timm-avg", "hf-vit"):
        case = build(name)
        for method, options in ((CDAM, {}), (IntegratedCDAM, {"n_steps": STEPS})):
            together = method(case.model).attribute(case.inputs, [1, 3], **options)
            same(method(case.model).attribute(case.inputs[1:], 3, **options), together[1:])


def test_float32_maps_are_float32_and_close_to_float64():
    for name in ("timm-4registers", "timm-qk-norm", "hf-vit", "dino-linear"):
        case = build(name)
        wanted = IntegratedCDAM(case.model).attribute(case.inputs, 1, n_steps=STEPS)
        heat = IntegratedCDAM(case.model.float()).attribute(case.inputs.float(), 1, n_steps=STEPS)
        same(heat, wanted.float(), 1e-4)


def test_a_mask_shared_by_the_batch_reaches_the_model():
    wrapped = build("timm-attention-mask")
    plain, mask = wrapped.model.model, wrapped.model.mask
    for method, options in ((CDAM, {}), (IntegratedCDAM, {"n_steps": STEPS})):
        expected = method(wrapped.model).attribute(wrapped.inputs, 1, **options)
        same(method(plain).attribute(wrapped.inputs, 1, (mask,), **options), expected)
        assert not torch.allclose(method(plain).attribute(wrapped.inputs, 1, **options), expected, rtol=1e-2)


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Camembert"])
def test_the_input_of_a_given_attention_of_a_text_model(family):
    case = real_models.hf_roberta(family)
    target = per_sample_targets(case)
    expected = expected_cdam(case, logit(case, target))
    cdam = CDAM(case.model, layer=case.site)
    same(cdam.attribute(case.inputs, target, case.extra, attribute_to_layer_input=True), expected)


def test_arguments_that_are_not_tensors_reach_the_model():
    wrapped = build("hf-vit-nonsquare-interpolated")
    expected = CDAM(wrapped.model).attribute(wrapped.inputs, 1)
    same(CDAM(wrapped.model.model).attribute(wrapped.inputs, 1, (None, True)), expected)


def test_arguments_that_are_not_tensors_reach_the_model_for_a_concept():
    wrapped = build("hf-vit-nonsquare-interpolated")
    expected = ConceptTarget.from_examples(wrapped.model, wrapped.inputs).vector
    concept = ConceptTarget.from_examples(wrapped.model.model, wrapped.inputs, additional_forward_args=(None, True))
    same(concept.vector, expected)


def test_explicit_layer_gives_what_the_search_finds():
    for name in ("timm-4registers", "hf-dinov2-registers", "torchvision"):
        case = build(name)
        found = CDAM(case.model).attribute(case.inputs, 1)
        same(CDAM(case.model, layer=case.site).attribute(case.inputs, 1), found)
