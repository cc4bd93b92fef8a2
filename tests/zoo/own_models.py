"""Small re-implementations of models that other libraries and hubs have."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cases import CLASSES, LENGTH, VOCABULARY, Case, Entry, built, case, noise
from .torchvision_models import image_case

# small re-implementations of models that other libraries and hubs have

WIDTH, HEADS, PATCH, SIZE = 32, 4, 8, 32
PATCHES = (SIZE // PATCH) ** 2


def own_entries() -> Iterator[Entry]:
    choices: dict[str, Callable[[], Case]] = {
        "DINO": partial(image_case, lambda: Classifier(Dino())),
        "DINOv2 with registers": partial(image_case, lambda: Classifier(Dino(registers=4, scale=True), mean=True)),
        "DINOv3": partial(image_case, lambda: Classifier(Dino(registers=4, scale=True, rotary=True))),
        "open_clip image tower": partial(image_case, lambda: ImageTower(CLASSES)),
        "CLIP, both towers": _clip_case,
        "MONAI ViT": partial(image_case, MonaiViT),
        "attention pooling, projections": partial(image_case, lambda: Pooled(PoolByProjections())),
        "attention pooling, nn.MultiheadAttention": partial(image_case, lambda: Pooled(PoolByModule())),
        "class attention": partial(image_case, lambda: Pooled(ClassAttention())),
        "keys with positions": partial(image_case, lambda: Pooled(PositionedKeys())),
        "latent attention": partial(image_case, lambda: Pooled(LatentAttention())),
    }
    for name, make in choices.items():
        yield Entry("re-implementations", name, make)


def heads(tensor: Tensor) -> Tensor:
    """(batch, tokens, channels) as (batch, heads, tokens, channels of a head)."""
    return tensor.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(heads(query), heads(key), heads(value))
    return mixed.transpose(1, 2).flatten(2)


class Patches(nn.Module):
    """Patch tokens, (batch, patches, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoAttention(nn.Module):
    def __init__(self, rotary: bool = False):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.rotary = rotary

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        if self.rotary:
            query, key = rotated(query), rotated(key)
        weights = (heads(query) @ heads(key).transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return self.proj((weights @ heads(value)).transpose(1, 2).flatten(2))


def rotated(tokens: Tensor) -> Tensor:
    """Rotates the patches' pairs of channels by their place; the tokens in front of the patches stay."""
    prefix, patches = tokens[:, :-PATCHES], tokens[:, -PATCHES:]
    angles = torch.arange(PATCHES, dtype=tokens.dtype)[:, None] / 10 ** torch.arange(WIDTH // 2, dtype=tokens.dtype)
    first, second = patches.chunk(2, -1)
    turned = (first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos())
    return torch.cat([prefix, torch.cat(turned, -1)], 1)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class DinoBlock(nn.Module):
    def __init__(self, scale: bool = False, rotary: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = DinoAttention(rotary)
        self.ls1 = Scale() if scale else nn.Identity()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = mlp()
        self.ls2 = Scale() if scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Dino(nn.Module):
    """A Vision Transformer as torch.hub's DINO models are: its output are all tokens behind the last norm."""

    def __init__(self, registers: int = 0, scale: bool = False, rotary: bool = False):
        super().__init__()
        self.patch_embed = Patches()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, WIDTH)) if registers else None
        self.pos_embed = None if rotary else nn.Parameter(torch.zeros(1, PATCHES + 1, WIDTH))
        self.blocks = nn.ModuleList(DinoBlock(scale, rotary) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(len(patches), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class Classifier(nn.Module):
    """A linear head on the class token, and on the mean of the patches too with `mean`."""

    def __init__(self, backbone: nn.Module, mean: bool = False):
        super().__init__()
        self.backbone = backbone
        self.mean = mean
        self.linear_head = nn.Linear(2 * WIDTH if mean else WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone(images)
        features = tokens[:, 0]
        if self.mean:
            features = torch.cat([features, tokens[:, -PATCHES:].mean(1)], -1)
        return self.linear_head(features)


class ResidualBlock(nn.Module):
    """A block of open_clip: tokens first, with nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class ImageTower(nn.Module):
    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros(PATCHES + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.resblocks = nn.ModuleList(ResidualBlock() for _ in range(2))
        self.ln_post = nn.LayerNorm(WIDTH)
        self.proj = nn.Parameter(torch.zeros(WIDTH, width))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        tokens = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding).transpose(0, 1)
        for block in self.resblocks:
            tokens = block(tokens)
        return self.ln_post(tokens.transpose(0, 1)[:, 0]) @ self.proj


class TextTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.resblocks = nn.ModuleList(ResidualBlock() for _ in range(2))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        tokens = (self.token_embedding(ids) + self.positional_embedding).transpose(0, 1)
        for block in self.resblocks:
            tokens = block(tokens)
        return self.ln_final(tokens[-1]) @ self.text_projection


class Clip(nn.Module):
    """How much each image is like each text: the text tower runs last, but the images do not pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = ImageTower()
        self.text = TextTower()
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        image_features = F.normalize(self.visual(images), dim=-1)
        text_features = F.normalize(self.text(texts), dim=-1)
        return self.logit_scale.exp() * image_features @ text_features.T


def _clip_case() -> Case:
    texts = torch.randint(8, VOCABULARY, (CLASSES, LENGTH), generator=torch.Generator().manual_seed(2))
    return case(built(Clip), noise(2, 3, SIZE, SIZE), 1, (texts,))


class MonaiAttention(nn.Module):
    """MONAI's SABlock without einops."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (torch.einsum("bhxd,bhyd->bhxy", query, key) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return self.out_proj(torch.einsum("bhxy,bhyd->bhxd", weights, value).transpose(1, 2).flatten(2))


class MonaiBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = MonaiAttention()
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class MonaiViT(nn.Module):
    """Returns the logits, and the tokens behind each block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = Patches()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList(MonaiBlock() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.classification_head = nn.Sequential(nn.Linear(WIDTH, CLASSES), nn.Tanh())

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches = self.patch_embedding(images)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)
        hidden = []
        for block in self.blocks:
            tokens = block(tokens)
            hidden.append(tokens)
        return self.classification_head(self.norm(tokens)[:, 0]), hidden


class Pooled(nn.Module):
    """A block on patches, and a last attention that makes one token of them."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.patch_embed = Patches()
        self.pos_embed = nn.Parameter(torch.zeros(1, PATCHES, WIDTH))
        self.block = DinoBlock()
        self.norm = nn.LayerNorm(WIDTH)
        self.pool = pool
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.norm(self.block(self.patch_embed(images) + self.pos_embed))))


class PoolByProjections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.q = nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.kv(tokens).chunk(2, -1)
        return attend(self.q(self.latent).expand(len(tokens), -1, -1), key, value)[:, 0]


class PoolByModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(self.probe.expand(len(tokens), -1, -1), tokens, tokens)[0][:, 0]


class ClassAttention(nn.Module):
    """CaiT's: only the class token asks."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.norm1 = nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        first = self.cls_token.expand(len(tokens), -1, -1)
        normed = self.norm1(torch.cat([first, tokens], 1))
        return (first + attend(self.q(normed[:, :1]), self.k(normed), self.v(normed)))[:, 0]


class PositionedKeys(nn.Module):
    """DETR's: positions are added to what queries and keys read, not to what values read."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, PATCHES, WIDTH))
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm1 = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        query = tokens + self.positions
        return self.norm1(tokens + self.self_attn(query, query, tokens)[0]).mean(1)


class LatentAttention(nn.Module):
    """DeepSeek's: keys and values are made of a narrow latent of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.kv_a_proj = nn.Linear(WIDTH, WIDTH // 2)
        self.kv_a_norm = nn.LayerNorm(WIDTH // 2)
        self.kv_b_proj = nn.Linear(WIDTH // 2, 2 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.kv_b_proj(self.kv_a_norm(self.kv_a_proj(tokens))).chunk(2, -1)
        return (tokens + attend(self.q_proj(tokens), key, value)).mean(1)
