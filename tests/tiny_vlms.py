"""Tiny random models that read images and text, with the processors of their families and prompts with pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "what", "is", "here", "and", "there", "a", "dog", "cat")
IMAGE_WORDS = (
    *("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|image|>", "<|video|>", "<boi>", "<eoi>", "<soft>"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "<fake_token_around_image>"),
    *("<end_of_utterance>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "\n", "\n\n", "\n\n\n"),
    *("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    *(f"TILE_{number}" for number in range(1, 13)),
)
IDS = {word: number for number, word in enumerate((*WORDS, *IMAGE_WORDS))}
TEXT = {
    "vocab_size": len(IDS) + 5,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 4,
}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def tokenizer(**named: str) -> Any:
    """One token for each word, and for each word of images; further names for some of them."""
    made = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named,
    )
    found.add_tokens(list(IMAGE_WORDS), special_tokens=True)
    return found


@dataclass(frozen=True)
class Family:
    """How a model and its processor are made, what stands for an image in a text, and the pictures' sizes.

    The first prompt has the first pictures, the second the last one; `sizes` are (width, height).
    """

    model: Callable[[], nn.Module]
    processor: Callable[[], Any]
    image: str
    sizes: tuple[tuple[int, int], ...] = ((48, 32), (32, 64), (32, 32))


def _clip() -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(**VISION, image_size=16)


def _siglip(size: int = 16) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**VISION, image_size=size, vision_use_head=False)


def _llama() -> hf.LlamaConfig:
    return hf.LlamaConfig(**TEXT)


SIDE = {"height": 16, "width": 16}
PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48], [48, 16]]


def _llava() -> nn.Module:
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=_clip(), text_config=_llama(), image_token_id=IDS["<image>"], vision_feature_layer=-1
        )
    )


def _llava_processor() -> Any:
    images = hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIDE)
    return hf.LlavaProcessor(images, tokenizer(), 4, "default", num_additional_image_tokens=1)


def _next() -> nn.Module:
    config = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=_llama(),
        image_token_id=IDS["<image>"],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _next_processor() -> Any:
    images = hf.LlavaNextImageProcessor(size=SIDE, crop_size=SIDE, image_grid_pinpoints=PINPOINTS)
    return hf.LlavaNextProcessor(images, tokenizer(), 4, "default", num_additional_image_tokens=1)


def _onevision() -> nn.Module:
    config = hf.LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IDS["<image>"],
        video_token_id=IDS["<video>"],
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_aspect_ratio="anyres_max_2",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _onevision_processor() -> Any:
    images = hf.LlavaOnevisionImageProcessor(size=SIDE, image_grid_pinpoints=PINPOINTS)
    return hf.LlavaOnevisionProcessor(
        images,
        tokenizer(),
        hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )


QWEN_TOKENS = {
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": IDS["<|vision_start|>"],
    "vision_end_token_id": IDS["<|vision_end|>"],
}


def _qwen2() -> nn.Module:
    vision = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "patch_size": 4}
    config = hf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **QWEN_TOKENS)
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen25() -> nn.Module:
    vision = {
        **{"hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 32},
        **{"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
    }
    config = hf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **QWEN_TOKENS)
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3() -> nn.Module:
    vision = {
        **{"hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 32},
        **{"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
    }
    text = {**TEXT, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    return hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


def _qwen_processor(family: str) -> Callable[[], Any]:
    def make() -> Any:
        images = hf.Qwen2VLImageProcessor(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096})
        videos = hf.Qwen3VLVideoProcessor() if "3" in family else hf.Qwen2VLVideoProcessor()
        return getattr(hf, family)(images, tokenizer(), videos)

    return make


def _glm() -> nn.Module:
    vision = {
        **{"hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 32},
        **{"patch_size": 4, "image_size": 32},
    }
    config = hf.Glm4vConfig(
        text_config={**TEXT, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
        vision_config=vision,
        image_token_id=IDS["<|image|>"],
        video_token_id=IDS["<|video|>"],
    )
    return hf.Glm4vForConditionalGeneration(config)


def _glm_processor() -> Any:
    images = hf.Glm4vImageProcessor(patch_size=4, size={"shortest_edge": 64, "longest_edge": 8192})
    return hf.Glm4vProcessor(images, tokenizer(), hf.Glm4vVideoProcessor())


def _gemma3() -> nn.Module:
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**TEXT, layer_types=["sliding_attention", "full_attention"]),
        vision_config=_siglip(),
        mm_tokens_per_image=4,
        image_token_id=IDS["<soft>"],
        boi_token_id=IDS["<boi>"],
        eoi_token_id=IDS["<eoi>"],
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _gemma3_processor() -> Any:
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    return hf.Gemma3Processor(hf.Gemma3ImageProcessor(size=SIDE), words, image_seq_length=4)


def _paligemma() -> nn.Module:
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**TEXT),
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=16, projection_dim=32, vision_use_head=False),
        image_token_id=IDS["<image>"],
        projection_dim=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _paligemma_processor() -> Any:
    images = hf.SiglipImageProcessor(size=SIDE)
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, tokenizer(image_token="<image>"))


def _idefics3() -> nn.Module:
    config = hf.Idefics3Config(
        text_config=_llama(),
        vision_config={**VISION, "image_size": 16},
        scale_factor=2,
        image_token_id=IDS["<image>"],
        pad_token_id=0,
    )
    return hf.Idefics3ForConditionalGeneration(config)


def _idefics3_processor() -> Any:
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    return hf.Idefics3Processor(images, tokenizer(), image_seq_len=4)


def _smolvlm() -> nn.Module:
    config = hf.SmolVLMConfig(
        text_config=_llama(),
        vision_config={**VISION, "image_size": 16},
        scale_factor=2,
        image_token_id=IDS["<image>"],
        pad_token_id=0,
    )
    return hf.SmolVLMForConditionalGeneration(config)


def _smolvlm_processor() -> Any:
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    return hf.Idefics3Processor(images, tokenizer(), image_seq_len=4)  # SmolVLM's own needs num2words, for videos


def _internvl() -> nn.Module:
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**VISION, image_size=[16, 16]),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IDS["<IMG_CONTEXT>"],
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config)


def _internvl_processor() -> Any:
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = hf.GotOcr2ImageProcessor(size=SIDE, crop_to_patches=True, max_patches=6)
    return hf.InternVLProcessor(images, words, hf.InternVLVideoProcessor(), image_seq_length=4)


def _mistral3() -> nn.Module:
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**VISION, head_dim=8, image_size=64),
        text_config=hf.MistralConfig(**TEXT),
        image_token_id=IDS["[IMG]"],
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return hf.Mistral3ForConditionalGeneration(config)


def _pixtral() -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.PixtralVisionConfig(**VISION, head_dim=8, image_size=64),
        text_config=hf.MistralConfig(**TEXT),
        image_token_id=IDS["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return hf.LlavaForConditionalGeneration(config)


def _pixtral_processor(merge: int) -> Callable[[], Any]:
    def make() -> Any:
        images = hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 4, "width": 4})
        return hf.PixtralProcessor(images, tokenizer(), patch_size=4, spatial_merge_size=merge)

    return make


FAMILIES = {
    "llava": Family(_llava, _llava_processor, "<image>"),
    "llava_next": Family(_next, _next_processor, "<image>", ((50, 30), (20, 48), (32, 32))),
    "llava_onevision": Family(_onevision, _onevision_processor, "<image>", ((48, 30), (30, 40), (32, 16))),
    "qwen2_vl": Family(_qwen2, _qwen_processor("Qwen2VLProcessor"), "<|vision_start|><|image_pad|><|vision_end|>"),
    "qwen2_5_vl": Family(
        _qwen25, _qwen_processor("Qwen2_5_VLProcessor"), "<|vision_start|><|image_pad|><|vision_end|>"
    ),
    "qwen3_vl": Family(_qwen3, _qwen_processor("Qwen3VLProcessor"), "<|vision_start|><|image_pad|><|vision_end|>"),
    "glm4v": Family(_glm, _glm_processor, "<|vision_start|><|image|><|vision_end|>"),
    "gemma3": Family(_gemma3, _gemma3_processor, "<boi>"),
    "paligemma": Family(_paligemma, _paligemma_processor, "<image>"),
    "idefics3": Family(_idefics3, _idefics3_processor, "<image>", ((48, 32), (16, 16), (32, 48))),
    "smolvlm": Family(_smolvlm, _smolvlm_processor, "<image>", ((48, 32), (16, 16), (32, 48))),
    "internvl": Family(_internvl, _internvl_processor, "<IMG_CONTEXT>", ((48, 32), (16, 16), (32, 48))),
    "mistral3": Family(_mistral3, _pixtral_processor(2), "[IMG]"),
    "pixtral": Family(_pixtral, _pixtral_processor(1), "[IMG]", ((24, 16), (12, 24), (16, 16))),
}


def model_of(name: str) -> nn.Module:
    """A random model of a family, in float64."""
    torch.manual_seed(0)
    model = FAMILIES[name].model().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pictures(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Random pictures (3, height, width) in uint8 of sizes (width, height), with structure of a few pixels."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(40, 216, (3, height, width), generator=generator, dtype=torch.uint8) for width, height in sizes
    ]


def texts_of(name: str, number: int) -> list[str]:
    """Two prompts, the first with all pictures but the last, the second with the last one."""
    image = FAMILIES[name].image
    return ["what is " + " and ".join([image] * (number - 1)) + " here", f"a {image} dog"]


def process(
    name: str, images: Sequence[Tensor], side: str = "left", texts: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a family's processor makes of two prompts, or of one with all pictures; in float64."""
    found = FAMILIES[name].processor()(
        images=[list(images[:-1]), [images[-1]]] if texts is None else [list(images)],
        text=texts_of(name, len(images)) if texts is None else list(texts),
        return_tensors="pt",
        padding=True,
        padding_side=side,
    )
    return {key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in found.items()}


def build(name: str, side: str = "left") -> tuple[nn.Module, dict[str, Any]]:
    """A family's model and the inputs of two prompts with pictures."""
    return model_of(name), process(name, pictures(FAMILIES[name].sizes), side)
