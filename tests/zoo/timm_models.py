"""One model of each file of timm that has softmax attention."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import timm

from .cases import CLASSES, Case, Entry, built, case, noise

# timm: the file, an entry of it, its options, and height and width of the images

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
STAGES = {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 16, 16)}
TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "beit": ("beit_base_patch16_224", VIT, 32),
    "byoanet": ("botnet26t_256", {"img_size": 64}, 64),
    "byobnet": ("resnet50_clip", {"img_size": 64}, 64),
    "cait": ("cait_xxs24_224", VIT, 32),
    "coat": (
        "coat_tiny",
        {"img_size": 64, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1},
        64,
    ),
    "convit": ("convit_tiny", VIT, 32),
    "cpubone": ("cpubone_t0", {}, 64),
    "crossvit": (
        "crossvit_tiny_240",
        {"img_size": 48, "img_scale": (1, 2 / 3), "embed_dim": (16, 32), "depth": ((1, 1, 1),), "num_heads": (2, 2)},
        48,
    ),
    "csatv2": ("csatv2", {"dims": (8, 16, 16, 16), "depths": (1,) * 4, "transformer_depths": (0, 0, 1, 1)}, 64),
    "davit": ("davit_tiny", {**STAGES, "num_heads": (2,) * 4, "window_size": 2}, 64),
    "deit": ("deit_tiny_distilled_patch16_224", VIT, 32),
    "deepseek_vit": ("deepseek_vit_412m", {**VIT, "downsample_ratio": 2}, 32),
    "edgenext": ("edgenext_xx_small", {"dims": (16,) * 4, "depths": (1, 2, 2, 2), "heads": (2,) * 4}, 64),
    "efficientformer": ("efficientformer_l1", {**STAGES, "num_vit": 1}, 224),
    "efficientformer_v2": ("efficientformerv2_s0", {"img_size": 64}, 64),
    "efficientvit_msra": ("efficientvit_m0", {"img_size": 64}, 64),
    "eva": ("eva02_base_patch14_224", VIT, 32),
    "fastvit": ("fastvit_sa12", {"embed_dims": (32,) * 4, "layers": (1,) * 4}, 64),
    "gcvit": ("gcvit_xxtiny", {"img_size": 64}, 64),
    "gemma4_vit": ("gemma4_vit_167m", {**VIT, "head_dim": 8, "intermediate_size": 32, "pooling_kernel_size": 2}, 32),
    "hiera": ("hiera_tiny_224", {"img_size": (64, 64), "embed_dim": 8, "stages": (1,) * 4}, 64),
    "hieradet_sam2": (
        "hieradet_small",
        {"embed_dim": 8, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
        64,
    ),
    "iformer": ("iformer_t", {"dims": (32,) * 4, "depths": (1, 1, 3, 3), "attn_groups": (0, 0, 1, 1)}, 64),
    "levit": ("levit_128s", {"img_size": 64, "embed_dim": (16,) * 3, "key_dim": 8, "depth": (1,) * 3}, 64),
    "lowformer": ("lowformer_b0", {}, 64),
    "maxxvit": ("test_maxvit", {"img_size": 64}, 64),
    "metaformer": ("caformer_s18", {}, 64),
    "mobilenetv3": ("mobilenetv4_hybrid_medium", {}, 64),
    "mobilenetv5": ("mobilenetv5_base", {}, 64),
    "mobilevit": ("mobilevit_xxs", {}, 64),
    "mvitv2": ("mvitv2_tiny", {"img_size": 64}, 64),
    "naflexvit": ("naflexvit_base_patch16_map", {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8}, 32),
    "nest": ("nest_tiny", {"img_size": 64}, 64),
    "nextvit": ("nextvit_small", {"depths": (1, 2, 5, 2), "stem_chs": (16, 16, 16)}, 64),
    "pit": ("pit_ti_224", {"img_size": 64, "base_dims": (8,) * 3, "depth": (1,) * 3, "heads": (2, 4, 8)}, 64),
    "pvt_v2": ("pvt_v2_b0", {**STAGES, "num_heads": (2,) * 4}, 64),
    "qwen3_vit": ("qwen3_vit_88m", {**VIT, "pos_embed_grid_size": 4}, 32),
    "shvit": ("shvit_s1", {"embed_dim": (32,) * 3, "partial_dim": (16,) * 3, "depth": (1,) * 3, "types": "sss"}, 128),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 2},
        32,
    ),
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 2},
        32,
    ),
    "swin_transformer_v2_cr": (
        "swinv2_cr_tiny_224",
        {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 2},
        32,
    ),
    "tiny_vit": (
        "tiny_vit_5m_224",
        {"embed_dims": (16,) * 4, "depths": (1,) * 4, "num_heads": (2,) * 4, "window_sizes": (2,) * 4},
        64,
    ),
    "tnt": (
        "tnt_s_patch16_224",
        {"img_size": 64, "embed_dim": 32, "inner_dim": 8, "depth": 2, "num_heads_inner": 2, "num_heads_outer": 4},
        64,
    ),
    "twins": ("twins_svt_small", {**STAGES, "img_size": 64, "num_heads": (2,) * 4, "wss": (2,) * 4}, 64),
    "visformer": ("visformer_tiny", {"img_size": 64, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2}, 64),
    "vision_transformer": ("vit_tiny_patch16_224", VIT, 32),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 64, "embed_dim": 48, "depth": 2}, 64),
    "vision_transformer_relpos": ("vit_relpos_small_patch16_224", VIT, 32),
    "vision_transformer_sam": (
        "samvit_base_patch16_224",
        {**VIT, "window_size": 2, "global_attn_indexes": (1,), "neck_chans": 16},
        32,
    ),
    "vitamin": ("vitamin_small_224", {"img_size": 64, "depth": 2}, 64),
    "volo": ("volo_d1_224", {"img_size": 64}, 64),
    "xcit": ("xcit_tiny_12_p16_224", {**VIT, "patch_size": 16, "img_size": 64}, 64),
}


def timm_entries() -> Iterator[Entry]:
    for file, (name, options, size) in TIMM.items():
        yield Entry("timm", f"{file}: {name}", partial(_timm_case, name, options, size))


def _timm_case(name: str, options: dict[str, Any], size: int) -> Case:
    model = built(lambda: timm.create_model(name, pretrained=False, num_classes=CLASSES, **options))
    return case(model, noise(2, 3, size, size))
