"""What weights tokens behind the last known attention, in a way that is not known as an attention: it is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_ext import CDAM, AttentionMap, PartialMapWarning, TokenAblation

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
TARGETS = [1, 2]


class Known(nn.Module):
    """Softmax attention."""

    def __init__(self, channels=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))

    def logits(self, x):
        return self.q(x) @ self.k(x).mT / 4

    def weights(self, x):
        return self.logits(x).softmax(-1)

    def forward(self, x):
        return self.weights(x) @ self.v(x)


class Largest(Known):
    def weights(self, x):
        top = super().weights(x).topk(4, -1)
        kept = torch.zeros_like(self.logits(x)).scatter(-1, top.indices, top.values)
        return kept / kept.sum(-1, keepdim=True)


class AboveMean(Known):
    def weights(self, x):
        found = super().weights(x)
        kept = torch.where(found > found.mean(-1, keepdim=True), found, 0.0)
        return kept / kept.sum(-1, keepdim=True)


class Straight(Known):
    def weights(self, x):
        found = super().weights(x)
        return torch.zeros_like(found).scatter(-1, found.argmax(-1, keepdim=True), 1.0) + found - found.detach()


class ByHand(Known):
    def weights(self, x):
        found = self.logits(x).exp()
        return found / found.sum(-1, keepdim=True)


class OfLogs(Known):
    def weights(self, x):
        return self.logits(x).log_softmax(-1).exp()


class Sigmoids(Known):
    def weights(self, x):
        return torch.sigmoid(self.logits(x) - 2)


class Linearised(Known):
    def forward(self, x):
        return F.elu(self.q(x)) @ (F.elu(self.k(x)).mT @ self.v(x))


class EachWithEach(Known):
    def forward(self, x):
        return (self.weights(x)[..., None] * self.v(x)[:, None]).sum(2)


class ByEinsum(Known):
    def forward(self, x):
        weights = torch.sigmoid(torch.einsum("bic,bjc->bij", self.q(x), self.k(x)))
        return torch.einsum("bij,bjc->bic", weights, self.v(x))


class OfThemselves(Known):
    """Without queries and keys."""

    def forward(self, x):
        return torch.sigmoid(x @ x.mT / 16) @ x


class ManyHeads(Known):
    """As many heads as tokens, where these are 16."""

    def forward(self, x):
        q, k, v = (one(x).mT[..., None] for one in (self.q, self.k, self.v))
        return (torch.sigmoid(q @ k.mT) @ v)[..., 0].mT


class Gated(Known):
    """Excited by the mean of all tokens."""

    def forward(self, x):
        return self.v(x) * torch.sigmoid(self.k(x.mean(1, keepdim=True)))


class WithinEach(Known):
    """The parts of each token among themselves, as in hyper-connections."""

    def forward(self, x):
        parts = x.unflatten(-1, (4, 4))
        return (torch.sigmoid(parts @ parts.mT) @ self.v(x).unflatten(-1, (4, 4))).flatten(2)


class OuterWithinEach(Known):
    def forward(self, x):
        parts = x.unflatten(-1, (4, 4))
        weights = torch.sigmoid(parts[..., :1] * parts[..., :1].mT)  # each element with each
        return (weights[..., None] * self.v(x).unflatten(-1, (4, 4))[:, :, None]).sum(3).flatten(2)


class Summary(Known):
    """Adds what one number for each token finds to all of them."""

    def forward(self, x):
        return self.v(torch.sigmoid(self.k(x)[..., :1]).mT @ x).expand_as(x)


class Mixed(Known):
    """Tokens mixed by weights that are learned, not made of tokens."""

    def forward(self, x):
        return F.linear(x.mT, self.q.weight.new_ones(17, 17) / 17).mT + self.v(x)


class Two(nn.Module):
    """A softmax attention, and one more part; the class token pools, or one number for each token."""

    def __init__(self, last, pooled=False, bare=False):
        super().__init__()
        self.bare = bare
        self.patches, self.norms = nn.Conv2d(3, 16, 8, 8), nn.ModuleList([nn.LayerNorm(16) for _ in range(2)])
        self.token, self.parts = nn.Parameter(torch.randn(1, 1, 16)), nn.ModuleList([Known(), last])
        self.pool, self.pooled = (nn.Linear(16, 1) if pooled else None), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        x = self.patches(images).flatten(2).mT
        x = x if self.bare else torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for norm, part in zip(self.norms, self.parts, strict=True):
            x = x + part(norm(x))
        return self.head(x[:, 0] if self.pool is None else (torch.sigmoid(self.pool(x)).mT @ self.pooled(x))[:, 0])


def made(last, **options):
    torch.manual_seed(0)
    return Two(last(), **options).double().eval()


def derived(model, at):
    """Gradient times what a norm returned, of the patches."""
    held = []
    handle = model.norms[at].register_forward_hook(lambda *given: held.append(given[-1].requires_grad_()) or held[-1])
    output = model(IMAGES)
    handle.remove()
    (gradient,) = torch.autograd.grad(output[range(2), TARGETS].sum(), held[0])
    return (gradient * held[0]).sum(-1)[:, 1:].reshape(2, 1, 4, 4).detach()


UNKNOWN = [Largest, AboveMean, Straight, ByHand, OfLogs, Sigmoids, Linearised, EachWithEach, ByEinsum, OfThemselves]


@pytest.mark.parametrize("last", UNKNOWN)
def test_a_map_of_the_attention_before_it_says_so_and_the_advice_works(last):
    model = made(last)
    with pytest.warns(PartialMapWarning, match="Behind the last attention that is known") as said:
        found = CDAM(model).attribute(IMAGES, TARGETS)
    assert said[0].filename == __file__
    torch.testing.assert_close(found, derived(model, 0), rtol=1e-9, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meant = CDAM(model, attention=-1).attribute(IMAGES, TARGETS)
        there = CDAM(model, layer="norms.1").attribute(IMAGES, TARGETS, return_tokens=True)
    assert torch.equal(meant, found)
    torch.testing.assert_close(there[:, 1:].view_as(found), derived(model, 1), rtol=1e-9, atol=1e-12)


def test_heads_are_no_tokens_where_there_are_as_many():
    with pytest.warns(PartialMapWarning, match="Behind the last attention"):
        CDAM(made(ManyHeads, bare=True)).attribute(IMAGES, TARGETS)


@pytest.mark.parametrize("method", [AttentionMap, TokenAblation])
def test_other_methods_say_so_too(method):
    with pytest.warns(PartialMapWarning, match="`CDAM\\(model, attention=-1\\)` says"):
        method(made(Largest)).attribute(IMAGES, TARGETS)


@pytest.mark.parametrize(
    ("last", "options"),
    [
        *((last, {}) for last in (Known, Gated, WithinEach, OuterWithinEach, Mixed)),
        *((last, {"pooled": True}) for last in (Known, Summary)),
    ],
)
def test_gates_pooling_and_products_within_a_token_are_no_attention(last, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CDAM(made(last, **options)).attribute(IMAGES, TARGETS)


def test_where_the_last_attention_is_known_earlier_ones_do_not_matter():
    model = made(Known)
    model.parts[0] = Largest().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = CDAM(model).attribute(IMAGES, TARGETS)
    torch.testing.assert_close(found, derived(model, 1), rtol=1e-9, atol=1e-12)
