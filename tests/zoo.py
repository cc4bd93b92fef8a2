"""One small model with random weights of every model class that CDAM is meant for, built without any download.

`entries()` lists them without building anything; `entry.make()` builds one, with an input and a target for it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

CLASSES = 5
LENGTH = 16
VOCABULARY = 64
IMAGE_TOKEN = 7
END = 2


@dataclass
class Case:
    """A model with an input and a target.

    Args:
        model: In evaluation mode, float64 where the model allows it.
        inputs: What `forward` takes first; a tuple for models of several inputs.
        additional: Further arguments of `forward`, or None.
        target: What to explain, as for Captum.
        forward: What CDAM gets: the model, or a module around it that passes the input by its name.
    """

    model: nn.Module
    inputs: Tensor | tuple[Tensor, ...]
    additional: Any
    target: Any
    forward: nn.Module

    def run(self) -> Any:
        inputs = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        return self.forward(*inputs, *(self.additional or ()))


@dataclass(frozen=True)
class Entry:
    group: str
    name: str
    make: Callable[[], Case]


class ByName(nn.Module):
    """Passes one input by its name."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, inputs: Tensor) -> Any:
        return self.model(**{self.name: inputs})


def entries(group: str | None = None) -> list[Entry]:
    """All entries, or those of one group. Builds nothing."""
    listed = [*_timm_entries(), *_torchvision_entries(), *_transformers_entries(), *_torch_entries(), *_own_entries()]
    return [entry for entry in listed if group in (None, entry.group)]


def built(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model in evaluation mode, with noise on every weight so that none is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            inputs = parameter.shape[1:].numel()
            size = min(0.1, max(inputs, 1) ** -0.5)  # a wide layer's output stays of its size
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def token_ids(*image_positions: int) -> Tensor:
    """Random token ids; the last one ends the sequence, and those at `image_positions` stand for an image."""
    ids = torch.randint(IMAGE_TOKEN + 1, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = END
    ids[:, list(image_positions)] = IMAGE_TOKEN
    return ids


def case(model: nn.Module, inputs: Any, target: Any = 1, additional: Any = None, forward: Any = None) -> Case:
    return Case(model, inputs, additional, target, forward or model)


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


def _timm_entries() -> Iterator[Entry]:
    for file, (name, options, size) in TIMM.items():
        yield Entry("timm", f"{file}: {name}", partial(_timm_case, name, options, size))


def _timm_case(name: str, options: dict[str, Any], size: int) -> Case:
    model = built(lambda: timm.create_model(name, pretrained=False, num_classes=CLASSES, **options))
    return case(model, noise(2, 3, size, size))


def _torchvision_entries() -> Iterator[Entry]:
    models = torchvision.models
    swin = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": [2, 2], "patch_size": [4, 4]}
    choices: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=CLASSES),
        "swin": lambda: models.SwinTransformer(**swin, num_classes=CLASSES),
        "swin_v2": lambda: models.SwinTransformer(
            **swin,
            num_classes=CLASSES,
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
        ),
        "maxvit": lambda: models.MaxVit((64, 64), 16, 2, [16, 16], [1, 1], 8, 0.0, num_classes=CLASSES),
    }
    for name, build in choices.items():
        size = 64 if name == "maxvit" else 32
        yield Entry("torchvision", name, partial(_image_case, build, size))


def _image_case(build: Callable[[], nn.Module], size: int = 32) -> Case:
    return case(built(build), noise(2, 3, size, size))


# transformers

TASKS = {
    "IMAGE_CLASSIFICATION": "transformers image classification",
    "VIDEO_CLASSIFICATION": "transformers video classification",
    "SEQUENCE_CLASSIFICATION": "transformers sequence classification",
    "TOKEN_CLASSIFICATION": "transformers token classification",
    "MASKED_LM": "transformers masked language models",
    "CAUSAL_LM": "transformers causal language models",
}


