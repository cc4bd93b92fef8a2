"""One model of each class of transformers that classifies or predicts words."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .cases import CLASSES, END, IMAGE_TOKEN, LENGTH, VOCABULARY, Case, Entry, built, case, noise, token_ids
from .timm_models import VIT

TASKS = {
    "IMAGE_CLASSIFICATION": "transformers image classification",
    "VIDEO_CLASSIFICATION": "transformers video classification",
    "SEQUENCE_CLASSIFICATION": "transformers sequence classification",
    "TOKEN_CLASSIFICATION": "transformers token classification",
    "MASKED_LM": "transformers masked language models",
    "CAUSAL_LM": "transformers causal language models",
}


TINY = {
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embed_dim",
            "embedding_size",
            "emb_dim",
            "hidden_dim",
            "projection_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "d_ff",
            "d_inner",
            "dff",
            "dim_ff",
            "ffn_hidden_size",
        ),
        32,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "out_hidden_size"), 32
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth"), 2
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(
        ("num_heads", "attention_heads", "swa_num_attention_heads", "linear_num_value_heads", "mamba_n_heads"), 4
    ),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "kv_channels", "dim_head", "d_kv", "d_head", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"),
        8,
    ),
    **dict.fromkeys(
        ("index_head_dim", "swa_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8
    ),
    **dict.fromkeys(
        ("mamba_d_state", "state_size", "ssm_state_size", "mamba_chunk_size", "sliding_window", "global_head_dim"), 8
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "rotary_dim"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_frames", "type_vocab_size"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "n_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("vocab_size_per_layer_input", "entity_vocab_size", "pronunciation_vocab_size", "shape_vocab_size"), VOCABULARY
    ),
    **dict.fromkeys(
        ("hidden_size_per_layer_input", "laurel_rank", "entity_emb_size", "pronunciation_embed_dim", "shape_embed_dim"),
        16,
    ),
    **dict.fromkeys(("image_token_id", "image_token_index"), IMAGE_TOKEN),
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
    "sep_token_id": 3,
    "decoder_start_token_id": 0,
}
TINY_LISTS = {
    **dict.fromkeys(("depths", "depth"), 1),
    **dict.fromkeys(("hidden_sizes", "embed_dim", "embed_dims"), 16),
    **dict.fromkeys(("num_heads", "num_attention_heads", "mlp_ratios"), 2),
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


def transformers_entries() -> Iterator[Entry]:
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
