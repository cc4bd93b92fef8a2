"""Where tokens lie on an image, against where in the image their gradients lie."""

import pytest
import timm
import torch

from captum_ext import CDAM

pytestmark = pytest.mark.slow

MODELS = {
    "vit_tiny_patch16_224": (14, 14),
    "swin_tiny_patch4_window7_224": (7, 7),  # windows
    "nest_tiny": (14, 14),  # blocks of tokens
    "crossvit_9_240": (20, 20),  # the class token comes from another grid
    "tnt_s_patch16_224": (14, 14),  # pixels unfolded to patches
    "hiera_tiny_224": (7, 7),  # units, pooled
    "twins_svt_small": (7, 7),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_token_is_placed_where_its_gradient_lies(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"][-1]
    image = torch.randn(1, 3, size, size)
    explainer = CDAM(model)
    tokens = explainer.tokens(image)
    assert tuple(tokens.order.shape) == MODELS[name]
    rows, pixels = tokens_with_graph(model, image, tokens.values)
    values = tokens.values.flatten(0, -2)
    height, width = tokens.order.shape
    for place in torch.randperm(height * width)[:4].tolist():
        number = tokens.order.flatten()[place]
        row = (rows.detach() - values[number]).abs().sum(1).argmin()
        score = (rows[row] * torch.randn(rows.shape[1])).sum()
        (gradient,) = torch.autograd.grad(score, pixels, retain_graph=True)
        energy = gradient[0].square().sum(0)
        energy = energy / energy.sum()
        centres = (torch.arange(size) + 0.5) / size
        y, x = (energy.sum(1) * centres).sum() * height, (energy.sum(0) * centres).sum() * width
        assert abs(float(y) - place // width - 0.5) < 0.6
        assert abs(float(x) - place % width - 0.5) < 0.6


def tokens_with_graph(model, image, values):
    """The tokens, row by row in the model's order, and the pixels they come from."""
    found = []

    def note(_, __, output):
        if isinstance(output, torch.Tensor) and output.numel() == values.numel():
            same = torch.equal(output.detach().flatten().sort().values, values.flatten().sort().values)
            found.extend([output] * same)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    pixels = image.clone().requires_grad_()
    model(pixels)
    for hook in hooks:
        hook.remove()
    return found[-1].flatten(0, -2), pixels
