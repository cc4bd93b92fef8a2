"""Attentions and blocks that look like known ones but compute something else."""

import real_models
import torch
from real_models import WIDTH, build, small, timm_case, vit
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F


def gated(base, name, forward):
    """A class whose function adds something else, times gamma."""

    def init(self, *args, **options):
        base.__init__(self, *args, **options)
        self.gamma = nn.Parameter(torch.ones(()))

    return type("Gated", (base,), {"__init__": init, name: lambda self, x, **_: forward(self, x)})


def patches(self, x):
    x = VisionTransformer.forward_features(self, x)
    return torch.cat([x[:, :1] + self.gamma * (x.sum(1, keepdim=True) - x[:, :1]), x[:, 1:]], 1)


def skip(self, x):
    middle = self.blocks[0](self._pos_embed(self.patch_embed(x)))
    return self.norm(self.blocks[1](middle)) + self.gamma * middle.mean(1, keepdim=True)


def convolution(self, x):
    return Block.forward(self, x) + self.gamma * F.conv1d(x.mT, x.new_ones(WIDTH, 1, 3), padding=1, groups=WIDTH).mT


def parallel_mlp(self, x):
    tokens = self.norm1(x)
    return x + self.attn(tokens) + self.gamma * self.mlp(tokens)


def rolled(self, x):
    return Attention.forward(self, x) + self.gamma * x.roll(1, 1).tanh()


class Cosine(real_models.HubAttention):
    """Has the parts of DINO's attention, but computes something else."""

    def forward(self, x):
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2)), weights


class Detached(real_models.HubAttention):
    """Returns what DINO's attention does, with other gradients."""

    def forward(self, x):
        output, weights = super().forward(x)
        return output.detach() + 2 * (output - output.detach()), weights


def hub_case(attention):
    model = real_models.with_linear(real_models.VisionTransformer())
    model[0].blocks[-1].attn = attention(WIDTH, 4)
    return real_models.hub_case(model, lambda model: model[0])


def unread_scale():
    case = build("timm")
    case.model.blocks[-1].attn.scale = 1.0  # fused attention does not look at it
    return case


def model_case(name, forward):
    return timm_case(gated(VisionTransformer, name, forward)(**small()), 1)


def block_case(forward):
    return timm_case(vit(block_fn=gated(Block, "forward", forward)), 1)
