"""Relevance from the pass itself, on models with unusual graphs, against attention written out; its memory."""

import sys
from pathlib import Path

import pytest
import torch
import transformers
from captum.attr import InputXGradient
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from toy_models import tiny_vit

from captum_ext import AttentionMap, AttentionRollout, PartialLRP, RelevancePropagation
from captum_ext._attention_attribution import positive_relevance

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

CHANNELS, HEADS, WIDTH = 6, 2, 3


class Layers(nn.Module):
    """Two attentions with residual paths; parts can be overridden."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.projections = nn.ModuleList(nn.Linear(CHANNELS, 3 * CHANNELS) for _ in range(2))
        self.head = nn.Linear(CHANNELS, 3)
        self.double()

    def attend(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)

    def step(self, number, x):
        query, key, value = self.projections[number](x).unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        return self.attend(query, key, value).transpose(1, 2).flatten(2)

    def add(self, x, attended):
        return x + attended.tanh()

    def forward(self, x):
        for number in range(2):
            x = self.add(x, self.step(number, x))
        return self.head(x[:, 0])


class AddsInPlace(Layers):
    def add(self, x, attended):
        x = x.clone()
        x += attended.tanh()
        return x


class Checkpointed(Layers):
    def step(self, number, x):
        return checkpoint(super().step, number, x, use_reentrant=False)


class WritesOut(Layers):
    def attend(self, query, key, value):
        weights = (WIDTH**-0.5 * query @ key.mT).softmax(-1)
        return weights @ value


class InFloat32(WritesOut):
    """As transformers' eager attention of a double model: the softmax is in float32."""

    def attend(self, query, key, value):
        weights = (WIDTH**-0.5 * query @ key.mT).softmax(-1, dtype=torch.float32).to(query.dtype)
        return weights @ value


