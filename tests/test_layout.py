"""How tokens lie on an image: known, inferred, and for pytorch-grad-cam."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toy_models import tiny_vit

from adapters import reshape_transform_for
from captum_ext import CDAM

sizes = st.integers(1, 5)


@settings(max_examples=15, deadline=None)
@given(rows=sizes, columns=sizes, registers=st.integers(0, 4), batch=st.integers(1, 3), data=st.data())
def test_map_is_the_patch_part_of_the_tokens(rows, columns, registers, batch, data):
    """A CDAM map at (i, j) is the score of the token of patch (i, j): found by changing the pixels of that patch."""
    assume(rows * columns > 1)
    model = tiny_vit(img_size=(8 * rows, 8 * columns), reg_tokens=registers, embed_dim=16, depth=1)
    x = torch.randn(batch, 3, 8 * rows, 8 * columns)
    targets = data.draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch))
    cdam = CDAM(model)
    tokens = cdam.attribute(x, targets, return_tokens=True)
    assert tokens.shape == (batch, 1 + registers + rows * columns)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    site = []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda _, __, out: site.append(out))
    changed = x.clone()
    changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
    model(x), model(changed)
    hook.remove()
    moved = (site[0] - site[1]).abs().sum((0, 2)).argmax().item()
    assert torch.equal(cdam.attribute(x, targets)[:, 0, row, column], tokens[:, moved])


def test_pruned_tokens_are_an_error_that_counts():
    model = tiny_vit()
    model.norm_pre.register_forward_hook(lambda _, __, tokens: tokens[:, :-3])
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"tokens, of shape \(1, 14, 32\).*Ask for\s+`return_tokens=True`"):
        CDAM(model).attribute(x, 0)
    assert CDAM(model).attribute(x, 0, return_tokens=True).shape == (1, 14)


@pytest.mark.parametrize(("registers", "image"), [(0, (32, 32)), (4, (32, 32)), (1, (16, 40)), (0, (24, 8))])
def test_reshape_transform_puts_each_patch_in_its_place(registers, image):
    model = tiny_vit(img_size=image, reg_tokens=registers)
    rows, columns = image[0] // 8, image[1] // 8
    patches = torch.arange(float(rows * columns)).view(1, -1, 1).repeat(2, 1, 3)
    tokens = torch.cat([torch.full((2, 1 + registers, 3), -1.0), patches], dim=1)
    grid = reshape_transform_for(model)(tokens)
    assert torch.equal(grid, torch.arange(float(rows * columns)).view(1, 1, rows, columns).expand(2, 3, -1, -1))


def test_reshape_transform_follows_a_dynamic_size():
    model = tiny_vit(dynamic_img_size=True)
    square = torch.arange(37.0).view(1, 37, 1)
    assert reshape_transform_for(model)(square).shape == (1, 1, 6, 6)
    wide = torch.arange(13.0).view(1, 13, 1)
    assert reshape_transform_for(model, image_size=(16, 48))(wide)[0, 0].tolist() == [
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [7.0, 8.0, 9.0, 10.0, 11.0, 12.0],
    ]
    with pytest.raises(ValueError, match=r"are 12 patches, which is not a square.*image_size="):
        reshape_transform_for(model)(wide)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: reshape_transform_for("vit"), TypeError, "torch.nn.Module"),
        (lambda: reshape_transform_for(torch.nn.Conv2d(3, 3, 1)), ValueError, "LayerGradCam"),
        (lambda: reshape_transform_for(tiny_vit())(torch.zeros(2, 5)), ValueError, r"got shape \(2, 5\)"),
        (
            lambda: reshape_transform_for(tiny_vit(), (64, 32))(torch.zeros(1, 17, 2)),
            ValueError,
            "does not take images",
        ),
    ],
)
def test_wrong_use_of_the_reshape_transform_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
