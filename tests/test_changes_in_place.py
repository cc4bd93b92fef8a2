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

    def keys(self, tokens: Tensor) -> Tensor:
        return self.key(tokens)

    def attend(self, tokens: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(tokens), self.keys(tokens), self.value(tokens))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attend(self.norm(x))).mean(1)


class KeysInParts(Model):
    """Keys are written, part by part, into memory that holds anything, as in latent attention."""

    def keys(self, tokens: Tensor) -> Tensor:
        made = self.key(tokens)
        key = made.new_empty(made.shape)
        key[..., :3].copy_(made[..., :3])
        key[..., 3:].copy_(made[..., 3:].tanh())
        return key


class BaseIsWritten(Model):
    """A view is made first, then what it is a view of is written."""

    def keys(self, tokens: Tensor) -> Tensor:
        made = self.key(tokens)
        memory = torch.zeros_like(made)
        key = memory[..., :]
        memory.copy_(made.sin())
        return key


class TokensFirst(Model):
    """The attention reads a transposed view of what the residual is then added to, in place."""

    def forward(self, x: Tensor) -> Tensor:
        stream = self.norm(self.embed(x).transpose(0, 1))
        stream += self.attend(stream.transpose(0, 1)).transpose(0, 1)
        return self.head(stream).mean(0)


def expected(model: Model, x: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens times gradient where only the attention reads the tokens, the weights, and theirs times their gradient.

    The weights are means over the rows, as the output is a mean over them.
    """
    held: list[Tensor] = []

    def attend(tokens: Tensor) -> Tensor:
        held.append(tokens.detach().clone().requires_grad_())
        products = model.query(held[0]) @ model.keys(held[0]).mT / 8**0.5
        held.append(products.softmax(-1))
        return held[1] @ model.value(held[0])

    model.attend = attend
    try:
        output = model(x)
    finally:
        del model.attend
    of_tokens, of_weights = torch.autograd.grad(output[:, target].sum(), held)
    relevant = (held[1] * of_weights).clamp(min=0).mean(1)
    return (held[0] * of_tokens).sum(-1).detach(), held[1].mean(1).detach(), relevant.detach()


@pytest.mark.parametrize("kind", [Model, KeysInParts, BaseIsWritten, TokensFirst])
def test_what_is_changed_in_place_counts_where_it_is_read_by_another_name(kind):
    model, x = kind().double().eval(), torch.randn(3, 5, 6, dtype=torch.double)
    scores, weights, relevant = expected(model, x, 2)
    for _ in range(3):  # memory that is not written may hold the right values by chance
        torch.testing.assert_close(CDAM(model).attribute(x, target=2), scores, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(AttentionMap(model).attribute(x), weights, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(PartialLRP(model).attribute(x, target=2), relevant, rtol=1e-9, atol=1e-12)


class Values(Model):
    """Values are written in parts."""

    def attend(self, tokens: Tensor) -> Tensor:
        made = self.value(tokens)
        value = made.new_empty(made.shape)
        value[..., :3].copy_(made[..., :3])
        value[..., 3:].copy_(made[..., :5] ** 2)
        return F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), value)


def test_values_that_are_written_count():
    model, x = Values().double().eval(), torch.randn(3, 5, 6, dtype=torch.double)
    held: list[Tensor] = []

    def exchange(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        held.append(output.detach().requires_grad_())
        return held[0]

    with model.norm.register_forward_hook(exchange):
        (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), held)
    scores = (held[0] * gradient).sum(-1).detach()
    for _ in range(3):
        torch.testing.assert_close(CDAM(model).attribute(x, 1), scores, rtol=1e-9, atol=1e-12)