def _named(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


TINY = {
    **_named("hidden_size d_model n_embd dim embed_dim embedding_size emb_dim hidden_dim projection_dim", 32),
    **_named("intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff dim_ff ffn_hidden_size", 32),
    **_named("moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size out_hidden_size", 32),
    **_named("num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth", 2),
    **_named("num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads", 4),
    **_named("num_heads attention_heads swa_num_attention_heads linear_num_value_heads mamba_n_heads", 4),
    **_named("num_key_value_heads swa_num_key_value_heads linear_num_key_heads index_n_heads", 2),
    **_named("head_dim kv_channels dim_head d_kv d_head v_head_dim qk_rope_head_dim qk_nope_head_dim", 8),
    **_named("index_head_dim swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim", 8),
    **_named("mamba_d_state state_size ssm_state_size mamba_chunk_size sliding_window global_head_dim", 8),
    **_named("q_lora_rank kv_lora_rank o_lora_rank", 16),
    **_named("num_local_experts num_experts n_routed_experts moe_num_experts rotary_dim", 4),
    **_named("num_experts_per_tok moe_topk moe_k num_frames type_vocab_size", 2),
    **_named("n_group topk_group n_groups n_shared_experts", 1),
    **_named("max_position_embeddings n_positions max_seq_len n_ctx vocab_size", VOCABULARY),
    **_named("vocab_size_per_layer_input entity_vocab_size pronunciation_vocab_size shape_vocab_size", VOCABULARY),
    **_named("hidden_size_per_layer_input laurel_rank entity_emb_size pronunciation_embed_dim shape_embed_dim", 16),
    **_named("image_token_id image_token_index", IMAGE_TOKEN),
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
    "sep_token_id": 3,
    "decoder_start_token_id": 0,
}
TINY_LISTS = {
    **_named("depths depth", 1),
    **_named("hidden_sizes embed_dim embed_dims", 16),
    **_named("num_heads num_attention_heads mlp_ratios", 2),
}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "BambaConfig": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "BailingHybridConfig": HYBRID,
    "BitConfig": {"num_groups": 4},
    "CvtConfig": {"depth": (1, 2, 3)},
    "DbrxConfig": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32},
    },
    "BigBirdConfig": {"block_size": 2, "num_random_blocks": 1},
    "BltConfig": {"encoder_hash_byte_group_vocab": VOCABULARY, "use_cache": False},
    "BltLocalDecoderConfig": {"hidden_size_global": 32},
    "BltLocalEncoderConfig": {"hidden_size_global": 32},
    "BrosConfig": {"hidden_size": 64},
    "CohereCompassTextConfig": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    },
    "DoryConfig": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1},
    "Dots3NoteTextConfig": {"num_key_value_heads": 4},
    "EfficientNetConfig": {"hidden_dim": 2560},
    "EsmcConfig": {"num_key_value_heads": 4},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "Gemma3nTextConfig": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma3nVisionConfig": {"architecture": "vit_tiny_patch16_224", "model_args": VIT},
    "GraniteMoeHybridConfig": {**HYBRID, "mamba_d_head": 16},
    "HGNetV2Config": {"hidden_sizes": None},
    "HieraConfig": {"image_size": (64, 64)},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "KimiLinearConfig": HYBRID,
    "LaraMiniConfig": HYBRID,
    "LayoutLMv3Config": {"coordinate_size": 6, "shape_size": 4, "input_size": 32},
    "LevitConfig": {"image_size": 64, "patch_size": 16, "key_dim": (8, 8, 8)},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "Lfm3Config": {"layer_types": ["conv", "full_attention"]},
    "LiltConfig": {"hidden_size": 48},
    "LongcatFlashConfig": {"expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "LongformerConfig": {"attention_window": 4},
    "Mamba2Config": {"num_heads": 8},
    "MobileViTConfig": {"neck_hidden_sizes": (8, 8, 8, 8, 8, 8, 16), "image_size": 64, "initializer_range": 0.4},
    "MobileViTV2Config": {"image_size": 64, "patch_size": 2},
    "MusicgenDecoderConfig": {"num_codebooks": 1},
    "MusicgenMelodyDecoderConfig": {"num_codebooks": 1},
    "NemotronHConfig": {"layers_block_type": ["linear_attention", "full_attention"]},
    "NeoMMEConfig": {"head_dim": 16},
    "PerceiverConfig": {
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 1,
    },
    "ProphetNetConfig": {"num_encoder_layers": 2, "num_decoder_layers": 2},
    "Qwen3NextConfig": HYBRID,
    "Qwen3_5TextConfig": HYBRID,
    "Qwen3_5MoeTextConfig": HYBRID,
    "Qwen4ExpTextConfig": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "RecurrentGemmaConfig": {"block_types": ("recurrent", "attention")},
    "ReformerConfig": {
        "attention_head_size": 8,
        "attn_layers": ("lsh", "local"),
        "axial_pos_shape": (4, 4),
        "axial_pos_embds_dim": (16, 16),
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "Siglip2VisionConfig": {"num_patches": 16},
    "ShieldGemma2Config": {"mm_tokens_per_image": 4, "yes_token_index": 10, "no_token_index": 11},
    "SwinConfig": {"depths": (1, 2), "num_heads": (2, 2), "window_size": 2},
    "DonutSwinConfig": {"depths": (1, 2), "num_heads": (2, 2), "window_size": 2},
    "Swinv2Config": {"depths": (1, 2), "num_heads": (2, 2), "window_size": 2},
    "T5Config": {"decoder_start_token_id": 0},
    "TextNetConfig": {"hidden_sizes": None, "image_size": (64, 64)},
    "TimmWrapperConfig": {
        "architecture": "vit_tiny_patch16_224",
        "model_args": VIT,
    },
    "xLSTMConfig": {"hidden_size": 128},
    "XmodConfig": {"languages": ("en_XX",), "default_language": "en_XX"},
    "ZambaConfig": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "Zamba2Config": {"layers_block_type": ["linear_attention", "hybrid"], "chunk_size": 8, "adapter_rank": 4},
    "ZayaConfig": {"num_experts_per_tok": 1},
}
FLOAT32 = ("Canine", "Inkling", "Mra", "XGLM")  # these cannot compute in float64


UNAVAILABLE = {
    "DinatForImageClassification": "needs natten",
    "Gemma4AssistantForCausalLM": "reads the states of another model",
    "Gemma4UnifiedAssistantForCausalLM": "reads the states of another model",
    "LayoutLMv2ForSequenceClassification": "needs detectron2",
    "LayoutLMv2ForTokenClassification": "needs detectron2",
}


def _transformers_entries() -> Iterator[Entry]:
    seen: set[str] = set()
    for task, group in TASKS.items():
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            for name in names if isinstance(names, tuple) else (names,):
                if name not in seen:
                    seen.add(name)
                    yield Entry(group, name, partial(_transformers_case, name, model_type, task))


def _transformers_case(name: str, model_type: str, task: str) -> Case:
    model_class = getattr(transformers, name)
    config_class = getattr(model_class, "config_class", None)
    if config_class is None or not dataclasses.is_dataclass(config_class):
        config_class = getattr(transformers, CONFIG_MAPPING_NAMES[model_type])
    if name in UNAVAILABLE:
        raise ValueError(f"{name} {UNAVAILABLE[name]}.")
    config = tiny_config(config_class, CONFIGS.get(name, {}), experts_implementation="eager")
    if task == "CAUSAL_LM" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    dtype = torch.float32 if name.startswith(FLOAT32) else torch.float64
    model = built(lambda: model_class(config), dtype)
    for part, special in SPECIAL.items():
        if name.startswith(part):
            return special(model)
    return {
        "IMAGE_CLASSIFICATION": _images_of,
        "VIDEO_CLASSIFICATION": _video_of,
        "SEQUENCE_CLASSIFICATION": lambda model: case(model, token_ids()),
        "TOKEN_CLASSIFICATION": lambda model: case(model, token_ids(), (3, 1)),
        "MASKED_LM": lambda model: case(model, token_ids(), (3, 9)),
        "CAUSAL_LM": lambda model: case(model, token_ids(), (LENGTH - 1, 9)),
    }[task](model)


def tiny_config(config_class: type, extra: dict[str, Any] | None = None, **further: Any) -> Any:
    """A small configuration: the usual sizes where the class has an attribute of that name, and its exceptions."""
    extra = {**CONFIGS.get(config_class.__name__, {}), **(extra or {})}
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    values = {name: _tiny_value(name, default, "depths" in fields) for name, default in fields.items()}
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:  # latent attention has keys for every head
        values["num_key_value_heads"] = 4
    for name, spec in config_class.sub_configs_defaults.items():
        part = spec.config_class
        if not dataclasses.is_dataclass(part):
            part = spec.get_config_class(spec.model_type)
        values[name] = tiny_config(part, extra.pop(name, None))
    values |= extra
    given = {name: value for name, value in values.items() if value is not None}
    return config_class(num_labels=CLASSES, **given, **further)


def _tiny_value(name: str, default: Any, staged: bool) -> Any:
    if isinstance(default, list | tuple):
        return type(default)([TINY_LISTS[name]] * len(default)) if name in TINY_LISTS else None
    if staged and name in ("patch_size", "image_size"):
        return {"image_size": 64}.get(name)
    return TINY.get(name)


def _images_of(model: nn.Module) -> Case:
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 32)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return case(model, noise(2, 3, height, width))


