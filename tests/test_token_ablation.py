"""Effects of tokens against the whole model run again without each key, and against numbers by hand."""

from contextlib import nullcontext

import pytest
import torch
from games import GAMES, IMAGES, shaken
from left_out_keys import effects
from tiny_decoders import PROMPTS, batch, decoder
from torch import nn
from torch.nn import functional as F
from toy_models import tiny_vit

from captum_ext import CDAM, ConceptTarget, ContrastTarget, TokenAblation, TokenShapley, without_closed_form


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", GAMES)
def test_effects_are_those_of_the_whole_model_without_the_key(name):
    game = GAMES[name]()
    inputs, *further = game.inputs
    ablation = TokenAblation(game.model)
    expected = effects(game.model, game.inputs, lambda y: game.logits(y)[:, 1], game.tokens, game.kind)
    found = ablation.attribute(inputs, 1, tuple(further), return_tokens=True)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with without_closed_form():
        found = ablation.attribute(inputs, 1, tuple(further), return_tokens=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert ablation.path(inputs, 1, tuple(further)).way == game.way


class Pool(nn.Module):
    """One query over tokens (batch, 3, 2), whose first channel is the key's product and the second the value.

    The weights are softmax(T_0), the output their mean of T_1, and what is added behind it.
    """

    def __init__(self, added=0.0):
        super().__init__()
        self.key, self.value = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
        self.key.weight.data, self.value.weight.data = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        self.value.bias.data.zero_()
        self.query, self.added = nn.Parameter(torch.ones(1, 1, 1, 1)), added

    def forward(self, tokens, mask=None):
        key, value = self.key(tokens)[:, None], self.value(tokens)[:, None]
        query = self.query.expand(len(tokens), -1, -1, -1)
        seen = None if mask is None else mask[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, seen)[:, 0, 0] + self.added


def tokens(weights, values):
    return torch.stack([torch.tensor(weights).double().log(), torch.tensor(values).double()], -1)


def test_by_hand():
    """Weights 1/2, 1/4, 1/4 of the values 4, 8, 0: the mean is 4; without them 4, 8/3 and 16/3."""
    found = TokenAblation(Pool().double()).attribute(tokens([[2, 1, 1]], [[4, 8, 0]]), 0)
    torch.testing.assert_close(found, torch.tensor([[0.0, 4 - 8 / 3, 4 - 16 / 3]], dtype=torch.float64))


def test_a_weight_that_rounds_to_one_hides_nothing():
    """Without the token that takes all, the others share what is left, which subtraction would have lost."""
    given = torch.tensor([[[800.0, 4.0], [1.0, 8.0], [1.0, 0.0]]], dtype=torch.float64)
    assert given[..., 0].softmax(-1).tolist() == [[1.0, 0.0, 0.0]]
    given[0, 1, 1] = 10.0  # of weights 0, 1/2, 1/2 the mean is 5, and not 4
    assert TokenAblation(Pool().double()).attribute(given, 0).tolist() == [[-1.0, 0.0, 0.0]]


@pytest.mark.parametrize("closed", [True, False])
def test_a_row_with_nothing_left_to_attend_to_gets_zero(closed):
    mask = torch.tensor([[True, False, False], [True, True, False]])
    given = tokens([[2, 1, 1], [2, 1, 1]], [[4, 8, 0], [4, 8, 0]])
    with nullcontext() if closed else without_closed_form():
        found = TokenAblation(Pool(added=3.0).double()).attribute(given, 0, mask)
    mean = (2 * 4 + 8) / 3
    expected = torch.tensor([[4.0, 0.0, 0.0], [mean - 8, mean - 4, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class Attends(nn.Module):
    """torch's attention with a bias key and a zero one, read at the first token, of (batch, tokens, 8)."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x, missing=None):
        return self.head(x[:, 0] + self.attention(x, x, x, key_padding_mask=missing, need_weights=False)[0][:, 0])


def test_keys_that_belong_to_no_token_stay():
    model, x = shaken(Attends()), torch.randn(2, 5, 8, dtype=torch.float64)
    parts = [model(x, F.one_hot(torch.tensor([i, i]), 5).bool())[:, 2] for i in range(5)]
    expected = (model(x)[:, 2, None] - torch.stack(parts, 1)).detach()
    torch.testing.assert_close(TokenAblation(model).attribute(x, 2), expected, rtol=1e-9, atol=1e-9)


def test_targets_of_all_kinds_come_from_one_pass():
    model, calls = shaken(tiny_vit()), []
    model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    concept = ConceptTarget(torch.randn(32, dtype=torch.float64))
    targets = [1, [2, 0], ContrastTarget(1, 2), ContrastTarget(1, 2, probabilities=True), lambda y: y[3].exp(), concept]
    found = TokenAblation(model).attribute_targets(IMAGES, targets, return_tokens=True)
    assert len(calls) == 1

    def latent(x):
        return model.forward_head(model.forward_features(x), pre_logits=True)

    scores = [
        lambda y: y[:, 1],
        lambda y: y[[0, 1], [2, 0]],
        lambda y: y[:, 1] - y[:, 2],
        lambda y: y.softmax(-1)[:, 1] - y.softmax(-1)[:, 2],
        lambda y: y[:, 3].exp(),
    ]
    for number, score in enumerate(scores):
        torch.testing.assert_close(found[:, number], effects(model, (IMAGES,), score, 17), rtol=1e-9, atol=1e-9)
    expected = effects(latent, (IMAGES,), lambda y: y @ concept.vector, 17)
    torch.testing.assert_close(found[:, 5], expected, rtol=1e-9, atol=1e-9)


def test_a_regression_has_no_class():
    model = shaken(tiny_vit(num_classes=1))
    found = TokenAblation(model).attribute(IMAGES)
    expected = effects(model, (IMAGES,), lambda y: y[:, 0], 17)[:, 1:].view(2, 1, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_an_earlier_attention_is_left_out_of_the_layers_behind_it():
    model = shaken(tiny_vit())
    whole = effects(model, (IMAGES,), lambda y: y[:, 1], 17)
    for earlier in ({"attention": -2}, {"attention": model.blocks[1].attn}, {"layer": model.blocks[1].norm1}):
        found = TokenAblation(model, **earlier).attribute(IMAGES, 1, return_tokens=True)
        expected = effects(model, (IMAGES,), lambda y: y[:, 1], 17, number=2)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(found, whole)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_effects_below_the_rounding_of_half_precision_are_seen(dtype, pool):
    """The score is rounded to far more than the effects of single tokens, which are right nevertheless."""
    model = shaken(tiny_vit(global_pool=pool)).float()
    model.head.bias.data += 64
    expected = TokenAblation(model).attribute(IMAGES.float(), 1)
    model = model.to(dtype)
    rounding = torch.finfo(dtype).eps * 64
    assert expected.abs().median() < rounding
    found = TokenAblation(model).attribute(IMAGES.to(dtype), 1)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert found.unique().numel() == found.numel()


class Mixed(nn.Module):
    """What each sample gives is normalised over the batch."""

    def __init__(self):
        super().__init__()
        self.vit = tiny_vit()

    def forward(self, x):
        y = self.vit(x)
        return y - y.mean(0)


class Bag(Mixed):
    def forward(self, x):
        return self.vit(x).mean(0, keepdim=True)


class Convolved(nn.Module):
    """Values are mixed by a convolution over the tokens."""

    def __init__(self):
        super().__init__()
        self.qkv, self.mix, self.head = nn.Linear(8, 24), nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        value = self.mix(value.mT).mT
        return self.head(F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0, 0])


@pytest.mark.parametrize(
    ("model", "words"), [(Mixed, "depends on the other samples"), (Bag, r"1 prediction\(s\) of 2")]
)
@pytest.mark.parametrize("closed", [True, False])
def test_samples_that_meet_are_refused_and_one_alone_is_not(model, words, closed):
    model = shaken(model())
    with nullcontext() if closed else without_closed_form():
        with pytest.raises(ValueError, match=words):
            TokenAblation(model).attribute(IMAGES, 1)
        if isinstance(model, Bag):
            expected = effects(model, (IMAGES[:1],), lambda y: y[:, 1], 17)
            found = TokenAblation(model).attribute(IMAGES[:1], 1, return_tokens=True)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_values_that_belong_to_several_tokens_are_refused():
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"made of several tokens.*Take CDAM"):
        TokenAblation(shaken(Convolved())).attribute(x, 1)
    assert CDAM(shaken(Convolved())).attribute(x, 1).abs().min() > 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_answers_of_decoders_are_explained_by_their_prompts(name, side):
    """Grouped queries, rotary embeddings, causal and sliding masks: each prompt alone is the truth."""
    model, answer = decoder(name), [5, 6]
    prompts = batch(side)
    found = TokenAblation(model).attribute_answer(prompts, answer)
    shapley = TokenShapley(model).attribute_answer(prompts, answer, n_samples=4)
    for sample, prompt in enumerate(PROMPTS):
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        rows = [
            effects(model, (ids,), lambda y, row=row, token=token: y.logits[:, row, token], ids.shape[1])[0]
            for row, token in zip((len(prompt) - 1, len(prompt)), answer, strict=True)
        ]
        expected = torch.stack(rows)[:, : len(prompt)]
        real = prompts["attention_mask"][sample].bool()
        torch.testing.assert_close(found.per_token[sample][:, real], expected, rtol=1e-9, atol=1e-9)
        assert found.per_token[sample][:, ~real].abs().max() == 0 if bool((~real).any()) else True
        assert shapley.scores[sample][~real].abs().sum() < 1e-12


def test_what_is_generated_is_explained_from_its_own_passes():
    model = decoder("llama")
    prompt = {"input_ids": torch.tensor([PROMPTS[0]])}
    found = TokenAblation(model).explain_generation(prompt, max_new_tokens=2)
    again = TokenAblation(model).attribute_answer(prompt, found.answer_ids)
    assert found.way == "the passes of generation"
    torch.testing.assert_close(found.per_token, again.per_token, rtol=1e-9, atol=1e-9)


class InBlocks(nn.Module):
    """The first rows and the others attend one after the other, to the same keys; the mean of all rows is read."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        query, key, value = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        blocks = [F.scaled_dot_product_attention(rows, key, value) for rows in (query[:, :, :2], query[:, :, 2:])]
        return self.head(torch.cat(blocks, 2)[:, 0].mean(1))


def test_attention_in_several_pieces_is_refused():
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"several attentions beside each other.*Take CDAM"):
        TokenAblation(shaken(InBlocks())).attribute(x, 1)
    assert CDAM(shaken(InBlocks())).attribute(x, 1).abs().min() > 0
