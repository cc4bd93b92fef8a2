"""Shapley values of tokens against all orders of few players, other software, and what they must sum to."""

from contextlib import nullcontext
from itertools import combinations, permutations
from math import factorial

import pytest
import torch
from games import GAMES, IMAGES, WORDS, shaken
from left_out_keys import last_call, worth
from toy_models import tiny_vit

from captum_ext import ContrastTarget, TokenAblation, TokenShapley, without_closed_form

ROWS = torch.arange(4).view(4, 1).expand(4, 4)
BLOCKS = 2 * (ROWS // 2) + ROWS.T // 2


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def game_of_blocks(model, labels, score=lambda y: y[:, 1]):
    """What each set of players is worth, (batch,), by the whole model without the other patches' keys."""
    last, players = last_call(model, (IMAGES,)), labels.unique().tolist()
    patches = torch.cat([torch.full((1,), -1), labels.flatten()])
    return {
        members: worth(model, (IMAGES,), score, (patches >= 0) & ~torch.isin(patches, torch.tensor(members)), last)
        for size in range(len(players) + 1)
        for members in combinations(players, size)
    }


def by_all_orders(worths, players):
    """The definition: the mean over all orders of what a player adds to those in front of it, (batch, players)."""
    total = dict.fromkeys(players, 0.0)
    for order in permutations(players):
        for place, player in enumerate(order):
            before = tuple(sorted(order[:place]))
            total[player] = total[player] + worths[tuple(sorted((*before, player)))] - worths[before]
    return torch.stack([total[player] / factorial(len(players)) for player in players], 1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("closed", [True, False])
def test_exact_values_are_the_mean_over_all_orders(pool, closed):
    model = shaken(tiny_vit(global_pool=pool))
    labels = BLOCKS + (ROWS == 0) * 4  # the first row's two pairs are players of their own
    expected = by_all_orders(game_of_blocks(model, labels), labels.unique().tolist())
    with nullcontext() if closed else without_closed_form():
        values, errors = TokenShapley(model).attribute(IMAGES, 1, players=labels, n_samples=None, return_errors=True)
    assert errors.abs().max() == 0
    for number, label in enumerate(labels.unique()):
        found = values[:, 0, labels == label]
        torch.testing.assert_close(found, expected[:, number, None].expand_as(found), rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_exact_values_are_those_of_shapiq():
    shapiq = pytest.importorskip("shapiq", exc_type=ImportError)
    model = shaken(tiny_vit())
    labels = (torch.arange(16) * 12 // 16).view(4, 4)  # 12 players
    last, patches = last_call(model, (IMAGES[:1],)), torch.cat([torch.full((1,), -1), labels.flatten()])

    def value(coalitions):
        missing = [(patches >= 0) & ~torch.as_tensor(one)[patches.clamp(min=0)] for one in coalitions]
        return torch.cat([worth(model, (IMAGES[:1],), lambda y: y[:, 1], one, last) for one in missing]).numpy()

    shares = shapiq.ExactComputer(value, n_players=12)("SV")
    expected = torch.tensor([shares[(i,)] for i in range(12)], dtype=torch.float64)
    found = TokenShapley(model).attribute(IMAGES[:1], 1, players=labels, n_samples=None)[0, 0]
    torch.testing.assert_close(found, expected[labels], rtol=1e-9, atol=1e-10)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["class token", "average pooling", "BERT, padded", "Llama, padded", "gpt-oss, sinks"])
def test_values_sum_to_what_all_players_add(name):
    game = GAMES[name]()
    inputs, *further = game.inputs
    options = {"additional_forward_args": tuple(further), "return_tokens": True, "n_samples": 4}
    found = TokenShapley(game.model).attribute(inputs, 1, **options)
    last, image = last_call(game.model, game.inputs, game.kind), inputs.dim() == 4
    nobody = torch.ones(game.tokens, dtype=torch.bool)
    nobody[: game.tokens - 16 if image else 0] = False  # prefix tokens stay
    none = worth(game.model, game.inputs, lambda y: game.logits(y)[:, 1], nobody, last)
    added = worth(game.model, game.inputs, lambda y: game.logits(y)[:, 1], ~nobody & nobody, None) - none
    torch.testing.assert_close(found.sum(1), added, rtol=1e-9, atol=1e-9)
    if image:
        assert found[:, : game.tokens - 16].abs().max() == 0
    assert found.abs().max() > 1e-3


@pytest.mark.slow
def test_estimates_are_within_their_standard_errors():
    model, labels = shaken(tiny_vit()), (torch.arange(16) * 12 // 16).view(4, 4)  # 12 players
    explain = TokenShapley(model).attribute
    options = {"players": labels, "return_errors": True}
    exact, none = explain(IMAGES, 1, n_samples=None, **options)
    few, errors = explain(IMAGES, 1, n_samples=40, generator=seeded(), **options)
    assert none.max() == 0 < errors.min()
    deviations = ((few - exact) / errors).square().mean().sqrt()
    assert 0.6 < deviations < 1.5  # 1 for errors that are right
    many = explain(IMAGES, 1, n_samples=160, generator=seeded(), **options)[1]
    assert 0.4 < (many / errors).mean() < 0.6  # four times as many orders


def test_two_patches_that_say_the_same_share_what_they_add():
    """The effect of one of them is about 0, as the other one stays."""
    model = shaken(tiny_vit())
    model.pos_embed.data.zero_()
    model.blocks[-1].attn.qkv.weight.data[:32] = 0  # of the queries, so that all tokens get the same weight
    images = IMAGES.clone()
    images[..., 8:16, :8] = images[..., :8, :8]
    labels = torch.full((4, 4), 2)
    labels[0, 0], labels[1, 0] = 0, 1
    values = TokenShapley(model).attribute(images, 1, players=labels, n_samples=None)
    torch.testing.assert_close(values[..., 0, 0], values[..., 1, 0], rtol=1e-9, atol=1e-12)
    assert values[..., 0, 0].abs().min() > 1e-3


def test_negative_labels_always_take_part():
    model = shaken(tiny_vit())
    labels = torch.full((4, 4), -1)
    labels[2, 3] = 7
    found = TokenShapley(model).attribute(IMAGES, 1, players=labels, n_samples=None)
    alone = TokenAblation(model).attribute(IMAGES, 1)
    torch.testing.assert_close(found[..., 2, 3], alone[..., 2, 3], rtol=1e-9, atol=1e-12)
    assert (found != 0).sum() == 2


def test_several_targets_share_their_coalitions():
    model = shaken(tiny_vit())
    options = {"n_samples": 4, "return_errors": True}
    values, errors = TokenShapley(model).attribute_targets(
        IMAGES, [1, [2, 0], ContrastTarget(1, 2)], generator=seeded(), **options
    )
    assert values.shape == errors.shape == (2, 3, 4, 4)
    for number, target in enumerate([1, [2, 0], ContrastTarget(1, 2)]):
        alone = TokenShapley(model).attribute(IMAGES, target, generator=seeded(), **options)
        torch.testing.assert_close(values[:, number], alone[0][:, 0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(errors[:, number], alone[1][:, 0], rtol=1e-9, atol=1e-12)
    tokens = TokenShapley(model).attribute_targets(IMAGES, [1], return_tokens=True, generator=seeded(), **options)
    torch.testing.assert_close(tokens[1][:, 0, 1:].view(2, 4, 4), errors[:, 0], rtol=1e-9, atol=1e-12)


def test_words_play_by_their_own_labels():
    game = GAMES["BERT, padded"]()
    ids, mask = game.inputs
    phrases = [-1, 0, 0, 5, 5, 5, -1]
    found = TokenShapley(game.model).attribute(ids, 1, mask, players=phrases, n_samples=None)
    assert (found[:, 1] == found[:, 2]).all()
    assert found[0, 4] == found[0, 3] != found[0, 1]
    assert found[:, [0, 6]].abs().max() == 0


def test_a_generator_governs_the_orders_and_the_random_state_is_left():
    model = shaken(tiny_vit())

    def explain(generator=None):
        return TokenShapley(model).attribute(IMAGES, 1, n_samples=4, generator=generator)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = explain()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(explain(), first)
    torch.manual_seed(2)
    assert not torch.equal(explain(), first)
    assert torch.equal(explain(seeded()), explain(seeded()))
    generator = seeded()
    assert not torch.equal(explain(generator), explain(generator))


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_samples": 5}, ValueError, "even number of orders, at least 4.*got 5"),
        ({"n_samples": 2}, ValueError, "got 2"),
        ({"n_samples": "many"}, TypeError, "`n_samples` to be an int"),
        ({"n_samples": None, "players": torch.arange(16).view(4, 4)}, None, ""),
        ({"generator": 3}, TypeError, "`generator` to be a torch.Generator"),
        ({"players": torch.zeros(2, 2).long()}, ValueError, r"shape \(4, 4\), got \(2, 2\)"),
        ({"players": torch.zeros(4, 4)}, TypeError, "integers, got torch.float32"),
        ({"players": -torch.ones(4, 4).long()}, ValueError, "nobody plays"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    explain = TokenShapley(tiny_vit(num_classes=3)).attribute
    with nullcontext() if error is None else pytest.raises(error, match=words):
        explain(IMAGES.float(), 1, **options)


def test_more_players_than_all_coalitions_allow_are_told_what_to_do():
    model = tiny_vit(patch_size=4)
    with pytest.raises(ValueError, match=r"at most 16 players, got 64\. Give `n_samples`, or larger `players`"):
        TokenShapley(model).attribute(IMAGES.float(), 1, n_samples=None)
    large = torch.arange(4).repeat_interleave(2)
    TokenShapley(model).attribute(IMAGES.float(), 1, n_samples=None, players=large.view(1, 8).expand(8, 8))
    TokenShapley(model).attribute(IMAGES.float(), 1, n_samples=4)


def test_words_have_a_value_each():
    assert TokenShapley(GAMES["gpt-oss, sinks"]().model).attribute(WORDS, 1, n_samples=4).shape == WORDS.shape