def _video_of(model: nn.Module) -> Case:
    return case(model, noise(2, 2, 3, 32, 32))


def _boxes(model: nn.Module, target: Any) -> Case:
    boxes = noise(2, LENGTH, 8).sigmoid()
    return case(model, token_ids(), target, (boxes,))


def _images_as_patches(model: nn.Module) -> Case:
    mask = torch.ones(2, 16, dtype=torch.long)
    return case(model, noise(2, 16, 3 * 8 * 8), 1, (mask, torch.tensor([[4, 4], [4, 4]])))


SPECIAL: dict[str, Callable[[nn.Module], Case]] = {
    "Bros": lambda model: _boxes(model, (3, 1)),
    "ImageGPT": lambda model: case(model, token_ids()),
    "ShieldGemma2": lambda model: case(model, (token_ids(1, 2, 3, 4), noise(2, 3, 32, 32))),
    "Siglip2": _images_as_patches,
    "VideoPrism": lambda model: case(model, noise(2, 2, 3, 32, 32), (0, 1)),
    "Perceiver": lambda model: _perceiver(model),
}


def _perceiver(model: nn.Module) -> Case:
    name = type(model).__name__
    if "Image" in name:
        return _images_of(model)
    return case(model, token_ids(), (3, 9) if "Masked" in name else 1)


