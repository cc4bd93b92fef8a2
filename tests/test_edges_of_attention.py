"""Attentions that are rare: how masks, keys and rows are followed, against plain autograd and weights by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_ext import CDAM, AttentionMap, AttentionRollout, IntegratedCDAM, SmoothCDAM


def first_row(model, rows):
    return model.first(rows[:, 0])


def both_class_tokens(model, rows):
    return (model.first(rows[:, 0]) + model.second(rows[:, 1])) / 2


class OneAttention(nn.Module):
    """Channels in two heads, of which `read` makes the output; keys may be changed behind their projection."""

    def __init__(self, mask=None, read=both_class_tokens, turn=lambda keys: keys, channels=6):
        super().__init__()
        self.qkv = nn.Linear(channels, 18)
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
        self.mask, self.read, self.turn = mask, read, turn

    def operands(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4).unbind(0)
        return query, self.turn(key), value

    def forward(self, x):
        mixed = F.scaled_dot_product_attention(*self.operands(x), attn_mask=self.mask)
        return self.read(self, mixed.transpose(1, 2).flatten(2))


@pytest.fixture
def _no_general_way(monkeypatch):
    """A closed form that finds itself wrong would be replaced by automatic differentiation."""
    monkeypatch.setattr("captum_ext.integrated_cdam.integrated_relevance", None)
    monkeypatch.setattr("captum_ext.smooth_cdam.smooth_relevance", None)


def masks():
    allowed = torch.rand(5, 5) > 0.3
    allowed[:, 3] = allowed[0, 4] = True
    allowed[1, 4] = allowed[0, 0] = False  # the class tokens do not see the same
    for_each = torch.randn(2, 1, 5, 5).double()
    return {"booleans": allowed, "numbers": torch.randn(5, 5).double(), "for each sample": for_each}


def gradient(model, x, target):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, target].sum(), x)[0]


def is_integrated(model, x):
    """Compares three steps from zeros, and from other tokens, with plain autograd."""
    for baseline in (torch.zeros_like(x), torch.randn_like(x)):
        steps = sum(gradient(model, baseline + (x - baseline) * k / 3, 2) for k in (1, 2, 3)) / 3
        given = {"n_steps": 3, "return_tokens": True, "baselines": baseline if baseline.any() else None}
        scores = IntegratedCDAM(model).attribute(x, 2, **given)
        torch.testing.assert_close(scores, ((x - baseline) * steps).sum(2), rtol=1e-9, atol=1e-12)


TURNS = {
    "positions are added": lambda keys: keys + torch.arange(30.0).view(1, 2, 5, 3).double().sin(),
    "a number is added": lambda keys: keys + 0.7,
    "doubled": lambda keys: keys * 2.0,
    "negative": lambda keys: -keys,
    "turned": lambda keys: keys * torch.arange(5.0).view(5, 1).double().cos() - keys.flip(3),
    "an inverse": lambda keys: 1.5 / (keys + 9),
    "normalised": lambda keys: F.normalize(keys, dim=-1),
}
READS = {
    "select": lambda model, rows: model.first(rows.select(1, 2)),
    "select from the end": lambda model, rows: model.first(rows).select(-2, -1),
    "one of each": lambda model, rows: model.first(rows[torch.arange(2), torch.tensor([3, 1])]),
    "one of each, from the end": lambda model, rows: model.first(rows)[torch.arange(2), torch.tensor([-1, 1])],
    "one of each, twice": lambda model, rows: (
        model.first(rows[torch.arange(2), torch.tensor([3, 1])])
        * model.second(rows[torch.arange(2), torch.tensor([3, 1])])
    ),
    "sums over channels": lambda model, rows: torch.stack(
        [rows.mean(2)[:, 0], rows.sum(2)[:, 1], rows.square().sum(2, keepdim=True)[:, 1, 0]], 1
    ),
    "a product of all rows": lambda model, rows: torch.addmm(
        model.first.bias, rows.reshape(-1, 6), model.first.weight.T
    ).view(2, 5, 3)[:, 1],
}


@pytest.mark.usefixtures("_no_general_way")
@pytest.mark.parametrize("name", [*TURNS, *READS])
def test_what_is_in_front_of_the_products_and_behind_them_is_followed(name):
    changes = {"turn": TURNS[name]} if name in TURNS else {"read": READS[name]}
    is_integrated(OneAttention(**changes).double(), torch.randn(2, 5, 6).double())


@pytest.mark.usefixtures("_no_general_way")
@pytest.mark.parametrize("kind", ["booleans", "numbers", "for each sample"])
def test_each_of_two_class_tokens_has_its_own_row_of_the_mask(kind):
    model, x = OneAttention(masks()[kind]).double(), torch.randn(2, 5, 6).double()
    is_integrated(model, x)
    noise, generator = torch.empty(3, 5, 6).double(), torch.Generator().manual_seed(4)
    noisy = [x + 0.3 * one.normal_(generator=generator) for one in noise]
    smooth = SmoothCDAM(model).attribute(
        x, 2, nt_samples=3, stdevs=0.3, generator=torch.Generator().manual_seed(4), return_tokens=True
    )
    expected = sum((one * gradient(model, one, 2)).sum(2) for one in noisy) / 3
    torch.testing.assert_close(smooth, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_no_general_way")
def test_many_channels_are_projected_last():
    model = OneAttention(read=first_row, channels=30).double()
    is_integrated(model, torch.randn(2, 5, 30).double())


def written_out(model, x, change=lambda weights: weights):
    """The same in operations of its own, with a product for all rows and a scale and mask that are not the usual."""
    rows = torch.addmm(model.qkv.bias, x.reshape(-1, 6), model.qkv.weight.T).view(len(x), 5, 3, 2, 3)
    query, key, value = rows.permute(2, 0, 3, 1, 4).unbind(0)
    weights = change((0.4 * (query @ key.transpose(2, 3)) + model.mask).softmax(-1))
    return model.read(model, (weights @ value.to(weights.dtype)).to(x.dtype).transpose(1, 2).flatten(2))


@pytest.mark.usefixtures("_no_general_way")
@pytest.mark.parametrize("kind", ["numbers", "for each sample"])
def test_an_attention_that_is_written_out_is_taken_apart(kind):
    model = OneAttention(masks()[kind]).double()
    is_integrated(lambda x: written_out(model, x), torch.randn(2, 5, 6).double())


def test_weights_that_are_gone_are_read_behind_their_conversion():
    model, x = OneAttention(masks()["numbers"], first_row).double(), torch.randn(2, 5, 6).double()
    query, key, _ = model.operands(x)
    row = (0.4 * torch.einsum("bhc,bhkc->bhk", query[:, :, 0], key) + model.mask[0]).softmax(2).mean(1).float()
    found = AttentionRollout(lambda x: written_out(model, x, torch.Tensor.float)).attribute(x)
    torch.testing.assert_close(found, (row + F.one_hot(torch.tensor(0), 5)).double() / 2)


@pytest.mark.parametrize("kind", ["booleans", "numbers", "for each sample"])
def test_of_two_class_tokens_maps_of_weights_are_the_first_ones(kind):
    mask = masks()[kind]
    model, x = OneAttention(mask).double(), torch.randn(2, 5, 6).double()
    query, key, _ = model.operands(x)
    added = torch.where(mask, 0.0, -math.inf) if kind == "booleans" else mask
    first = ((query @ key.mT) / math.sqrt(3) + added).exp()[:, :, 0]
    row = (first / first.sum(2, keepdim=True)).mean(1)
    torch.testing.assert_close(AttentionMap(model).attribute(x), row, rtol=1e-9, atol=1e-12)
    own = F.one_hot(torch.tensor(0), 5)
    torch.testing.assert_close(AttentionRollout(model).attribute(x), (row + own) / 2, rtol=1e-9, atol=1e-12)


def test_weights_of_samples_and_heads_on_one_axis_are_told_apart():
    model, x = OneAttention(), torch.randn(3, 5, 6)

    def forward(x):
        query, key, value = (one.reshape(-1, 5, 3) for one in model.operands(x))
        mixed = torch.bmm((query @ key.mT / 3**0.5).softmax(-1), value)
        return model.first(mixed.view(-1, 2, 5, 3).transpose(1, 2).flatten(2)[:, 0])

    query, key, _ = model.operands(x)
    row = (query[:, :, 0, None] * key / 3**0.5).sum(3).softmax(2).mean(1)
    torch.testing.assert_close(AttentionMap(forward).attribute(x), row)
    torch.testing.assert_close(AttentionRollout(forward).attribute(x), (row + F.one_hot(torch.tensor(0), 5)) / 2)


class Pooling(nn.Module):
    """Patches of 2 x 2 pixels pass an attention with a residual path, and one that pools them with a query."""

    def __init__(self):
        super().__init__()
        self.patches, self.first, self.query = nn.Conv2d(1, 6, 2, 2), OneAttention(), nn.Parameter(torch.randn(2, 1, 3))
        self.attention, self.head = OneAttention(read=lambda _, rows: rows), nn.Linear(6, 3)

    def tokens(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return patches, patches + self.attention(patches)

    def forward(self, x):
        _, key, value = self.first.operands(self.tokens(x)[1])
        return self.head(F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1, -1), key, value).flatten(1))


def test_an_attention_that_pools_has_no_residual_path():
    model, x = Pooling(), torch.randn(2, 1, 4, 6)
    patches, tokens = model.tokens(x)
    query, key, _ = model.attention.operands(patches)
    before = (torch.einsum("bhqc,bhkc->bhqk", query, key) / 3**0.5).softmax(3).mean(1)
    pooled = ((model.query * model.first.operands(tokens)[1]).sum(3) / 3**0.5).softmax(2).mean(1)
    torch.testing.assert_close(AttentionMap(model).attribute(x), pooled.view(2, 1, 2, 3))
    rollout = (torch.einsum("bk,bkj->bj", pooled, before) + pooled) / 2
    torch.testing.assert_close(AttentionRollout(model).attribute(x), rollout.view(2, 1, 2, 3))


def test_what_is_not_in_closed_form_is_told_from_what_is():
    x = torch.randn(2, 5, 6).double()
    one_of_each = OneAttention(read=lambda model, rows: model.first(rows[torch.arange(2), 3])).double()
    is_integrated(one_of_each, x)
    model = OneAttention().double()

    def forward(x):
        query, key, value = model.operands(x)
        weights = (query @ key.transpose(2, 3) / 3**0.5 + x[:, None, :, :5]).softmax(-1)
        return both_class_tokens(model, (weights @ value).transpose(1, 2).flatten(2))

    is_integrated(forward, x)


def test_samples_behind_the_tokens_are_found_where_a_block_forgets_the_tokens():
    """As many of one as of the other: which axis is which is seen past the addition of the tokens' mean."""
    model, x = OneAttention().double(), torch.randn(6, 6, 6).double()

    def follow(tokens):
        query, key, value = model.qkv(tokens).unflatten(2, (3, 2, 3)).permute(2, 1, 3, 0, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return both_class_tokens(model, mixed.transpose(1, 2).flatten(2))

    def tokens_of(x):
        tokens = x.transpose(0, 1)
        return tokens + tokens.mean(0).expand_as(tokens)

    found = CDAM(lambda x: follow(tokens_of(x))).attribute(x, 2, return_tokens=True)
    expected = (tokens_of(x) * gradient(follow, tokens_of(x), 2)).sum(2).T
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
