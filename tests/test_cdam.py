"""CDAM against numbers worked out by hand."""

import pytest
import torch
from real_models import hooked
from toy_models import PAIR_TOKENS, PairModel, PatchModel, tiny_vit

from adapters import target_layer_for
from captum_ext import CDAM


def test_is_twice_each_tokens_share_of_a_product():
    model = PairModel()
    scores = CDAM(model, model.tokens).attribute(PAIR_TOKENS, target=0)
    assert scores.tolist() == [[4.0, 12.0, -8.0], [0.0, 4.0, 6.0]]


def test_explains_another_class_for_each_sample():
    model = PairModel()
    scores = CDAM(model, model.tokens).attribute(PAIR_TOKENS, target=[1, 0])
    assert scores.tolist() == [[12.0, 0.0, 40.0], [0.0, 4.0, 6.0]]


def test_patches_become_a_map_and_the_class_token_stays_out():
    model = PatchModel()
    image = torch.arange(24.0).view(1, 1, 4, 6)
    means = torch.tensor([[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])
    cdam = CDAM(lambda x: model(x), model.tokens)
    assert torch.equal(cdam.attribute(image, target=1)[0, 0], 4 * means**2)
    assert torch.equal(cdam.attribute(image, target=1, return_tokens=True)[0, 1:], 4 * means.flatten() ** 2)
    assert cdam.attribute(image, target=1, return_tokens=True)[0, 0] == 0


def test_several_targets_come_from_one_pass():
    model = PairModel()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    scores = CDAM(model, model.tokens).attribute_targets(PAIR_TOKENS, [0, torch.tensor([1, 0]), [0, 1]])
    assert scores[:, 0].tolist() == [[4.0, 12.0, -8.0], [0.0, 4.0, 6.0]]
    assert scores[:, 1].tolist() == [[12.0, 0.0, 40.0], [0.0, 4.0, 6.0]]
    assert scores[1, 2].tolist() == [0.0, 0.0, -30.0]
    assert len(calls) == 1


def test_input_of_a_layer_can_be_the_tokens():
    model = PairModel()
    model.tokens = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    model.tokens[0].weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # doubles T_i0, and so every score
    scores = CDAM(model, model.tokens).attribute(PAIR_TOKENS, target=0, attribute_to_layer_input=True)
    assert scores.tolist() == [[8.0, 24.0, -16.0], [0.0, 8.0, 12.0]]


def test_residual_path_keeps_its_own_value():
    """With an untouched residual, scaling the tokens at the site leaves the score's constant part unexplained."""
    model = tiny_vit().double()
    model.blocks[-1].attn.proj.weight.data.zero_()  # nothing of the attention reaches the residual stream
    with pytest.raises(ValueError, match="No patch token has a gradient"):
        CDAM(model).attribute(torch.randn(2, 3, 32, 32).double(), target=0)


def test_the_layer_found_is_the_norm_before_the_last_attention():
    model = tiny_vit()
    x = torch.randn(2, 3, 32, 32)
    assert target_layer_for(model) is model.blocks[-1].norm1
    seen = []
    with hooked(model.blocks[-1].norm1.register_forward_hook(lambda _, __, output: seen.append(output.detach()))):
        model(x)
    torch.testing.assert_close(CDAM(model).tokens(x).values, seen[0])
    assert CDAM(model).tokens(x).order.tolist() == torch.arange(1, 17).view(4, 4).tolist()


@pytest.mark.parametrize("wrap", [lambda m: torch.nn.Sequential(m, torch.nn.Linear(5, 2)), lambda m: m.forward])
def test_finds_the_transformer_inside_another_model(wrap):
    model = tiny_vit()
    wrapped = wrap(model)
    x = torch.randn(2, 3, 32, 32)
    given = CDAM(wrapped, model.blocks[-1].norm1).attribute(x, target=1)
    assert torch.equal(CDAM(wrapped).attribute(x, target=1), given)
    assert given.abs().sum() > 0


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.right, self.left = tiny_vit(), tiny_vit()

    def forward(self, x):
        return self.left(x) - self.right(x)


def test_of_two_transformers_the_last_to_run_is_explained_and_the_other_can_be_chosen():
    model, x = Both().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(CDAM(model).attribute(x, 1), -CDAM(model.right).attribute(x, 1))
    torch.testing.assert_close(CDAM(model, attention=model.left).attribute(x, 1), CDAM(model.left).attribute(x, 1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_parts_stop_neither_the_map_nor_the_advice_where_no_attention_is_found():
    model = tiny_vit()
    x = torch.randn(2, 3, 32, 32)
    expected = CDAM(model).attribute(x, 1)
    model.head = torch.jit.script(model.head)
    torch.testing.assert_close(CDAM(model).attribute(x, 1), expected)
    convolutions = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.jit.script(torch.nn.ReLU()), torch.nn.Flatten())
    with pytest.raises(ValueError, match=r'layer=.*get_submodule\("0"\)'):
        CDAM(convolutions).attribute(x, 0)
    for argument in ("layer", "attention"):
        with pytest.raises(ValueError, match=f"Expected `{argument}` to be a plain module, got a Linear"):
            CDAM(model, **{argument: model.head})
