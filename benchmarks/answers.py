"""What explaining an answer costs: in plain passes over the prompt, and in plain generations.

    make bench                                        # with the others
    .venv/bin/python benchmarks/answers.py            # writes answers-DEVICE.md

A decoder of 12 layers, 512 wide, and a model of the same size that reads an image of 28 x 28 merged places as Qwen2-VL
does, both with random weights. A plain pass computes the last row of logits only, as generation does.
"""

import argparse
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
import transformers
from measuring import make_parser, seconds, spread, write_page
from torch import Tensor, nn
from tqdm import tqdm

from captum_ext import CDAM, IntegratedCDAM

TOKENS, WORDS, ANSWER = 1000, 8000, 20
TEXT = {
    **{"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12, "vocab_size": WORDS, "pad_token_id": 0},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048},
    **{"bos_token_id": 1, "eos_token_id": 2},
}


def main() -> None:
    """Measure, print and write."""
    parser = make_parser("The cost of explaining answers.", repeats=7)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; one is disturbed least by others")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    rows = []
    for name, make in {"a decoder (Llama)": llama, "with an image (Qwen2-VL)": qwen2_vl}.items():
        model, inputs = make()
        model, inputs = model.to(args.device).eval(), {key: value.to(args.device) for key, value in inputs.items()}
        rows += [(name, what, ratios) for what, ratios in measured(model, inputs, args).items()]
    text = (
        "# What explaining an answer costs\n\n"
        f"Models of 12 layers, 512 wide; prompts of {TOKENS} tokens. Medians of {args.repeats} rounds (quartiles), in "
        "each of which the plain pass and the others run after one another.\n\n"
        "| model | what | ratio |\n|---|---|---|\n"
        + "".join(f"| {name} | {what} | {spread(ratios):.3f} |\n" for name, what, ratios in rows)
        + f"\nThreads: {torch.get_num_threads()}; torch {version('torch')}, transformers {version('transformers')}; "
        "`python benchmarks/answers.py`."
    )
    write_page(args, "answers", text)
    print(text)


def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    """A decoder, and a prompt."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    return model, {"input_ids": torch.randint(3, WORDS, (1, TOKENS))}


def qwen2_vl() -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of images and texts, and a prompt with an image of 784 tokens."""
    torch.manual_seed(0)
    side, image = 28, 5
    text = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}
    vision = {"depth": 2, "embed_dim": 128, "num_heads": 4, "hidden_size": 512, "patch_size": 14}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=image)
    ids = torch.randint(6, WORDS, (1, TOKENS))
    ids[:, 10 : 10 + side * side] = image
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image).long(),
        "pixel_values": torch.randn(4 * side * side, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]]),
    }
    return transformers.Qwen2VLForConditionalGeneration(config), inputs


def measured(model: nn.Module, inputs: Mapping[str, Tensor], args: argparse.Namespace) -> dict[str, list[float]]:
    """Ratios of seconds, once a round."""
    options = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "do_sample": False}

    @torch.no_grad()
    def plain() -> None:
        model(**inputs, logits_to_keep=1, use_cache=False)

    def generate() -> None:
        model.generate(**inputs, **options)

    def explained() -> None:
        CDAM(model).explain_generation(inputs, ANSWER, generation={"min_new_tokens": ANSWER})

    against: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "CDAM of one token, in plain passes": (lambda: CDAM(model).attribute_answer(inputs, 7), plain),
        "Integrated CDAM of one token, 50 steps, in plain passes": (
            lambda: IntegratedCDAM(model).attribute_answer(inputs, 7, n_steps=50),
            plain,
        ),
        f"generating {ANSWER} tokens with a map of each, in plain generations": (explained, generate),
    }
    found: dict[str, list[float]] = {what: [] for what in against}
    for function, _ in against.values():
        function()
    for _ in tqdm(range(args.repeats), desc="answers", unit="round"):
        for what, (function, reference) in against.items():
            beside = seconds(reference, args.device)
            found[what].append(seconds(function, args.device) / beside)
    return found


if __name__ == "__main__":
    main()
