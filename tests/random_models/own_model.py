"""A transformer as people write them."""

import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attentions import PoolingAttention, autocast, grad_mode
from .blocks import Block, EncoderLayer
from .heads import HEADS, Contrast, ModelOutput, NamedOutput, ScaledGradient, StraightThrough
from .question import PATCH, VARIABLE, WORDS

SWITCH = True


class Model(nn.Module):
    """The whole transformer."""

    switched = True

    def __init__(self, o: SimpleNamespace):
        super().__init__()
        self.o = o
        self.embed = self.embedding(o)
        self.add_tokens(o)
        self.add_mask(o)
        self.side: list[Tensor] = []
        block = EncoderLayer if o.block == "encoder layer" else Block
        self.blocks = nn.ModuleList(block(o, o.dim, self.side) for _ in range(o.depth))
        if o.two_names:
            self.encoder = self.blocks
        self.order = self.orders(o)
        self.exit = 1 if o.order == "early exit" else None
        dim = o.dim
        if o.second != "none":
            dim = dim // 2 if o.second == "narrow" else dim
            self.between = nn.Linear(o.dim, dim)
            self.second = block(o, dim, [])
        self.norm = nn.LayerNorm(dim) if o.final_norm else nn.Identity()
        if "attention" in o.pool:
            self.pooling = PoolingAttention(o, dim)
        self.add_head(o, 2 * dim if o.pool == "patches and class" else dim)
        if o.teacher:
            self.teacher = nn.ModuleList(block(o, o.dim, []) for _ in range(2))
        self.add_switch(o)

    def add_tokens(self, o: SimpleNamespace) -> None:
        if o.before:
            self.before = nn.Parameter(torch.randn(1, o.before, o.dim))
        if o.after:
            self.after = nn.Parameter(torch.randn(1, o.after, o.dim))
        if o.position == "added":
            self.position = nn.Parameter(torch.randn(1, o.tokens, o.dim))

    def add_mask(self, o: SimpleNamespace) -> None:
        if o.mask == "additive":
            self.register_buffer("mask_table", torch.randn(1, 1, o.tokens, o.tokens))
        if o.mask in ("boolean", "causal", "empty row"):
            ones = torch.ones(o.tokens, o.tokens, dtype=torch.bool)
            near = (torch.rand(o.tokens, o.tokens) > 0.3) | torch.eye(o.tokens, dtype=torch.bool)
            near[2] = near[2] & (o.mask != "empty row")  # infinite by some ways to attend
            self.register_buffer("mask_table", (ones.tril() if o.mask == "causal" else near)[None, None])

    def add_head(self, o: SimpleNamespace, dim: int) -> None:
        if o.long_skip:
            self.skip = nn.Linear(o.dim, dim)
        if o.together == "batch norm":
            self.batch_norm = nn.BatchNorm1d(dim, track_running_stats=False)
        heads = [Contrast(dim, o.batch) if o.head == "contrast" else HEADS[o.head](dim) for _ in range(2)]
        self.head = heads[0]
        if o.steers == "head":
            self.other_head = heads[1]

    @staticmethod
    def embedding(o: SimpleNamespace) -> nn.Module:
        if o.embed == "words":
            return nn.Embedding(WORDS, o.dim)
        if o.embed == "conv":
            return nn.Conv2d(3, o.dim, PATCH, PATCH)
        if o.embed == "stem":
            return nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(8, o.dim, 2, 2))
        return nn.Linear(3 * PATCH * PATCH, o.dim)

    @staticmethod
    def orders(o: SimpleNamespace) -> list[int]:
        order = list(range(o.depth))
        return {
            "reversed": order[::-1],
            "rotated": order[1:] + order[:1],
            "last twice": [*order, order[-1]],
            "last unused": order[:-1],
        }.get(o.order, order)

    def add_switch(self, o: SimpleNamespace) -> None:
        if o.where == "attribute":
            self.switched = True
        if o.where == "nested setting":
            self.config = SimpleNamespace(model=SimpleNamespace(pooling="token"))
        if o.where == "parameter":
            self.alpha = nn.Parameter(torch.tensor(1.0))
        if o.where == "buffer":
            self.register_buffer("flag", torch.tensor(True))

    def switch(self, x: Tensor) -> bool:
        """Which of two ways to go, by a setting or by the values."""
        return {
            "nested setting": lambda: self.config.model.pooling == "token",
            "module-level name": lambda: SWITCH,
            "parameter": lambda: self.alpha > 0,
            "buffer": lambda: self.flag,
            "environment": lambda: os.environ.get(VARIABLE) == "1",
            "values": lambda: x[..., :3].mean() > 0,
            "none": lambda: True,
        }.get(self.o.where, lambda: self.switched)()

    def other_way(self, what: str, x: Tensor) -> bool:
        return self.o.steers == what and not self.switch(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if self.o.grad == "no_grad all":
            with torch.no_grad():
                return self.answered(x, mask)
        return self.answered(x, mask)

    def answered(self, x: Tensor, mask: Tensor | None) -> Any:
        if self.o.inputs_changed:
            x = x.add_(1).remainder_(WORDS) if self.o.embed == "words" else x.sub_(0.5).div_(0.5)
        with self.backbone_grad_mode():
            features = self.features(x, mask)
        if self.o.detached == "features" or self.other_way("detach", features):
            features = features.detach()
        features = self.changed(features)
        return self.output(features, self.logits(features))

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self.side.clear()
        tokens = self.tokens(x)
        early = tokens.mean(1)
        tokens = self.run_blocks(tokens, self.mask(x, tokens) if mask is None else mask[:, None, None])
        features = self.pooled(self.norm(tokens))
        return features + self.skip(early) if self.o.long_skip else features

    def backbone_grad_mode(self):
        if self.o.grad == "enabled":
            return torch.set_grad_enabled(True)
        return nullcontext()

    def tokens(self, x: Tensor) -> Tensor:
        if self.o.embed == "unfold":
            x = self.embed(F.unfold(x, PATCH, stride=PATCH).mT)
        elif self.o.embed == "reshape":
            x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 2, 4, 1, 3, 5)
            x = self.embed(x.flatten(3).flatten(1, 2))
        else:
            x = self.embed(x)
            x = x if self.o.embed == "words" else x.flatten(2).mT
        if self.o.detached == "embedding":
            x = x.detach()
        before = [self.before.expand(len(x), -1, -1)] if self.o.before else []
        after = [self.after.expand(len(x), -1, -1)] if self.o.after else []
        x = torch.cat([*before, x, *after], 1)
        return x + self.position if self.o.position == "added" else x

    def mask(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        if self.o.mask in ("none", "argument") or self.other_way("mask", tokens):
            return None
        if self.o.mask != "from input":
            return self.mask_table
        keep = x % 4 != 0 if self.o.embed == "words" else F.avg_pool2d(x.mean(1), PATCH).flatten(1) > -0.1
        keep = F.pad(keep, (self.o.before, self.o.after), value=True)
        keep[:, 0] = True
        return keep[:, None, None]

    def run_blocks(self, x: Tensor, mask: Tensor | None) -> Tensor:
        order = self.order[::-1] if self.other_way("order", x) else self.order
        exit_at = 0 if self.other_way("exit", x) else self.exit
        if self.o.tokens_first:
            x = x.transpose(0, 1).contiguous()
        for place, index in enumerate(order):
            x = self.pruned(x) if self.o.pruned and place == len(order) - 1 else x
            early = place < len(order) - 1 and exit_at is None
            with grad_mode(early and self.o.grad == "no_grad early"):
                x = self.run_block(self.blocks[index], x, mask)
            if early and self.o.detached == "early":
                x = x.detach()
            if place == exit_at:
                break
        if self.o.side == "mean of the last two":
            x = torch.stack(self.side[-2:]).mean(0)
        elif self.o.side == "first added":
            x = x + self.side[0]
        return self.run_second(x.transpose(0, 1) if self.o.tokens_first else x)

    def pruned(self, x: Tensor) -> Tensor:
        """The first token and the eleven largest others."""
        axis = 0 if self.o.tokens_first else 1
        rest = x.narrow(axis, 1, x.shape[axis] - 1)
        kept = rest.norm(dim=-1, keepdim=True).topk(11, axis).indices.sort(axis).values
        return torch.cat([x.narrow(axis, 0, 1), rest.gather(axis, kept.expand(*kept.shape[:2], x.shape[2]))], axis)

    def run_block(self, block: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.o.checkpoint:
            return checkpoint(block, x, mask, use_reentrant=False)
        return block(x, mask)

    def run_second(self, x: Tensor) -> Tensor:
        if self.o.second == "none":
            return x
        x = self.between(x[:, self.o.before : self.o.before + self.o.patches] if "only" in self.o.second else x)
        if self.o.tokens_first:
            return self.second(x.transpose(0, 1).contiguous(), None).transpose(0, 1)
        return self.second(x, None)

    def pooled(self, x: Tensor) -> Tensor:
        pool = "mean" if self.other_way("pool", x) else self.o.pool
        if pool == "patches and class":
            return torch.cat([x[:, 0], x[:, self.o.before : self.o.before + self.o.patches].mean(1)], -1)
        if self.o.detached == "class token":
            x = torch.cat([x[:, :1].detach(), x[:, 1:]], 1)
        return {
            "first": lambda: x[:, 0],
            "last": lambda: x[:, -1],
            "mean": lambda: x.mean(1),
            "max": lambda: x.amax(1),
        }.get(pool, lambda: self.pooling(x))()

    def changed(self, features: Tensor) -> Tensor:
        """What is done to the features in front of the head."""
        if self.o.function == "straight through":
            features = StraightThrough.apply(features)
        elif self.o.function == "scaled gradient":
            features = ScaledGradient.apply(features)
        elif self.o.function == "root":
            features = features.relu().sqrt()
        if self.o.hook == "tensor" and features.requires_grad:
            features.register_hook(lambda gradient: gradient * torch.linspace(0, 1, gradient.shape[-1]).to(gradient))
        if self.other_way("batch", features):
            return features
        return {
            "batch norm": lambda: self.batch_norm(features),
            "norm of all": lambda: 5 * features / features.norm(),
            "index 0": lambda: features - 0.3 * features[:1],
            "mean": lambda: features - features.mean(0).tanh(),
        }.get(self.o.together, lambda: features)()

    def logits(self, features: Tensor) -> Tensor:
        head = self.other_head if self.other_way("head", features) else self.head
        with autocast(self.o.autocast == "head"):
            logits = head(features)
        if self.o.together == "similarity":
            return logits + (features @ features.mT).tanh().mean(1).unflatten(0, (-1, *[1] * (logits.dim() - 1)))
        return logits.softmax(0) if self.o.together == "softmax" else logits

    def output(self, features: Tensor, logits: Tensor) -> Any:
        return {
            "tensor": lambda: logits,
            "dictionary": lambda: {"features": features, "logits": logits},
            "named tuple": lambda: NamedOutput(features, logits),
            "ModelOutput": lambda: ModelOutput(logits=logits, features=features),
        }[self.o.output]()
