"""Tiny models with random weights, saved to folders with their tokenizers and processors."""

import torch
from tiny_tokenizer import WORDS, word_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEMPLATE = "{{ bos_token }} what is {% for one in messages %}{{ one['content'] }}{% endfor %} the"
SIDE, PATCH = 24, 8


def save_text_model(folder, template=None):
    """A decoder of the words of the tiny tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **SIZES, **SPECIAL))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return _saved(folder, model, tokenizer)


def save_image_model(folder):
    """A model that reads images of 24 x 24 pixels, cut from the middle, in 3 x 3 patches."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(**SIZES, image_size=SIDE, patch_size=PATCH)
    text = LlamaConfig(vocab_size=len(tokenizer), **SIZES, **SPECIAL)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_token, vision_feature_select_strategy="default"
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        pixels, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return _saved(folder, LlavaForConditionalGeneration(config), processor)


def _saved(folder, model, words):
    model.eval().save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
