"""Modes of a model that change no map: fused attention, checkpoints, training, precision, batch, further arguments."""

import copy

import pytest
import torch
from by_autograd import STEPS
from comparing import same
from real_models import build, set_fused

from captum_ext import CDAM, ConceptTarget, IntegratedCDAM

pytestmark = pytest.mark.slow

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


def test_arguments_that_are_not_tensors_reach_the_model():
    wrapped = build("hf-vit-nonsquare-interpolated")
    expected = CDAM(wrapped.model).attribute(wrapped.inputs, 1)
    same(CDAM(wrapped.model.model).attribute(wrapped.inputs, 1, (None, True)), expected)


def test_arguments_that_are_not_tensors_reach_the_model_for_a_concept():
    wrapped = build("hf-vit-nonsquare-interpolated")
    expected = ConceptTarget.from_examples(wrapped.model, wrapped.inputs).vector
    concept = ConceptTarget.from_examples(wrapped.model.model, wrapped.inputs, additional_forward_args=(None, True))
    same(concept.vector, expected)
