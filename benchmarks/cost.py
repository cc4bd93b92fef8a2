"""What an explanation costs, as a multiple of one plain forward pass without gradients.

    make bench                                                          # ViT-S/16, batch 4
    .venv/bin/python benchmarks/cost.py --model vit_base_patch16_224 --batch 1 --repeats 9

All methods run interleaved in one process; medians with the smallest and largest ratio over the repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from captum.attr import InputXGradient, LayerGradientXActivation
from tqdm import tqdm

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Cost of explanations against a plain forward pass.")
    parser.add_argument("--model", default="vit_small_patch16_224", help="a timm ViT")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(args.model).eval().to(args.device)
    size = model.patch_embed.img_size
    images = torch.randn(args.batch, 3, *size, device=args.device).requires_grad_()

    @torch.no_grad()
    def forward() -> None:
        model(images)

    layer = LayerGradientXActivation(model, model.blocks[-1].norm1)
    methods: dict[str, Callable[[], object]] = {
        "plain forward, no gradients": forward,
        "CDAM": lambda: CDAM(model).attribute(images, 1),
        "CDAM, 10 targets": lambda: CDAM(model).attribute_targets(images, list(range(10))),
        "IntegratedCDAM, 50 steps": lambda: IntegratedCDAM(model).attribute(images, 1),
        "SmoothCDAM, 50 samples": lambda: SmoothCDAM(model).attribute(images, 1),
        "Captum LayerGradientXActivation, same layer": lambda: layer.attribute(images, 1),
        "Captum InputXGradient": lambda: InputXGradient(model).attribute(images, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for turn in tqdm(range(args.repeats + 1), desc="rounds", unit="round"):
        for name, run in methods.items():
            elapsed = timed(run, args.device)
            if turn:  # the first round warms up
                seconds[name].append(elapsed)

    plain = seconds["plain forward, no gradients"]
    threads = torch.get_num_threads()
    print(f"\n{args.model}, batch {args.batch}, {args.device}, {threads} threads, torch {torch.__version__}")
    print(f"one plain forward: {statistics.median(plain):.3f} s\n")
    print("| method | forwards | smallest - largest |\n|---|---|---|")
    for name, times in seconds.items():
        ratios = [t / f for t, f in zip(times, plain, strict=True)]
        print(f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f} - {max(ratios):.2f} |")


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds that a call takes."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
