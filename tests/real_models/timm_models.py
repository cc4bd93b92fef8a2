"""Tiny models of timm."""

from dataclasses import replace
from functools import partial

import torch
from timm.layers import Attention, RmsNorm, SwiGLU
from timm.models import beit, deit, eva, vision_transformer
from torch import nn

from .cases import AUTOGRAD, CLASSES, PATCH, WIDTH, Case, Entry, class_token_of, images, randomised


def timm_latents(model, inputs):
    return model.forward_head(model.forward_features(inputs), pre_logits=True)


def distilled_case():
    case = timm_case(deit.VisionTransformerDistilled(**small()), 2)
    return replace(case, latents=partial(case.model, case.inputs))  # of two heads, no one reads what is explained


def timm_case(model, prefix, size=(32, 32), find_site=lambda model: model.blocks[-1].norm1, enters=False):
    model = randomised(model)
    inputs = images(*size)
    grid = (size[0] // PATCH, size[1] // PATCH)
    return Case(model, inputs, find_site(model), prefix, grid, partial(timm_latents, model, inputs), enters)


def pooling_case(model, prefix, find_site):
    """Its last attention pools."""
    return timm_case(model, prefix, find_site=find_site, enters=True)


def small(**options):
    defaults = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    return defaults | {"num_classes": CLASSES} | options


def vit(fused=True, checkpointing=False, **options):
    model = vision_transformer.VisionTransformer(**small(**options))
    set_fused(model, fused)
    model.set_grad_checkpointing(checkpointing)
    return model


def set_fused(model, fused):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


class LowRankLinear(nn.Linear):
    """A linear layer with an adapter, as LoRA makes it."""

    def __init__(self, old):
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None)
        self.down = nn.Parameter(torch.zeros(2, old.in_features))
        self.up = nn.Parameter(torch.zeros(old.out_features, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


def low_rank_case():
    model = vit()
    model.blocks[-1].attn.qkv = LowRankLinear(model.blocks[-1].attn.qkv)
    model.blocks[-1].mlp.fc1 = LowRankLinear(model.blocks[-1].mlp.fc1)
    return timm_case(model, 1)


def weight_norm_case():
    model = vit()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[-1].attn.qkv)
    return timm_case(model, 1)


def hooked_case(find_module):
    model = vit()
    find_module(model).register_forward_hook(lambda _module, _args, output: output * 1.5 + output.sin())
    return timm_case(model, 1)


class ScaledLogits(nn.Module):
    """A model around a model: normalised input, softmax of the logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return {"scores": (self.model((x - 0.1) / 2) / 2).softmax(-1)}


def wrapped_case():
    case = timm_case(vit(reg_tokens=1), 2)
    model = ScaledLogits(case.model)
    latents = partial(timm_latents, case.model, (case.inputs - 0.1) / 2)
    return replace(case, model=model, latents=latents)


def mlp_head_case():
    model = vit()
    model.head = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    return timm_case(model, 1)


class Masked(nn.Module):
    def __init__(self, model, mask):
        super().__init__()
        self.model = model
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self.model(x, attn_mask=self.mask)


def masked_case():
    case = timm_case(vit(), 1)
    mask = torch.rand((17, 17), generator=torch.Generator().manual_seed(4)) > 0.2
    mask[:, 0] = True
    model = Masked(case.model, mask)
    return replace(case, model=model, latents=partial(class_token_of, case.model.norm, partial(model, case.inputs)))


class PatchPooling(vision_transformer.VisionTransformer):
    """A subclass whose head reads a patch."""

    def pool(self, x, pool_type=None):
        return x[:, 3] + x[:, 0]


class LateSkip(vision_transformer.VisionTransformer):
    """A subclass that adds the middle of the network to its end."""

    def forward_features(self, x, **kwargs):
        x = self._pos_embed(self.patch_embed(x))
        middle = self.blocks[0](x)
        return self.norm(self.blocks[1](middle) + middle.mean(1, keepdim=True))


class GatedAttention(Attention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, gated=True, **kwargs)


def in_norm(model):
    return model.blocks[-1].in_norm


def attention(model):
    return model.blocks[-1].attn


TIMM_CASES = {
    "timm": Entry(lambda: timm_case(vit(), 1)),
    "timm-48px-depth3": Entry(lambda: timm_case(vit(img_size=48, depth=3, embed_dim=48), 1, (48, 48)), layers=3),
    "timm-1register": Entry(lambda: timm_case(vit(reg_tokens=1), 2)),
    "timm-4registers": Entry(lambda: timm_case(vit(reg_tokens=4), 5), quick=True),
    "timm-4registers-no-embed-class": Entry(lambda: timm_case(vit(reg_tokens=4, no_embed_class=True), 5)),
    "timm-unfused": Entry(lambda: timm_case(vit(fused=False), 1)),
    "timm-4registers-unfused": Entry(lambda: timm_case(vit(reg_tokens=4, fused=False), 5)),
    "timm-distilled": Entry(distilled_case),
    "timm-layer-scale": Entry(lambda: timm_case(vit(init_values=0.5), 1)),
    "timm-no-qkv-bias": Entry(lambda: timm_case(vit(qkv_bias=False), 1)),
    "timm-no-proj-bias": Entry(lambda: timm_case(vit(proj_bias=False), 1)),
    "timm-qk-norm": Entry(lambda: timm_case(vit(qk_norm=True), 1)),
    "timm-qk-norm-unfused": Entry(lambda: timm_case(vit(qk_norm=True, fused=False), 1)),
    "timm-scale-attn-norm": Entry(lambda: timm_case(vit(scale_attn_norm=True), 1)),
    "timm-scale-mlp-norm": Entry(lambda: timm_case(vit(scale_mlp_norm=True), 1)),
    "timm-gated-attention": Entry(lambda: timm_case(vit(attn_layer=GatedAttention), 1)),
    "timm-diff-attention": Entry(
        lambda: timm_case(vit(attn_layer="diff"), 1), way=AUTOGRAD, no_matrices="what it computes"
    ),
    "timm-swiglu": Entry(lambda: timm_case(vit(mlp_layer=SwiGLU), 1)),
    "timm-rms-norm": Entry(lambda: timm_case(vit(norm_layer=RmsNorm), 1)),
    "timm-pre-norm": Entry(lambda: timm_case(vit(pre_norm=True), 1)),
    "timm-no-final-norm": Entry(lambda: timm_case(vit(final_norm=False), 1)),
    "timm-token-fc-norm": Entry(lambda: timm_case(vit(fc_norm=True), 1)),
    "timm-drop-rates": Entry(lambda: timm_case(vit(drop_path_rate=0.3, drop_rate=0.3, proj_drop_rate=0.3), 1)),
    "timm-avg": Entry(lambda: timm_case(vit(global_pool="avg"), 1), way=AUTOGRAD, average=True, quick=True),
    "timm-avg-no-class-token": Entry(
        lambda: timm_case(vit(global_pool="avg", class_token=False), 0), way=AUTOGRAD, average=True
    ),
    "timm-avg-only-registers": Entry(
        lambda: timm_case(vit(global_pool="avg", class_token=False, reg_tokens=2), 2), way=AUTOGRAD, average=True
    ),
    "timm-avg-include-prefix": Entry(
        lambda: timm_case(vit(global_pool="avg", pool_include_prefix=True), 1), way=AUTOGRAD
    ),
    "timm-avgmax": Entry(lambda: timm_case(vit(global_pool="avgmax"), 1), way=AUTOGRAD, average=True),
    "timm-max": Entry(lambda: timm_case(vit(global_pool="max"), 1), way=AUTOGRAD, average=True),
    "timm-map": Entry(
        lambda: pooling_case(vit(global_pool="map"), 0, lambda model: model.attn_pool.kv), average=True, pools=True
    ),
    "timm-map-no-class-token": Entry(
        lambda: pooling_case(vit(global_pool="map", class_token=False), 0, lambda model: model.attn_pool.kv),
        average=True,
        pools=True,
    ),
    "timm-prr": Entry(
        lambda: pooling_case(vit(global_pool="prr"), 1, lambda model: model.attn_pool), way=AUTOGRAD, pools=True
    ),
    "timm-dynamic-nonsquare": Entry(lambda: timm_case(vit(dynamic_img_size=True, reg_tokens=1), 2, (32, 48))),
    "timm-static-nonsquare": Entry(lambda: timm_case(vit(img_size=(48, 32)), 1, (48, 32))),
    "timm-res-post": Entry(
        lambda: timm_case(vit(block_fn=vision_transformer.ResPostBlock), 1, find_site=attention, enters=True)
    ),
    "timm-parallel-scaling": Entry(
        lambda: timm_case(vit(block_fn=vision_transformer.ParallelScalingBlock), 1, find_site=in_norm),
        way=AUTOGRAD,
        no_matrices="no attention module",
    ),
    "timm-diff-parallel-scaling": Entry(
        lambda: timm_case(vit(block_fn=vision_transformer.DiffParallelScalingBlock), 1, find_site=in_norm),
        way=AUTOGRAD,
        no_matrices="no attention module",
    ),
    "timm-checkpointing": Entry(lambda: timm_case(vit(checkpointing=True), 1)),
    "timm-checkpointing-qk-norm": Entry(lambda: timm_case(vit(checkpointing=True, qk_norm=True), 1)),
    "timm-depth1": Entry(lambda: timm_case(vit(depth=1), 1), layers=1),
    "timm-no-head": Entry(lambda: timm_case(vit(num_classes=0), 1)),
    "timm-mlp-head": Entry(mlp_head_case),
    "timm-low-rank-adapter": Entry(low_rank_case, way=AUTOGRAD, no_matrices="what it computes"),
    "timm-weight-norm": Entry(weight_norm_case, no_matrices="what it computes"),
    "timm-hook-on-attention": Entry(lambda: hooked_case(lambda model: model.blocks[-1].attn), no_matrices="hooks"),
    "timm-hook-on-qkv": Entry(
        lambda: hooked_case(lambda model: model.blocks[-1].attn.qkv), way=AUTOGRAD, no_matrices="hooks"
    ),
    "timm-hook-on-head": Entry(lambda: hooked_case(lambda model: model.head)),
    "timm-hook-on-block": Entry(lambda: hooked_case(lambda model: model.blocks[-1])),
    "timm-hook-on-first-block": Entry(lambda: hooked_case(lambda model: model.blocks[0])),
    "timm-wrapped-softmax-dict": Entry(wrapped_case),
    "timm-attention-mask": Entry(masked_case),
    "timm-subclass-pool": Entry(lambda: timm_case(PatchPooling(**small()), 1)),
    "timm-subclass-skip": Entry(lambda: timm_case(LateSkip(**small()), 1)),
    "timm-frozen": Entry(lambda: timm_case(vit().requires_grad_(False), 1)),
    "eva-rope-registers": Entry(
        lambda: timm_case(eva.Eva(**small(use_rot_pos_emb=True, num_reg_tokens=4, global_pool="token")), 5), quick=True
    ),
    "eva-avg": Entry(lambda: timm_case(eva.Eva(**small()), 1), way=AUTOGRAD, average=True),
    "eva-token-layer-scale": Entry(lambda: timm_case(eva.Eva(**small(init_values=0.5, global_pool="token")), 1)),
    "eva-dinov3": Entry(
        lambda: timm_case(
            eva.Eva(
                **small(
                    use_rot_pos_emb=True,
                    use_abs_pos_emb=False,
                    rope_type="dinov3",
                    num_reg_tokens=4,
                    init_values=0.5,
                    qkv_bias=False,
                    global_pool="token",
                    dynamic_img_size=True,
                )
            ),
            5,
            (32, 48),
        )
    ),
    "eva02": Entry(
        lambda: timm_case(eva.Eva(**small(use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, scale_mlp=True)), 1),
        way=AUTOGRAD,
        average=True,
    ),
    "eva-rope-attention": Entry(
        lambda: timm_case(
            eva.Eva(**small(use_rot_pos_emb=True, attn_type="rope", scale_attn_inner=True, global_pool="token")), 1
        )
    ),
    "eva-mixed-rope": Entry(
        lambda: timm_case(eva.Eva(**small(use_rot_pos_emb=True, rope_type="mixed", global_pool="token")), 1)
    ),
    "eva-post-norm": Entry(
        lambda: timm_case(
            eva.Eva(**small(use_post_norm=True, global_pool="token")), 1, find_site=attention, enters=True
        )
    ),
    "beit-rel-pos": Entry(
        lambda: timm_case(beit.Beit(**small(use_rel_pos_bias=True, init_values=0.5)), 1), way=AUTOGRAD, average=True
    ),
    "beit-rel-pos-token": Entry(
        lambda: timm_case(beit.Beit(**small(use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token")), 1)
    ),
    "beit-shared-rel-pos": Entry(
        lambda: timm_case(beit.Beit(**small(use_shared_rel_pos_bias=True)), 1), way=AUTOGRAD, average=True
    ),
    "beit-no-rel-pos-token": Entry(lambda: timm_case(beit.Beit(**small(global_pool="token")), 1)),
}
