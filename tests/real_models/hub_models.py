"""What DINO's and DINOv2's hub classes have and do, written anew."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .cases import AUTOGRAD, CLASSES, PATCH, WIDTH, Case, Entry, class_token_of, images, input_of, randomised


class HubAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        batch, count, dim = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        weights = self.attn_drop((query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1))
        x = (weights @ value).transpose(1, 2).reshape(batch, count, dim)
        return self.proj_drop(self.proj(x)), weights


class HubMlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * 2)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim * 2, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class HubLayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x):
        return x * self.gamma


class DinoBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = HubAttention(dim, heads)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = HubMlp(dim)

    def forward(self, x, return_attention=False):
        y, weights = self.attn(self.norm1(x))
        if return_attention:
            return weights
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Dinov2Attention(HubAttention):
    def forward(self, x):
        return super().forward(x)[0]


class Dinov2Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Dinov2Attention(dim, heads)
        self.ls1 = HubLayerScale(dim)
        self.drop_path1 = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = HubMlp(dim)
        self.ls2 = HubLayerScale(dim)
        self.drop_path2 = nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class HubPatchEmbed(nn.Module):
    def __init__(self, dim, patch_size):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """What DINO's hub class has and does."""

    def __init__(self, dim=WIDTH, depth=2, heads=4, side=4, block=DinoBlock, patch_size=PATCH):
        super().__init__()
        self.num_features = self.embed_dim = dim
        self.patch_embed = HubPatchEmbed(dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, dim))
        self.pos_drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList([block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Identity()
        self.side = side

    def positions(self, height, width):
        patches = self.pos_embed[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, (height // PATCH, width // PATCH), mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)), dim=1)

    def prepare_tokens(self, x):
        positions = self.positions(*x.shape[-2:])
        tokens = self.patch_embed(x)
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), dim=1)
        return self.pos_drop(tokens + positions)

    def forward(self, x):
        x = self.prepare_tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class DinoVisionTransformer(VisionTransformer):
    """What DINOv2's hub class has and does."""

    def __init__(self, registers=4, **options):
        super().__init__(block=Dinov2Block, **options)
        self.patch_size = PATCH
        self.num_register_tokens = registers
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, self.embed_dim)) if registers else None

    def prepare_tokens(self, x):
        tokens = super().prepare_tokens(x)
        if self.register_tokens is None:
            return tokens
        return torch.cat((tokens[:, :1], self.register_tokens.expand(len(x), -1, -1), tokens[:, 1:]), dim=1)

    def forward_features(self, x):
        x = self.prepare_tokens(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, self.num_register_tokens + 1 :]}

    def forward(self, x, is_training=False):
        features = self.forward_features(x)
        return features if is_training else self.head(features["x_norm_clstoken"])


class LinearClassifierWrapper(nn.Module):
    """DINOv2's hub classifier: class token and mean patch."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.linear_head = nn.Linear(2 * backbone.embed_dim, CLASSES)

    def forward(self, x):
        features = self.backbone.forward_features(x)
        patches = features["x_norm_patchtokens"].mean(dim=1)
        return self.linear_head(torch.cat((features["x_norm_clstoken"], patches), dim=1))


def hub_case(model, find_backbone, prefix=1, size=(32, 32)):
    model = randomised(model)
    backbone = find_backbone(model)
    inputs = images(*size)
    latents = partial(class_token_of, backbone.norm, partial(model, inputs))
    if isinstance(model, LinearClassifierWrapper):
        latents = partial(input_of, model.linear_head, partial(model, inputs))
    return Case(model, inputs, backbone.blocks[-1].norm1, prefix, (size[0] // PATCH, size[1] // PATCH), latents)


def with_linear(backbone):
    return nn.Sequential(backbone, nn.Linear(WIDTH, CLASSES))


HUB_CASES = {
    "dino": Entry(lambda: hub_case(VisionTransformer(), lambda model: model)),
    "dino-linear": Entry(lambda: hub_case(with_linear(VisionTransformer()), lambda model: model[0])),
    "dino-linear-nonsquare": Entry(
        lambda: hub_case(with_linear(VisionTransformer()), lambda model: model[0], size=(48, 32))
    ),
    "dinov2": Entry(lambda: hub_case(DinoVisionTransformer(registers=0), lambda model: model)),
    "dinov2-registers": Entry(lambda: hub_case(DinoVisionTransformer(), lambda model: model, prefix=5), quick=True),
    "dinov2-registers-linear": Entry(
        lambda: hub_case(with_linear(DinoVisionTransformer()), lambda model: model[0], prefix=5, size=(32, 48))
    ),
    "dinov2-registers-wrapper": Entry(
        lambda: hub_case(LinearClassifierWrapper(DinoVisionTransformer()), lambda model: model.backbone, prefix=5),
        way=AUTOGRAD,
    ),
}
