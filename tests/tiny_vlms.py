"""Tiny models of images and texts with random weights, and their inputs made by the libraries' own image processors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

IMAGE, BOUNDARY = 7, 5
TEXT = {
    **{"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512},
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


@dataclass
class Tiny:
    """A model, and how pictures become its inputs.

    Attributes:
        make: The model's constructor.
        process: From a list of pictures (height, width, 3) to the tensors that belong to images.
        tokens: From these tensors and the number of a picture to the prompt's tokens for it.
        sizes: Two sizes of pictures that the processor does not resize.
        cells: Of each size how many places the map has.
    """

    make: Callable[[], nn.Module]
    process: Callable[[list[np.ndarray]], dict[str, Any]]
    tokens: Callable[[dict[str, Any], int], list[int]]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    cells: tuple[tuple[int, int], tuple[int, int]]

    def model(self, *, local: bool = False) -> nn.Module:
        """The model; `local`: without attention between patches, so that each token sees its own part only."""
        transformers.logging.set_verbosity_error()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.make().double().eval()
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        if local:
            ends = ("out_proj", "attn.proj", "attention.proj", "self_attn.o_proj")
            for name, module in model.named_modules():
                if ("vision" in name or "visual" in name) and name.endswith(ends):
                    module.weight.data.zero_()
                    if module.bias is not None:
                        module.bias.data.zero_()
        return model

    def inputs(self, prompts: list[list[Any]], side: str = "left") -> dict[str, Any]:
        """What a processor returns for prompts of token ids and pictures."""
        pictures = [part for prompt in prompts for part in prompt if isinstance(part, np.ndarray)]
        tensors = self.process(pictures)
        number, rows = 0, []
        for prompt in prompts:
            rows.append([])
            for part in prompt:
                if isinstance(part, np.ndarray):
                    rows[-1] += self.tokens(tensors, number)
                    number += 1
                else:
                    rows[-1].append(part)
        size = max(map(len, rows))
        padded = [[0] * (size - len(r)) + r if side == "left" else r + [0] * (size - len(r)) for r in rows]
        ids = torch.tensor(padded)
        found = {"input_ids": ids, "attention_mask": (ids != 0).long(), **tensors}
        return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in found.items()} | {
            name: (ids == IMAGE).long() for name in self.types
        }

    types: tuple[str, ...] = ()


def _fixed(count: int) -> Callable[[dict[str, Any], int], list[int]]:
    return lambda tensors, number: [BOUNDARY, *[IMAGE] * count, 6]


def llava() -> Tiny:
    vision = transformers.CLIPVisionConfig(**VISION, image_size=32, patch_size=8)
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=vision,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
    )
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return Tiny(
        lambda: transformers.LlavaForConditionalGeneration(config),
        lambda pictures: dict(processor(pictures, return_tensors="pt")),
        _fixed(16),
        ((32, 32), (32, 32)),
        ((4, 4), (4, 4)),
    )


def gemma3() -> Tiny:
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    config = transformers.Gemma3Config(
        text_config={**TEXT, **layers},
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        mm_tokens_per_image=16,
    )
    processor = transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return Tiny(
        lambda: transformers.Gemma3ForConditionalGeneration(config),
        lambda pictures: {"pixel_values": processor(pictures, return_tensors="pt")["pixel_values"]},
        _fixed(16),
        ((32, 32), (32, 32)),
        ((4, 4), (4, 4)),
        types=("token_type_ids",),
    )


def _qwen(name: str, vision: dict[str, Any], text: dict[str, Any]) -> Tiny:
    config = getattr(transformers, f"{name}Config")(
        text_config={**TEXT, **text},
        vision_config={"depth": 1, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, **vision},
        **{"image_token_id": IMAGE, "video_token_id": 8, "vision_start_token_id": BOUNDARY, "vision_end_token_id": 6},
    )
    processor = transformers.Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 9999}
    )

    def tokens(tensors: dict[str, Any], number: int) -> list[int]:
        return [BOUNDARY, *[IMAGE] * (int(tensors["image_grid_thw"][number].prod()) // 4), 6]

    return Tiny(
        lambda: getattr(transformers, f"{name}ForConditionalGeneration")(config),
        lambda pictures: dict(processor(pictures, return_tensors="pt")),
        tokens,
        ((16, 24), (32, 16)),
        ((2, 3), (4, 2)),
        types=("mm_token_type_ids",),
    )


def qwen2_vl() -> Tiny:
    return _qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}, MROPE)


def qwen2_5_vl() -> Tiny:
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [0]}
    return _qwen("Qwen2_5_VL", vision, MROPE)


def qwen3_vl() -> Tiny:
    vision = {
        **{"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48},
        **{"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    }
    return _qwen("Qwen3VL", vision, {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}})


def idefics3() -> Tiny:
    config = transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    processor = transformers.Idefics3ImageProcessor(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})

    def process(pictures: list[np.ndarray]) -> dict[str, Any]:
        found = processor([[one] for one in pictures], return_tensors="pt", return_row_col_info=True)
        shapes = [(r[0], c[0]) for r, c in zip(found.pop("rows"), found.pop("cols"), strict=True)]
        return {**found, "_shapes": shapes}

    def tokens(tensors: dict[str, Any], number: int) -> list[int]:
        """As the processor expands an image: <fake><row_r_col_c><image>... and a line break behind each row."""
        rows, columns = tensors["_shapes"][number]
        made: list[int] = []
        for row in range(rows):
            for column in range(columns):
                made += [BOUNDARY, 20 + 4 * row + column, *[IMAGE] * 16]
            made += [3]
        return [*made, 3, BOUNDARY, 19, *[IMAGE] * 16, BOUNDARY] if rows else [BOUNDARY, 19, *[IMAGE] * 16, BOUNDARY]

    return Tiny(
        lambda: transformers.Idefics3ForConditionalGeneration(config),
        process,
        tokens,
        ((64, 96), (96, 64)),
        ((8, 12), (12, 8)),
    )


def llava_next() -> Tiny:
    vision = transformers.CLIPVisionConfig(**VISION, image_size=16, patch_size=4)
    places = [[32, 16], [16, 32], [32, 32]]
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=vision,
        image_grid_pinpoints=places,
        **{"image_token_index": IMAGE, "image_token_id": IMAGE},
    )
    processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=places
    )

    def tokens(tensors: dict[str, Any], number: int) -> list[int]:
        height, width = (int(x) for x in tensors["image_sizes"][number])
        return [IMAGE] * (16 + (height // 4) * (width // 4 + 1))

    return Tiny(
        lambda: transformers.LlavaNextForConditionalGeneration(config),
        lambda pictures: dict(processor(pictures, return_tensors="pt")),
        tokens,
        ((32, 24), (16, 32)),
        ((8, 6), (4, 8)),
    )


FAMILIES = {
    "LLaVA": llava,
    "Gemma 3": gemma3,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "Idefics3": idefics3,
    "LLaVA-NeXT": llava_next,
}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