def _torch_entries() -> Iterator[Entry]:
    for norm_first in (False, True):
        for batch_first in (True, False):
            for pooling in ("mean", "class"):
                order = "norm first" if norm_first else "norm last"
                name = f"TransformerEncoder, {order}, {'batch' if batch_first else 'tokens'} first, {pooling}"
                yield Entry("nn.TransformerEncoder", name, partial(_encoder_case, norm_first, batch_first, pooling))


def _encoder_case(norm_first: bool, batch_first: bool, pooling: str) -> Case:
    model = built(lambda: TextEncoder(norm_first, batch_first, pooling))
    padding = torch.zeros(2, LENGTH, dtype=torch.bool)
    padding[1, -3:] = True
    return case(model, token_ids(), 1, (padding,))


class TextEncoder(nn.Module):
    """A text classifier as in PyTorch's tutorials; the first word is its class token."""

    def __init__(self, norm_first: bool, batch_first: bool, pooling: str):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.positions = nn.Parameter(torch.zeros(LENGTH, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, norm_first=norm_first, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)
        self.batch_first = batch_first
        self.pooling = pooling

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        tokens = self.embedding(ids) + self.positions
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        if self.pooling == "class":
            return self.head(tokens[:, 0])
        if padding is None:
            return self.head(tokens.mean(1))
        words = (~padding).to(tokens.dtype)[..., None]
        return self.head((tokens * words).sum(1) / words.sum(1))


# small re-implementations of models that other libraries and hubs have

WIDTH, HEADS, PATCH, SIZE = 32, 4, 8, 32
PATCHES = (SIZE // PATCH) ** 2


def _own_entries() -> Iterator[Entry]:
    choices: dict[str, Callable[[], Case]] = {
        "DINO": partial(_image_case, lambda: Classifier(Dino())),
        "DINOv2 with registers": partial(_image_case, lambda: Classifier(Dino(registers=4, scale=True), mean=True)),
        "DINOv3": partial(_image_case, lambda: Classifier(Dino(registers=4, scale=True, rotary=True))),
        "open_clip image tower": partial(_image_case, lambda: ImageTower(CLASSES)),
        "CLIP, both towers": _clip_case,
        "MONAI ViT": partial(_image_case, MonaiViT),
        "attention pooling, projections": partial(_image_case, lambda: Pooled(PoolByProjections())),
        "attention pooling, nn.MultiheadAttention": partial(_image_case, lambda: Pooled(PoolByModule())),
        "class attention": partial(_image_case, lambda: Pooled(ClassAttention())),
        "keys with positions": partial(_image_case, lambda: Pooled(PositionedKeys())),
        "latent attention": partial(_image_case, lambda: Pooled(LatentAttention())),
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
