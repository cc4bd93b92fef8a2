"""Tiny models in float64 whose tokens are left out of the last attention, one kind each."""

from typing import Any, NamedTuple

import torch
import transformers
from toy_models import tiny_vit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    GptOssConfig,
    GptOssForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

TOKENS = "runs from the tokens"
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)).double()
WORDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(6))
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PICTURES = SIZES | {"image_size": 32, "patch_size": 8, "num_labels": 3}
TEXTS = SIZES | {"vocab_size": 60, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 64}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32}
GROUPED = TEXTS | {"num_key_value_heads": 2, "head_dim": 8}
SINKS = GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_scaling": None, "sliding_window": 64}


class Game(NamedTuple):
    """A model, its inputs, and what is known of it.

    Attributes:
        model: The model.
        inputs: Its inputs and further arguments.
        tokens: How many there are.
        way: How effects are found.
        kind: What its last attention is normalised by: torch's fused attention, or a softmax.
    """

    model: Any
    inputs: tuple[torch.Tensor, ...]
    tokens: int
    way: str = "closed form"
    kind: str = "fused"

    def logits(self, returned):
        return getattr(returned, "logits", returned)


def shaken(model):
    """Random weights that are large enough for effects, in float64."""
    transformers.logging.set_verbosity_error()
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def padded(side):
    words, mask = WORDS.clone(), torch.ones_like(WORDS)
    place = slice(3) if side == "left" else slice(-3, None)
    words[0, place], mask[0, place] = 0, 0
    return words, mask


def eager(config):
    config._attn_implementation = "eager"
    return config


def swin():
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    return SwinTransformer(img_size=32, patch_size=4, num_classes=3, **sizes)


def dense(config):
    config._experts_implementation = "eager"  # the other one knows no float64
    return eager(config)


GAMES = {
    "class token": lambda: Game(shaken(tiny_vit()), (IMAGES,), 17),
    "class token, two registers": lambda: Game(shaken(tiny_vit(reg_tokens=2)), (IMAGES,), 19),
    "average pooling": lambda: Game(shaken(tiny_vit(global_pool="avg")), (IMAGES,), 17, way=TOKENS),
    "attention pooling": lambda: Game(shaken(tiny_vit(global_pool="map", class_token=False)), (IMAGES,), 16),
    "Swin, biases": lambda: Game(shaken(swin()), (IMAGES,), 16, way=TOKENS, kind="softmax"),
    "transformers ViT": lambda: Game(shaken(ViTForImageClassification(ViTConfig(**PICTURES))), (IMAGES,), 17),
    "transformers ViT, weights in float32": lambda: Game(
        shaken(ViTForImageClassification(eager(ViTConfig(**PICTURES)))), (IMAGES,), 17, way=TOKENS, kind="softmax"
    ),
    "DINOv2 with registers": lambda: Game(
        shaken(Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**PICTURES))),
        (IMAGES,),
        21,
        way=TOKENS,
    ),
    "BERT, padded": lambda: Game(shaken(BertForSequenceClassification(BertConfig(**TEXTS))), padded("right"), 7),
    "DeBERTa, heads on the batch axis": lambda: Game(
        shaken(DebertaV2ForSequenceClassification(DebertaV2Config(**TEXTS, **DISENTANGLED))),
        (WORDS,),
        7,
        way=TOKENS,
        kind="softmax",
    ),
    "Llama, padded": lambda: Game(shaken(LlamaForSequenceClassification(LlamaConfig(**GROUPED))), padded("left"), 7),
    "gpt-oss, sinks": lambda: Game(
        shaken(GptOssForSequenceClassification(dense(GptOssConfig(**SINKS)))),
        (WORDS,),
        7,
        way="full runs of the model",
        kind="softmax",
    ),
}
