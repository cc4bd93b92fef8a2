"""Every attribution class keeps every promise: the model left as found, batch, dtypes, threads, Captum's tools."""

import copy
import functools
import gc
import warnings
from contextlib import nullcontext

import pytest
import torch
from captum.attr import LayerAttribution, NoiseTunnel, visualization
from captum.metrics import infidelity, sensitivity_max
from contracts import IMAGES, METHODS, TARGETS, Breaks, in_threads, left_as_found
from toy_models import tiny_vit

from adapters.recording import TokenPass
from captum_ext import without_closed_form

EXACT = ("TokenAblation", "TokenShapley")  # effects of scores, and no gradients
each_method = pytest.mark.parametrize(("method", "options"), METHODS.values(), ids=METHODS)


SLOW_WAYS = [pytest.param(way, marks=pytest.mark.slow) for way in ("autograd", "full runs")]


@pytest.fixture(params=["closed form", *SLOW_WAYS], autouse=True)
def way(request, monkeypatch):
    """All ways keep every promise."""
    with nullcontext() if request.param == "closed form" else without_closed_form():
        if request.param == "full runs":  # as where something runs that cannot be seen
            monkeypatch.setattr(TokenPass, "reason", property(lambda _: "unseen", lambda *_: None), raising=False)
        yield request.param


def used_model(way):
    """A model in the middle of a user's life: mixed train flags, frozen parts, gradients, hooks, an own forward."""
    from timm.layers import HybridEmbed

    from xai_compare.digit_vit import Stem

    stem = functools.partial(HybridEmbed, backbone=Stem())  # has batch norms
    model = tiny_vit(embed_layer=stem, patch_size=1, in_chans=1, drop_rate=0.3, attn_drop_rate=0.3)
    model(torch.randn(2, 1, 32, 32)).sum().backward()
    model.train()
    model.blocks[1].eval()
    model.norm.requires_grad_(False)
    model.blocks[0].register_forward_hook(lambda _, __, out: out * 1.5)
    if way != "closed form":
        model.blocks[-1].register_forward_pre_hook(lambda _, args: (args[0] + 0.1,))
    own = model.blocks[0].mlp.forward
    model.blocks[0].mlp.forward = lambda x: own(x) * 2
    return model


@pytest.mark.sampled(3)
@each_method
def test_a_used_model_is_left_as_found(method, options, way):
    model, x = used_model(way), IMAGES[:, :1].contiguous()
    before = x.clone()
    with left_as_found(model):
        method(model).attribute(x, TARGETS, **options)
        method(model).attribute_targets(x, [0, TARGETS], **options)
    assert torch.equal(x, before)


@each_method
def test_dropout_and_batch_norm_do_not_act(method, options, way):
    model, x = used_model(way), IMAGES[:, :1]
    training = method(model).attribute(x, TARGETS, **options)
    assert torch.equal(training, method(model.eval()).attribute(x, TARGETS, **options))


@pytest.mark.sampled(6)
@each_method
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", ["before the tokens", "after the tokens", "in a later pass"])
def test_a_model_that_fails_is_left_as_found(method, options, error, place, way):
    model = tiny_vit().train()
    block = model.blocks[0] if place == "before the tokens" else model.blocks[-1]
    block.ls1 = Breaks(error, after=1 if place == "in a later pass" else 0)
    if place == "in a later pass" and way != "full runs":
        return  # the model runs once
    with left_as_found(model), pytest.raises(type(error)):
        method(model).attribute(IMAGES, TARGETS, **options, **_one_at_a_time(method))


def _one_at_a_time(method):
    return {
        "SmoothCDAM": {"nt_samples_batch_size": 1},
        "IntegratedCDAM": {"internal_batch_size": 3},
    }.get(method.__name__, {})


@each_method
@pytest.mark.parametrize("target", [9, "cat", [0, 1], None])
def test_a_wrong_target_leaves_the_model_as_found_and_costs_one_pass(method, options, target):
    model, calls = tiny_vit(), []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    with left_as_found(model), pytest.raises((TypeError, ValueError), match="target"):
        method(model).attribute(IMAGES, target, **options)
    assert len(calls) <= 1


@each_method
def test_a_batch_equals_its_samples(method, options):
    explain = method(tiny_vit().double()).attribute
    batch = explain(IMAGES.double(), TARGETS, **options)
    singles = [explain(x, t, **options) for x, t in zip(IMAGES.double().split(1), TARGETS.split(1), strict=True)]
    torch.testing.assert_close(batch, torch.cat(singles), rtol=1e-10, atol=1e-14)


