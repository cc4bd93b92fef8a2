"""Tiny models of the real libraries with random weights, and where the specification says their tokens are."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import transformers
from timm.layers import Attention, RmsNorm, SwiGLU
from timm.models import beit, deit, eva, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vision_transformer as torchvision_vit

CLASSES = 5
WIDTH = 32
PATCH = 8


@dataclass
class Case:
    """A model, an input for it, and where its tokens are.

    Args:
        model: What CDAM gets.
        inputs: Images or token ids.
        site: The module that `T` leaves or, with `enters`, that it enters.
        prefix: Number of tokens in front of the patches.
        grid: Rows and columns of patches; None for text.
        latents: Runs the model and returns what its head receives for a concept.
        enters: True where the residual path reads the same value and must keep it.
        extra: Further arguments of the model.
    """

    model: nn.Module
    inputs: Tensor
    site: nn.Module
    prefix: int
    grid: tuple[int, int] | None
    latents: Callable[[], Tensor]
    enters: bool = False
    extra: tuple = ()

    @property
    def forward_args(self):
        return self.extra or None

    def logits(self):
        output = self.model(self.inputs, *self.extra)
        if isinstance(output, tuple):
            return output[0]
        if isinstance(output, Tensor):
            return output
        return next(output[key] for key in ("logits", "image_embeds", "scores") if key in output)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def images(height=32, width=32, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((count, 3, height, width), generator=generator, dtype=torch.float64)


@contextmanager
def hooked(handle):
    try:
        yield
    finally:
        handle.remove()


def output_of(module, run):
    seen = []
    with hooked(module.register_forward_hook(lambda _module, _args, output: seen.append(output))):
        run()
    return seen[-1]


def input_of(module, run):
    seen = []
    with hooked(module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))):
        run()
    return seen[-1]


def class_token_of(module, run):
    return output_of(module, run)[:, 0]


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
    "timm": lambda: timm_case(vit(), 1),
    "timm-48px-depth3": lambda: timm_case(vit(img_size=48, depth=3, embed_dim=48), 1, (48, 48)),
    "timm-1register": lambda: timm_case(vit(reg_tokens=1), 2),
    "timm-4registers": lambda: timm_case(vit(reg_tokens=4), 5),
    "timm-4registers-no-embed-class": lambda: timm_case(vit(reg_tokens=4, no_embed_class=True), 5),
    "timm-unfused": lambda: timm_case(vit(fused=False), 1),
    "timm-4registers-unfused": lambda: timm_case(vit(reg_tokens=4, fused=False), 5),
    "timm-distilled": distilled_case,
    "timm-layer-scale": lambda: timm_case(vit(init_values=0.5), 1),
    "timm-no-qkv-bias": lambda: timm_case(vit(qkv_bias=False), 1),
    "timm-no-proj-bias": lambda: timm_case(vit(proj_bias=False), 1),
    "timm-qk-norm": lambda: timm_case(vit(qk_norm=True), 1),
    "timm-qk-norm-unfused": lambda: timm_case(vit(qk_norm=True, fused=False), 1),
    "timm-scale-attn-norm": lambda: timm_case(vit(scale_attn_norm=True), 1),
    "timm-scale-mlp-norm": lambda: timm_case(vit(scale_mlp_norm=True), 1),
    "timm-gated-attention": lambda: timm_case(vit(attn_layer=GatedAttention), 1),
    "timm-diff-attention": lambda: timm_case(vit(attn_layer="diff"), 1),
    "timm-swiglu": lambda: timm_case(vit(mlp_layer=SwiGLU), 1),
    "timm-rms-norm": lambda: timm_case(vit(norm_layer=RmsNorm), 1),
    "timm-pre-norm": lambda: timm_case(vit(pre_norm=True), 1),
    "timm-no-final-norm": lambda: timm_case(vit(final_norm=False), 1),
    "timm-token-fc-norm": lambda: timm_case(vit(fc_norm=True), 1),
    "timm-drop-rates": lambda: timm_case(vit(drop_path_rate=0.3, drop_rate=0.3, proj_drop_rate=0.3), 1),
    "timm-avg": lambda: timm_case(vit(global_pool="avg"), 1),
    "timm-avg-no-class-token": lambda: timm_case(vit(global_pool="avg", class_token=False), 0),
    "timm-avg-only-registers": lambda: timm_case(vit(global_pool="avg", class_token=False, reg_tokens=2), 2),
    "timm-avg-include-prefix": lambda: timm_case(vit(global_pool="avg", pool_include_prefix=True), 1),
    "timm-avgmax": lambda: timm_case(vit(global_pool="avgmax"), 1),
    "timm-max": lambda: timm_case(vit(global_pool="max"), 1),
    "timm-map": lambda: pooling_case(vit(global_pool="map"), 0, lambda model: model.attn_pool.kv),
    "timm-map-no-class-token": lambda: pooling_case(
        vit(global_pool="map", class_token=False), 0, lambda model: model.attn_pool.kv
    ),
    "timm-prr": lambda: pooling_case(vit(global_pool="prr"), 1, lambda model: model.attn_pool),
    "timm-dynamic-nonsquare": lambda: timm_case(vit(dynamic_img_size=True, reg_tokens=1), 2, (32, 48)),
    "timm-static-nonsquare": lambda: timm_case(vit(img_size=(48, 32)), 1, (48, 32)),
    "timm-res-post": lambda: timm_case(
        vit(block_fn=vision_transformer.ResPostBlock), 1, find_site=attention, enters=True
    ),
    "timm-parallel-scaling": lambda: timm_case(
        vit(block_fn=vision_transformer.ParallelScalingBlock), 1, find_site=in_norm
    ),
    "timm-diff-parallel-scaling": lambda: timm_case(
        vit(block_fn=vision_transformer.DiffParallelScalingBlock), 1, find_site=in_norm
    ),
    "timm-checkpointing": lambda: timm_case(vit(checkpointing=True), 1),
    "timm-checkpointing-qk-norm": lambda: timm_case(vit(checkpointing=True, qk_norm=True), 1),
    "timm-depth1": lambda: timm_case(vit(depth=1), 1),
    "timm-no-head": lambda: timm_case(vit(num_classes=0), 1),
    "timm-mlp-head": mlp_head_case,
    "timm-low-rank-adapter": low_rank_case,
    "timm-weight-norm": weight_norm_case,
    "timm-hook-on-attention": lambda: hooked_case(lambda model: model.blocks[-1].attn),
    "timm-hook-on-qkv": lambda: hooked_case(lambda model: model.blocks[-1].attn.qkv),
    "timm-hook-on-head": lambda: hooked_case(lambda model: model.head),
    "timm-hook-on-block": lambda: hooked_case(lambda model: model.blocks[-1]),
    "timm-hook-on-first-block": lambda: hooked_case(lambda model: model.blocks[0]),
    "timm-wrapped-softmax-dict": wrapped_case,
    "timm-attention-mask": masked_case,
    "timm-subclass-pool": lambda: timm_case(PatchPooling(**small()), 1),
    "timm-subclass-skip": lambda: timm_case(LateSkip(**small()), 1),
    "timm-frozen": lambda: timm_case(vit().requires_grad_(False), 1),
    "eva-rope-registers": lambda: timm_case(
        eva.Eva(**small(use_rot_pos_emb=True, num_reg_tokens=4, global_pool="token")), 5
    ),
    "eva-avg": lambda: timm_case(eva.Eva(**small()), 1),
    "eva-token-layer-scale": lambda: timm_case(eva.Eva(**small(init_values=0.5, global_pool="token")), 1),
    "eva-dinov3": lambda: timm_case(
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
    ),
    "eva02": lambda: timm_case(
        eva.Eva(**small(use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, scale_mlp=True)), 1
    ),
    "eva-rope-attention": lambda: timm_case(
        eva.Eva(**small(use_rot_pos_emb=True, attn_type="rope", scale_attn_inner=True, global_pool="token")), 1
    ),
    "eva-mixed-rope": lambda: timm_case(
        eva.Eva(**small(use_rot_pos_emb=True, rope_type="mixed", global_pool="token")), 1
    ),
    "eva-post-norm": lambda: timm_case(
        eva.Eva(**small(use_post_norm=True, global_pool="token")), 1, find_site=attention, enters=True
    ),
    "beit-rel-pos": lambda: timm_case(beit.Beit(**small(use_rel_pos_bias=True, init_values=0.5)), 1),
    "beit-rel-pos-token": lambda: timm_case(
        beit.Beit(**small(use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token")), 1
    ),
    "beit-shared-rel-pos": lambda: timm_case(beit.Beit(**small(use_shared_rel_pos_bias=True)), 1),
    "beit-no-rel-pos-token": lambda: timm_case(beit.Beit(**small(global_pool="token")), 1),
}


def conv_stem():
    return [torchvision_vit.ConvStemConfig(8, 3, 2), torchvision_vit.ConvStemConfig(16, 3, 4)]


def torchvision_case(**options):
    settings = {"image_size": 32, "patch_size": PATCH, "num_layers": 2, "num_heads": 4, "hidden_dim": WIDTH}
    model = torchvision_vit.VisionTransformer(**settings, mlp_dim=64, num_classes=CLASSES, **options)
    model = randomised(model)
    inputs = images()
    latents = partial(class_token_of, model.encoder.ln, partial(model, inputs))
    return Case(model, inputs, model.encoder.layers[-1].ln_1, 1, (4, 4), latents)


def vision_config(kind, attention="sdpa", **options):
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {"image_size": 32, "patch_size": PATCH, "num_labels": CLASSES, "attn_implementation": attention}
    return kind(**(settings | options))


def transformers_case(model, backbone, last_layer, norm, prefix=1, size=(32, 32)):
    model = randomised(model)
    base = getattr(model, backbone)
    inputs = images(*size)
    final = base.post_layernorm if hasattr(base, "post_layernorm") else base.layernorm
    site = getattr(last_layer(base), norm)

    def latents():
        if hasattr(model, "cls_classifier"):  # of two heads, no one reads what is explained
            return model(inputs)[0] if isinstance(model(inputs), tuple) else model(inputs).logits
        if hasattr(model, "classifier"):
            return input_of(model.classifier, lambda: model(inputs))
        rows = output_of(final, lambda: model(inputs))
        return rows if rows.ndim == 2 else rows[:, 0]

    grid = (size[0] // PATCH, size[1] // PATCH)
    return Case(model, inputs, site, prefix, grid, latents)


def last_of_layers(base):
    return base.layers[-1]


def last_of_encoder(base):
    return base.encoder.layer[-1]


def hf_vit(attention="sdpa", size=(32, 32), **options):
    model = transformers.ViTForImageClassification(vision_config(transformers.ViTConfig, attention, **options))
    return transformers_case(model, "vit", last_of_layers, "layernorm_before", size=size)


def hf_deit(kind=transformers.DeiTForImageClassification, **options):
    model = kind(vision_config(transformers.DeiTConfig, **options))
    return transformers_case(model, "deit", last_of_layers, "layernorm_before", prefix=2)


def hf_dinov2(size=(32, 32), **options):
    config = vision_config(transformers.Dinov2Config, mlp_ratio=2, **options)
    model = transformers.Dinov2ForImageClassification(config)
    return transformers_case(model, "dinov2", last_of_encoder, "norm1", size=size)


def hf_dinov2_registers(**options):
    config = vision_config(transformers.Dinov2WithRegistersConfig, mlp_ratio=2, num_register_tokens=3, **options)
    model = transformers.Dinov2WithRegistersForImageClassification(config)
    return transformers_case(model, "dinov2_with_registers", last_of_encoder, "norm1", prefix=4)


def clip_vision_config(**options):
    return vision_config(transformers.CLIPVisionConfig, projection_dim=7, **options)


def clip_classifier():
    config = transformers.CLIPConfig(
        vision_config=clip_vision_config().to_dict(), num_labels=CLASSES, attn_implementation="sdpa"
    )
    model = transformers.CLIPForImageClassification(config)
    return transformers_case(model, "vision_model", lambda base: base.encoder.layers[-1], "layer_norm1")


def clip_projection():
    model = transformers.CLIPVisionModelWithProjection(clip_vision_config())
    return transformers_case(model, "vision_model", lambda base: base.encoder.layers[-1], "layer_norm1")


class TupleOutput(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, return_dict=False)


class Interpolating(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, interpolate_pos_encoding=True)


def nonsquare_hf_vit():
    case = hf_vit(size=(48, 32))
    model = Interpolating(case.model)
    latents = partial(class_token_of, case.model.vit.layernorm, partial(model, case.inputs))
    return replace(case, model=model, latents=latents)


def returning_tuples(case):
    return replace(case, model=TupleOutput(case.model))


TRANSFORMERS_CASES = {
    "hf-vit": hf_vit,
    "hf-vit-eager": lambda: hf_vit("eager"),
    "hf-vit-tuple": lambda: returning_tuples(hf_vit()),
    "hf-vit-no-qkv-bias": lambda: hf_vit(qkv_bias=False),
    "hf-vit-nonsquare-interpolated": nonsquare_hf_vit,
    "hf-deit": hf_deit,
    "hf-deit-teacher-tuple": lambda: returning_tuples(hf_deit(transformers.DeiTForImageClassificationWithTeacher)),
    "hf-deit-teacher": lambda: hf_deit(transformers.DeiTForImageClassificationWithTeacher),
    "hf-dinov2": hf_dinov2,
    "hf-dinov2-nonsquare": lambda: hf_dinov2(size=(32, 48)),
    "hf-dinov2-swiglu": lambda: hf_dinov2(use_swiglu_ffn=True),
    "hf-dinov2-registers": hf_dinov2_registers,
    "hf-clip-classifier": clip_classifier,
    "hf-clip-projection": clip_projection,
}

PAD = 1


def text_inputs():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    lengths = torch.tensor([9, 6, 4])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return torch.where(mask.bool(), ids, PAD), mask


def text_case(model, find_site, find_latents):
    model = randomised(model)
    ids, mask = text_inputs()
    latents = partial(find_latents, model, lambda: model(ids, mask))
    return Case(model, ids, find_site(model), 0, None, latents, enters=True, extra=(mask,))


def text_config(kind, attention="sdpa", **options):
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {"vocab_size": 50, "max_position_embeddings": 16, "num_labels": CLASSES, "pad_token_id": PAD}
    return kind(**settings, attn_implementation=attention, **options)


def hf_bert(attention="sdpa", **options):
    model = transformers.BertForSequenceClassification(text_config(transformers.BertConfig, attention, **options))
    return text_case(
        model,
        lambda model: model.bert.encoder.layer[-1].attention.self,
        lambda model, run: output_of(model.bert.pooler, run),
    )


def hf_roberta(family="Roberta"):
    kind = getattr(transformers, f"{family}ForSequenceClassification")
    model = kind(text_config(getattr(transformers, f"{family}Config")))
    return text_case(
        model,
        lambda model: model.roberta.encoder.layer[-1].attention.self,
        lambda model, run: class_token_of(model.roberta.encoder.layer[-1], run),
    )


def hf_distilbert():
    config = transformers.DistilBertConfig(
        dim=WIDTH,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        vocab_size=50,
        max_position_embeddings=16,
        num_labels=CLASSES,
        pad_token_id=PAD,
        attn_implementation="sdpa",
    )
    return text_case(
        transformers.DistilBertForSequenceClassification(config),
        lambda model: model.distilbert.transformer.layer[-1].attention,
        lambda model, run: input_of(model.classifier, run),
    )


TEXT_CASES = {
    "hf-bert": hf_bert,
    "hf-bert-tuple": lambda: hf_bert(return_dict=False),
    "hf-bert-chunked": lambda: hf_bert(chunk_size_feed_forward=3),
    "hf-bert-eager": lambda: hf_bert("eager"),
    "hf-roberta": hf_roberta,
    "hf-distilbert": hf_distilbert,
}


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
    "dino": lambda: hub_case(VisionTransformer(), lambda model: model),
    "dino-linear": lambda: hub_case(with_linear(VisionTransformer()), lambda model: model[0]),
    "dino-linear-nonsquare": lambda: hub_case(with_linear(VisionTransformer()), lambda model: model[0], size=(48, 32)),
    "dinov2": lambda: hub_case(DinoVisionTransformer(registers=0), lambda model: model),
    "dinov2-registers": lambda: hub_case(DinoVisionTransformer(), lambda model: model, prefix=5),
    "dinov2-registers-linear": lambda: hub_case(
        with_linear(DinoVisionTransformer()), lambda model: model[0], prefix=5, size=(32, 48)
    ),
    "dinov2-registers-wrapper": lambda: hub_case(
        LinearClassifierWrapper(DinoVisionTransformer()), lambda model: model.backbone, prefix=5
    ),
}

CASES = TIMM_CASES | TRANSFORMERS_CASES | TEXT_CASES | HUB_CASES
CASES |= {"torchvision": torchvision_case, "torchvision-pre-logits": lambda: torchvision_case(representation_size=24)}
CASES |= {"torchvision-conv-stem": lambda: torchvision_case(conv_stem_configs=conv_stem())}


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CASES[name]()