class Masked(Layers):
    def attend(self, query, key, value):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril(2)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Causal(Layers):
    def attend(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def forward(self, x):
        return super().forward(x.flip(1))


class Gated(Layers):
    """A softmax that is no attention comes first."""

    def forward(self, x):
        return super().forward(x * (3 * x).softmax(-1))


class Pairs(Layers):
    """Two attentions in each layer, of which neither depends on the other: differential attention."""

    def step(self, number, x):
        query, key, value = self.projections[number](x).unflatten(2, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        attended = self.attend(query, key, value) - 0.5 * self.attend(query.flip(-1), key, value)
        return attended.transpose(1, 2).flatten(2)


class Twice(torch.autograd.Function):
    """A function that is not seen."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Unseen(Layers):
    def add(self, x, attended):
        return x + Twice.apply(attended)


class ByParts(Layers):
    """A part of each layer runs under vmap."""

    def add(self, x, attended):
        return x + attended + torch.vmap(lambda one: self.projections[0](one)[:, :CHANNELS].tanh())(x)


class Frozen(Layers):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


MODELS = [
    Layers,
    AddsInPlace,
    Checkpointed,
    WritesOut,
    InFloat32,
    Masked,
    Causal,
    Gated,
    Pairs,
    Unseen,
    ByParts,
    Frozen,
]


def written_out(model, x, target):
    """Weights and gradients of both layers, by hooks on an attention that is written out."""
    kept = []

    def attend(query, key, value):
        scores = WIDTH**-0.5 * query @ key.mT
        if isinstance(model, Masked | Causal):
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(2 if isinstance(model, Masked) else 0)
            scores = scores.masked_fill(~allowed, -torch.inf)
        kept.append(scores.softmax(-1) if scores.requires_grad else scores.softmax(-1).requires_grad_())
        return kept[-1] @ value

    model.attend = attend
    try:
        output, first = model(x)[:, target].sum(), list(kept)  # a checkpoint runs it again
        gradients = torch.autograd.grad(output, first)
    finally:
        del model.attend
    return [one.detach() for one in first], gradients


def by_hand(model, x, target):
    relevance = torch.eye(x.shape[1], dtype=x.dtype).repeat(len(x), 1, 1)
    for weights, gradient in zip(*written_out(model, x, target), strict=True):
        relevance = relevance + (weights * gradient).clamp(min=0).mean(1) @ relevance
    return relevance[:, 0]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rows_at_once", [None, 2])
def test_relevance_equals_attention_written_out(kind, rows_at_once, monkeypatch):
    if rows_at_once:
        monkeypatch.setattr("adapters.recording.attention_matrices.AT_ONCE", rows_at_once * 2 * HEADS * 5)
    model, x = kind().eval(), torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if kind is InFloat32 else {"rtol": 1e-9, "atol": 1e-12}
    for target in (0, 2):
        found = RelevancePropagation(model).attribute(x, target)
        torch.testing.assert_close(found, by_hand(model, x, target), **tolerance)
        weights, gradients = (one[-1] for one in written_out(model, x, target))
        last = PartialLRP(model).attribute(x, target)
        torch.testing.assert_close(last, (weights * gradients).clamp(min=0).mean(1)[:, 0], **tolerance)
    means = [weights.mean(1) for weights in written_out(model, x, 0)[0]]
    product = torch.eye(5, dtype=x.dtype)
    for one in means:
        product = (one + torch.eye(5, dtype=x.dtype)) / 2 @ product
    torch.testing.assert_close(AttentionRollout(model).attribute(x), product[:, 0], **tolerance)
    torch.testing.assert_close(AttentionMap(model).attribute(x), means[-1][:, 0], **tolerance)
    assert all(p.grad is None and p.requires_grad == (kind is not Frozen) for p in model.parameters())


class Mixes(Layers):
    """The weights are mixed from two softmaxes, of which the first is the attention's, and its result is gone then."""

    def attend(self, query, key, value):
        first = (WIDTH**-0.5 * query @ key.mT).softmax(-1)
        if self.kept is not None:
            self.kept.append(first if first.requires_grad else first.requires_grad_())
        mixed = 0.7 * first + 0.3 * (query.flip(-1) @ key.mT).softmax(-1)
        del first
        return mixed @ value


def test_relevance_of_mixed_weights_is_that_of_the_softmax_and_its_own_gradient():
    model, x = Mixes().eval(), torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    model.kept = kept = []
    gradients = torch.autograd.grad(model(x)[:, 1].sum(), kept)
    relevance = torch.eye(5, dtype=x.dtype)
    for weights, gradient in zip(kept, gradients, strict=True):
        relevance = relevance + (weights * gradient).clamp(min=0).mean(1) @ relevance
    expected = relevance[:, 0].detach()
    model.kept = None
    torch.testing.assert_close(RelevancePropagation(model).attribute(x, 1), expected, rtol=1e-9, atol=1e-12)


class WritesTokens(Layers):
    """Attention is added in place to tokens that are a view, as those of patches are."""

    in_place = True

    def forward(self, x):
        x = (2 * x.mT).mT
        for number in range(2):
            attended = self.step(number, x.clone()).tanh()
            if self.in_place:
                x += attended
            else:
                x = x + attended
        return self.head(x[:, 0])


def test_tokens_that_are_written_in_place_are_explained_or_refused_with_advice_that_works():
    model, x = WritesTokens(), torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    found = [method(model).attribute(x) for method in (AttentionMap, AttentionRollout)]
    for method in (RelevancePropagation, PartialLRP):
        with pytest.raises(
            ValueError, match=r"changes tokens in place.*`x = x \+ attention\(x\)`.*or AttentionRollout"
        ):
            method(model).attribute(x, 1)
    model.in_place = False  # what the message says
    torch.testing.assert_close(RelevancePropagation(model).attribute(x, 1), by_hand(model, x, 1), rtol=1e-9, atol=1e-12)
    for mine, method in zip(found, (AttentionMap, AttentionRollout), strict=True):
        torch.testing.assert_close(mine, method(model).attribute(x), rtol=1e-9, atol=1e-12)


class ReusesKeys(Layers):
    """Keys lie in memory that the next layer writes over, as in a cache that is used again."""

    def __init__(self):
        super().__init__()
        self.memory = torch.zeros(2, HEADS, 5, WIDTH, dtype=torch.float64)

    def attend(self, query, key, value):
        return F.scaled_dot_product_attention(query, self.memory.copy_(key), value)


def test_keys_that_are_written_over_are_refused_not_read_wrongly(monkeypatch):
    model, x = ReusesKeys(), torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"changed in place later.*Take CDAM"):
        RelevancePropagation(model).attribute(x, 1)
    monkeypatch.setattr("adapters.recording.attention_matrices.LayerMatrix.smaller", lambda matrix: matrix)
    with pytest.raises(ValueError, match=r"changed in place later.*Take CDAM"):
        AttentionRollout(model).attribute(x)


def test_rollout_reads_such_keys_before_they_are_written_over():
    model, x = ReusesKeys(), torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(AttentionRollout(model).attribute(x), AttentionRollout(Layers()).attribute(x))


class Drops(Layers):
    def attend(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=0.5 if self.drops else 0.0)


@pytest.mark.parametrize("method", [RelevancePropagation, AttentionRollout, PartialLRP, AttentionMap])
def test_weights_that_are_dropped_at_random_are_refused(method):
    model, x = Drops().eval(), torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    model.drops = True
    with pytest.raises(ValueError, match=r"drops weights at random in evaluation mode \(dropout_p=0.5\)"):
        method(model).attribute(x, 1)
    model.drops = model.training  # what the message says
    torch.testing.assert_close(method(model).attribute(x, 1), method(Layers()).attribute(x, 1))


@pytest.mark.parametrize("name", ["ViT", "Bert"])
def test_transformers_eager_attention_in_float64_is_explained(name):
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    own = {"image_size": 16, "patch_size": 8} if name == "ViT" else {"vocab_size": 30}
    config = getattr(transformers, f"{name}Config")(**sizes, **own)
    kind = {"ViT": "ViTForImageClassification", "Bert": "BertForSequenceClassification"}[name]
    model = getattr(transformers, kind)(config).double().eval()
    inputs = torch.randn(2, 3, 16, 16).double() if name == "ViT" else torch.randint(1, 30, (2, 6))
    maps = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        maps.append([method(model).attribute(inputs, 1) for method in (RelevancePropagation, PartialLRP, AttentionMap)])
    for fused, eager in zip(*maps, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-8, check_dtype=False)


@pytest.mark.slow
def test_memory_is_at_most_that_of_input_times_gradient():
    from measuring import peak_memory

    model = tiny_vit(img_size=96, patch_size=4, depth=3)  # 577 tokens
    images = torch.randn(1, 3, 96, 96)
    other = peak_memory(lambda: InputXGradient(model).attribute(images.clone().requires_grad_(), 1), "cpu", times=2)
    mine = peak_memory(lambda: RelevancePropagation(model).attribute(images, 1), "cpu", times=2)
    whole = 4 * 577**2 * model.blocks[0].attn.num_heads  # bytes of the weights of one layer
    assert mine < 1.02 * other + 8 * 2**22  # and the rows that are read at once
    assert mine < 1.5 * other + whole


def test_the_formula_of_relevance():
    weights, gradient = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([2.0, -1.0, 0.5])
    torch.testing.assert_close(positive_relevance(weights, gradient), torch.tensor([0.4, 0.0, 0.15]))