@pytest.mark.sampled(6)
@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_gives_float32_or_wider(method, options, dtype, way):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS, **options)
    with _rounded(method, way, half=dtype is not torch.float64) as rounded:
        maps = method(model.to(dtype)).attribute(IMAGES.to(dtype), TARGETS, **options)
    assert maps.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    noisy = method.__name__ == "SmoothCDAM" and dtype is torch.float64  # other normals are drawn in float64
    if not noisy and not rounded:
        close = 0.08 if dtype is torch.bfloat16 else 0.01 if dtype is torch.float16 else 1e-4
        assert (maps - expected).abs().max() < close * expected.abs().max()


def _rounded(method, way, *, half):
    """Differences of scores that the whole model makes in half precision are rounded, which a warning says."""
    rounds = half and way == "full runs" and method.__name__ in EXACT
    return pytest.warns(UserWarning, match=r"rounded as its scores are.*model\.float") if rounds else nullcontext()


@each_method
def test_autocast_gives_float32(method, options, way):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS, **options)
    with torch.autocast("cpu", torch.bfloat16), _rounded(method, way, half=True) as rounded:
        maps = method(model).attribute(IMAGES, TARGETS, **options)
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().max() > 0
    assert rounded or (maps - expected).abs().max() < 0.08 * expected.abs().max()


@each_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_it(method, options, mode):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS, **options)
    with mode():
        images = IMAGES + 0
        assert torch.equal(method(model).attribute(images, TARGETS, **options), expected)


@each_method
def test_result_carries_no_graph(method, options):
    maps = method(tiny_vit()).attribute(IMAGES.clone().requires_grad_(), TARGETS, **options)
    assert not maps.requires_grad


@pytest.mark.slow
@each_method
def test_threads_share_a_model(method, options):
    model = tiny_vit().train()
    explainer = method(model)
    batches = [torch.randn(2, 3, 32, 32) for _ in range(6)]
    expected = [explainer.attribute(x, 1, **options) for x in batches]
    with left_as_found(model):
        actual = in_threads([lambda x=x: [explainer.attribute(x, 1, **options) for _ in range(3)] for x in batches])
    for maps, alone in zip(actual, expected, strict=True):
        assert all(torch.equal(m, alone) for m in maps)


@pytest.mark.slow
@each_method
def test_a_forward_pass_in_another_thread_is_not_disturbed(method, options):
    model = tiny_vit()
    expected = model(IMAGES)
    explain, forward = (
        lambda: [method(model).attribute(IMAGES + 1, 1, **options) for _ in range(8)],
        lambda: [model(IMAGES) for _ in range(24)],
    )
    _, outputs = in_threads([explain, forward])
    assert all(torch.equal(output, expected) for output in outputs)


@each_method
def test_a_deep_copy_explains_its_own_model(method, options):
    explainer = method(tiny_vit())
    expected = explainer.attribute(IMAGES, TARGETS, **options)
    twin = copy.deepcopy(explainer)
    assert torch.equal(twin.attribute(IMAGES, TARGETS, **options), expected)
    twin.forward_func.head.weight.data *= -1
    torch.testing.assert_close(twin.attribute(IMAGES, TARGETS, **options), -expected)
    assert torch.equal(explainer.attribute(IMAGES, TARGETS, **options), expected)


@each_method
def test_a_changed_model_is_never_stale(method, options):
    model = tiny_vit()
    explainer = method(model)
    first = explainer.attribute(IMAGES, TARGETS, **options)
    model.blocks[-1] = tiny_vit().blocks[-1]
    assert torch.equal(
        explainer.attribute(IMAGES, TARGETS, **options), method(model).attribute(IMAGES, TARGETS, **options)
    )
    model.blocks[0].register_forward_hook(lambda _, __, out: out * 3)
    assert not torch.allclose(explainer.attribute(IMAGES, TARGETS, **options), first)


@pytest.mark.slow
@each_method
def test_a_compiled_model_is_unwrapped(method, options):
    model = tiny_vit()
    expected = method(model).attribute(IMAGES, TARGETS, **options)
    assert torch.equal(method(torch.compile(model, backend="eager")).attribute(IMAGES, TARGETS, **options), expected)


@pytest.mark.slow
@each_method
def test_a_model_compiled_in_place_or_in_part_is_refused(method, options):
    model = tiny_vit()
    model.compile()
    with pytest.raises(ValueError, match="'the model itself' is"):
        method(model).attribute(IMAGES, TARGETS, **options)
    model = tiny_vit()
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with pytest.raises(ValueError, match=r"'blocks\.1' is"):
        method(model).attribute(IMAGES, TARGETS, **options)


@each_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_name_the_sample(method, options, bad):
    images = IMAGES.clone()
    images[1, 0, 3, 4] = bad
    with pytest.raises(ValueError, match=r"sample\(s\) \[1\] of shape \(3, 3, 32, 32\)"):
        method(tiny_vit()).attribute(images, TARGETS, **options)


