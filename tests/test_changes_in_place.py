"""Models that change tensors in place, by other names than those that are read, against plain autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_ext import CDAM, AttentionMap, PartialLRP


class Model(nn.Module):
    """A block whose tokens, the output of `norm`, are read by an attention alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value, self.head = (nn.Linear(8, 8) for _ in range(4))

    def attend(self, tokens: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attend(self.norm(x))).mean(1)


class KeysInParts(Model):
    """Keys are written, part by part, into memory that holds anything, as in latent attention."""

    def attend(self, tokens: Tensor) -> Tensor:
        made = self.key(tokens)
        key = made.new_empty(made.shape)
        key[..., :3].copy_(made[..., :3])
        key[..., 3:].copy_(made[..., 3:].tanh())
        return F.scaled_dot_product_attention(self.query(tokens), key, self.value(tokens))


class BaseIsWritten(Model):
    """A view is made first, then what it is a view of is written."""

    def attend(self, tokens: Tensor) -> Tensor:
        made = self.key(tokens)
        memory = torch.zeros_like(made)
        key = memory[..., :]
        memory.copy_(made.sin())
        return F.scaled_dot_product_attention(self.query(tokens), key, self.value(tokens))


class TokensFirst(Model):
    """The attention reads a transposed view of what the residual is then added to, in place."""

    def forward(self, x: Tensor) -> Tensor:
        stream = self.norm(self.embed(x).transpose(0, 1))
        stream += self.attend(stream.transpose(0, 1)).transpose(0, 1)
        return self.head(stream).mean(0)


def expected(model: Model, x: Tensor, target: int) -> Tensor:
    """Tokens times gradient, where only the attention reads the tokens."""
    held: list[Tensor] = []

    def attend(tokens: Tensor) -> Tensor:
        held.append(tokens.detach().clone().requires_grad_())
        return type(model).attend(model, held[0])

    model.attend = attend
    try:
        output = model(x)
    finally:
        del model.attend
    (gradient,) = torch.autograd.grad(output[:, target].sum(), held)
    return (held[0] * gradient).sum(-1).detach()


@pytest.mark.parametrize("kind", [Model, KeysInParts, BaseIsWritten, TokensFirst])
def test_what_is_changed_in_place_counts_where_it_is_read_by_another_name(kind):
    model, x = kind().double().eval(), torch.randn(3, 5, 6, dtype=torch.double)
    for _ in range(3):  # memory that is not written may hold the right values by chance
        actual = CDAM(model).attribute(x, target=2)
        torch.testing.assert_close(actual, expected(model, x, 2), rtol=1e-9, atol=1e-12)
    weights = AttentionMap(model).attribute(x)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.double))
    assert bool((PartialLRP(model).attribute(x, target=2).sum(1) > 0).all())


def test_values_that_are_written_count():
    class Values(Model):
        def attend(self, tokens: Tensor) -> Tensor:
            made = self.value(tokens)
            value = made.new_empty(made.shape)
            value[..., :3].copy_(made[..., :3])
            value[..., 3:].copy_(made[..., :5] ** 2)
            return F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), value)

    model, x = Values().double().eval(), torch.randn(3, 5, 6, dtype=torch.double)
    for _ in range(3):
        torch.testing.assert_close(CDAM(model).attribute(x, 1), expected(model, x, 1), rtol=1e-9, atol=1e-12)
