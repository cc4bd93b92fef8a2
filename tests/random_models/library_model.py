"""One's own head behind a vision transformer of timm or torchvision."""

from types import SimpleNamespace

from torch import Tensor, nn

from .own_model import Model
from .question import PATCH, Reads


class LibraryModel(Model):
    """One's own head, and pooling, behind a vision transformer of timm or torchvision."""

    def __init__(self, o: SimpleNamespace):
        nn.Module.__init__(self)
        self.o, self.order = o, [o.depth - 1]
        self.vit = (timm_backbone if o.backbone == "timm" else torchvision_backbone)(o)
        self.add_head(o, 2 * o.dim if o.pool == "patches and class" else o.dim)
        self.add_switch(o)

    side = None

    @property
    def blocks(self) -> nn.Module:
        return self.vit.blocks if self.o.backbone == "timm" else self.vit.encoder.layers

    def sites(self) -> list[nn.Module]:
        """Modules whose output is what an attention reads, where it has no `Reads`."""
        if self.o.backbone == "torchvision":
            return [block.ln_1 for block in self.blocks]
        pooled = [self.vit.norm] if self.vit.attn_pool is not None else []
        return [*(block.norm1 for block in self.blocks if not hasattr(block, "reads")), *pooled]

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.vit(x) if self.o.pool == "as it is" else self.pooled(self.vit.forward_features(x))


def torchvision_backbone(o: SimpleNamespace) -> nn.Module:
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(PATCH * o.grid[0], PATCH, o.depth, o.heads, o.dim, 2 * o.dim, num_classes=1)
    vit.heads = nn.Identity()
    return vit


def timm_backbone(o: SimpleNamespace) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        [PATCH * side for side in o.grid],
        PATCH,
        num_classes=0,
        embed_dim=o.dim,
        depth=o.depth,
        num_heads=o.heads,
        mlp_ratio=2,
        class_token=o.before > 0,
        reg_tokens=2 if o.before == 3 else 0,
        block_fn=timm_block(o.block_class),
        **o.library,
    )


def timm_block(kind: str) -> type[nn.Module]:
    """timm's block, or one's own subclass of it."""
    from timm.models.vision_transformer import Block as TimmBlock

    class BiasFromTokens(TimmBlock):
        def __init__(self, dim, num_heads, **options):
            super().__init__(dim, num_heads, **options)
            self.bias = nn.Linear(dim, num_heads)

        def forward(self, x, **_):
            h = self.norm1(x)
            x = x + self.ls1(self.attn(h, attn_mask=self.bias(h).mT[:, :, None]))
            return x + self.ls2(self.mlp(self.norm2(x)))

    class PostNorm(TimmBlock):
        def __init__(self, dim, num_heads, **options):
            super().__init__(dim, num_heads, **options)
            self.reads = Reads()

        def forward(self, x, **_):
            x = x + self.norm1(self.attn(self.reads(x)))
            return x + self.norm2(self.mlp(x))

    class ForwardReplaced(TimmBlock):
        def __init__(self, dim, num_heads, **options):
            super().__init__(dim, num_heads, **options)
            usual = self.attn.forward
            self.attn.forward = lambda x, **options: usual(x, **options).tanh()

    return {"bias from tokens": BiasFromTokens, "post-norm": PostNorm, "forward replaced": ForwardReplaced}.get(
        kind, TimmBlock
    )