@each_method
def test_weights_that_are_not_finite_are_reported(method, options):
    model = tiny_vit()
    model.head.weight.data[4] = float("nan")
    failed = r"\[1\]" if method.__name__ in EXACT else r"\[0, 1, 2\]"  # gradients of all pass all the weights
    with pytest.raises(ValueError, match=rf"NaN or infinite for sample\(s\) {failed}"):
        method(model).attribute(IMAGES, TARGETS, **options)


@each_method
def test_an_untrained_head_is_an_error_not_a_blank_map(method, options):
    model = tiny_vit()
    model.head.weight.data[1] = 0
    with pytest.raises(ValueError, match=r"sample\(s\) \[0\].*head's weights for this target are zero"):
        method(model).attribute(IMAGES, TARGETS, **options)


@each_method
def test_a_layer_that_is_given_gives_the_same_maps(method, options):
    model = tiny_vit()
    options = options | ({"generator": torch.Generator().manual_seed(1)} if "nt_samples" in options else {})
    found = method(model).attribute(IMAGES, TARGETS, **options)
    if "generator" in options:
        options["generator"].manual_seed(1)
    given = method(model, model.blocks[-1].norm1).attribute(IMAGES, TARGETS, **options)
    assert not given.requires_grad
    torch.testing.assert_close(given, found, rtol=1e-4, atol=1e-6)


@each_method
def test_a_layer_behind_the_last_attention_is_an_error(method, options):
    model = tiny_vit()
    with pytest.raises(ValueError, match="behind the last attention"):
        method(model, model.blocks[-1].norm2).attribute(IMAGES, TARGETS, **options)


@each_method
def test_images_without_a_batch_axis_are_refused(method, options):
    with pytest.raises(ValueError, match=r"got shape \(3, 32, 32\).*unsqueeze"):
        method(tiny_vit()).attribute(IMAGES[0], 1, **options)


@pytest.mark.sampled(2)
@each_method
def test_captum_metrics_take_the_class_and_its_maps(method, options):
    model = tiny_vit()
    explainer = method(model)

    def on_pixels(images, **kwargs):
        maps = LayerAttribution.interpolate(explainer.attribute(images, **kwargs), (32, 32))
        return maps.expand(-1, 3, -1, -1)

    def perturb(images):
        noise = torch.full_like(images, 0.01)
        return noise, images - noise

    maps = on_pixels(IMAGES, target=TARGETS, **options)
    measured = infidelity(model, perturb, IMAGES, maps, target=TARGETS)
    change = model(IMAGES)[range(3), TARGETS] - model(IMAGES - 0.01)[range(3), TARGETS]
    torch.testing.assert_close(measured, (0.01 * maps.flatten(1).sum(1) - change).square(), rtol=1e-4, atol=1e-7)

    still = sensitivity_max(explainer.attribute, IMAGES, lambda x: x, target=TARGETS, **options)
    assert still.abs().max() < 1e-5
    moved = sensitivity_max(explainer.attribute, IMAGES, target=TARGETS, perturb_radius=0.5, **options)
    assert moved.min() > 1e-3


@each_method
def test_captum_noise_tunnel_averages_it(method, options):
    explainer = method(tiny_vit())
    options = {} if method.__name__ == "SmoothCDAM" else options  # the tunnel's own arguments have the same names
    expected = explainer.attribute(IMAGES, TARGETS, **options)
    averaged = NoiseTunnel(explainer).attribute(IMAGES, nt_samples=2, stdevs=0.0, target=TARGETS, **options)
    torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-7)


@each_method
def test_captum_draws_the_interpolated_map(method, options):
    from matplotlib.figure import Figure

    maps = LayerAttribution.interpolate(method(tiny_vit()).attribute(IMAGES, TARGETS, **options), (32, 32), "bilinear")
    figure = Figure()
    axes = figure.subplots()
    visualization.visualize_image_attr(
        maps[0].permute(1, 2, 0).numpy(), method="heat_map", sign="all", plt_fig_axis=(figure, axes), use_pyplot=False
    )
    drawn = axes.images[0].get_array()
    expected = maps[0, 0].numpy()
    assert (drawn.argmax(), drawn.argmin()) == (expected.argmax(), expected.argmin())


@pytest.mark.slow
@each_method
def test_memory_does_not_grow_with_calls(method, options):
    explainer = method(tiny_vit())

    def tensors():
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    explainer.attribute(IMAGES, TARGETS, **options)
    gc.collect()
    gc.freeze()  # or each collection walks through all imported modules
    try:
        before = tensors()
        for _ in range(5):
            explainer.attribute(IMAGES, TARGETS, **options)
        assert tensors() <= before
    finally:
        gc.unfreeze()
