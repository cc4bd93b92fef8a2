"""Maps of attention weights keep every promise: the model left as found, threads, memory, Captum's tools."""

import copy
import gc
import warnings

import pytest
import torch
from attention_methods import METHODS, each_method, each_with_target
from captum.attr import LayerAttribution, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from contracts import IMAGES, TARGETS, Breaks, in_threads, left_as_found
from toy_models import tiny_vit

from captum_ext import AttentionRollout, RelevancePropagation

pytestmark = pytest.mark.slow

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
def test_a_model_that_fails_is_left_as_found(method, error, block):
    model = tiny_vit().train()
    model.blocks[block].ls1 = Breaks(error, after=0)
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
