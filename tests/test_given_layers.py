"""Layers and attentions that the user names, and what the search finds by itself."""

import pytest
import real_models
import timm
import torch
import torchvision
from by_autograd import expected_cdam, logit, per_sample_targets
from captum.attr import LayerGradientXActivation
from comparing import same
from real_models import build, images, randomised, vit

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM


def timm_swin(**options):
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)}
    return timm.models.swin_transformer.SwinTransformer(**settings, window_size=2, num_classes=5, **options)


def torchvision_swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [1, 2], [2, 4], [2, 2], num_classes=5)


@pytest.mark.slow
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


def test_a_function_with_a_layer_is_explained_like_a_model():
    case = build("timm-4registers")
    target = per_sample_targets(case)
    rows = torch.arange(len(target))
    expected = expected_cdam(case, lambda: case.logits().log_softmax(-1)[rows, target])
    cdam = CDAM(lambda pixels: case.model(pixels).log_softmax(-1), layer=case.site)
    same(cdam.attribute(case.inputs, target, return_tokens=True), expected)


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Camembert"])
def test_the_input_of_a_given_attention_of_a_text_model(family):
    case = real_models.hf_roberta(family)
    target = per_sample_targets(case)
    expected = expected_cdam(case, logit(case, target))
    cdam = CDAM(case.model, layer=case.site)
    same(cdam.attribute(case.inputs, target, case.extra, attribute_to_layer_input=True), expected)


def test_explicit_layer_gives_what_the_search_finds():
    for name in ("timm-4registers", "hf-dinov2-registers", "torchvision"):
        case = build(name)
        found = CDAM(case.model).attribute(case.inputs, 1)
        same(CDAM(case.model, layer=case.site).attribute(case.inputs, 1), found)
