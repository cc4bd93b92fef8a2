"""Grad-CAM of pytorch-grad-cam with our reshape transform, against one by hand."""

import numpy as np
import pytest
import real_models
import torch
from by_autograd import gradients, logit, per_sample_targets, site_tokens
from real_models import build

from adapters import reshape_transform_for


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


GRAD_CAM = ["timm", "timm-4registers", "timm-distilled", "timm-static-nonsquare", "timm-dynamic-nonsquare"]
GRAD_CAM += ["timm-avg-no-class-token", "eva-rope-registers", "torchvision", "dino", "dinov2-registers"]
GRAD_CAM += ["hf-vit", "hf-deit", "hf-dinov2-registers"]


@pytest.mark.sampled(6)
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
