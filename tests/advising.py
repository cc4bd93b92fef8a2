"""What the tests of advice share: a case, plain autograd to compare with, and models that raise the messages."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toy_models import tiny_vit

from captum_ext import CDAM

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
VIT = tiny_vit()
GRID = {"whole": False}  # of a ViT


class Case(NamedTuple):
    """A call that is refused, the words of its advice, and calls that follow it, with what they must return."""

    refused: Callable[[], Any]
    words: str
    advised: Callable[[], Any]
    expected: Callable[[], Any]
    error: type[Exception] = ValueError


def check(case):
    with pytest.raises(case.error, match=case.words):
        case.refused()
    found, expected = case.advised(), case.expected()
    for one, right in zip(*([x] if not isinstance(x, list) else x for x in (found, expected)), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(one), torch.as_tensor(right), rtol=1e-4, atol=1e-6, check_dtype=False
        )


def at(layer, forward, *inputs, run=0, axis=-1, whole=True):
    """Output times gradient of a layer, by plain autograd: of its run with this number, summed over the channels."""
    seen = []

    def keep(_, __, output):
        seen.append(output if output.requires_grad else output.requires_grad_())

    with layer.register_forward_hook(keep):
        score = forward(*inputs).sum()
    (gradient,) = torch.autograd.grad(score, seen[run])
    found = (seen[run] * gradient).sum(axis).detach()
    return found if whole else found[:, 1:].unflatten(1, (4, 4))[:, None]


class Transformer(nn.Module):
    """Patches of images, one block with a norm in front of its attention; parts can be overridden."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)
        self.projections = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.eval()

    def patches(self, x):
        return self.embed(x).flatten(2).mT

    def parts(self, number, tokens):
        return self.projections[number](tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)

    def mixed(self, tokens):
        normed = self.norm(tokens)
        return tokens + self.attention(normed, normed, normed)[0]

    def forward(self, x):
        return self.head(self.mixed(self.patches(x)).mean(1))


class Shared(Transformer):
    """The block runs twice."""

    def mixed(self, tokens):
        return super().mixed(super().mixed(tokens))


class Joined(Transformer):
    """All samples are one sequence, behind a token that is learned."""

    def forward(self, x):
        tokens = self.norm(self.patches(x))
        every = torch.cat([self.head.weight[:1, None], tokens.reshape(1, -1, 16)], 1)
        mixed = every + self.attention(every, every, every)[0]
        return self.head(mixed[0, 1:].view(len(x), -1, 16).mean(1))


class Flattened(Transformer):
    """Tokens of all samples on one axis, as some attentions read them; the residual path reads them too."""

    def forward(self, x):
        tokens = self.norm(self.patches(x))
        count, flat = len(tokens), tokens.reshape(-1, 16)
        query, key, value = self.projections[0](flat).view(count, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, 16)
        return self.head((flat + mixed).view(count, -1, 16).mean(1))


class Merging(Transformer):
    """Neighbours are averaged between two attentions."""

    def forward(self, x):
        tokens = self.patches(x)
        tokens = (tokens + self.attended(0, tokens)).unflatten(1, (8, 2)).mean(2)
        return self.head((tokens + self.attended(1, self.norm(tokens))).mean(1))

    def attended(self, number, tokens):
        return F.scaled_dot_product_attention(*self.parts(number, tokens)).transpose(1, 2).flatten(2)

    def last_weights(self, x):
        seen = []
        with self.norm.register_forward_hook(lambda *args: seen.append(args[2])):
            self(x)
        query, key, _ = self.parts(1, seen[0])
        return (query @ key.mT / 8**0.5).softmax(-1).mean((1, 2)).detach()


class PooledKeys(Transformer):
    """Keys and values are means of neighbours."""

    def mixed(self, tokens):
        query, key, value = self.parts(0, self.norm(tokens))
        key, value = (one.unflatten(2, (8, 2)).mean(3) for one in (key, value))
        return tokens.detach() + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Returning(nn.Module):
    """What a function makes of a model's logits."""

    def __init__(self, model, make):
        super().__init__()
        self.model, self.make = model, make
        self.eval()

    def forward(self, *inputs):
        return self.make(self.model(*inputs))


def small_resnet():
    torch.manual_seed(0)
    kind = torchvision.models.resnet
    model = kind.ResNet(kind.BasicBlock, [1, 1, 1, 1], num_classes=4).eval()
    model.image_size = (64, 64)  # or it is run on larger ones when it is wrapped
    return model


def said(refused):
    """A message."""
    with pytest.raises((TypeError, ValueError)) as error:
        refused()
    return str(error.value)


def named_layer(refused, model):
    """The layer that a message names."""
    return model.get_submodule(re.search(r'model\.get_submodule\("(.*)"\)', said(refused)).group(1))


def explained(model, *target, method=CDAM, images=IMAGES, **options):
    return method(model, **options).attribute(images, *(target or (1,)))


def logit(model, *index):
    return lambda *inputs: model(*inputs)[:, *(index or (1,))]


def norm_of(model):
    return model.blocks[-1].norm1


def of_vit(index=1, model=VIT):
    return at(norm_of(model), logit(model, index), IMAGES, **GRID)
