"""Explain real images with CDAM and its baselines, draw them, and score them with Quantus.

    python examples/demo.py                                   # scenes of handwritten digits, with bundled weights
    python examples/demo.py --image cat.jpg --model vit_small_patch16_224 --pretrained

Writes pictures and scores to `out/`.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from methods import Explain, explanations
from picture_grid import picture_grid
from PIL import Image
from scores import score, summary, winners_over
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor
from tqdm import tqdm

from captum_ext import CDAM, AttentionMap, IntegratedCDAM, SmoothCDAM, overlay_figure
from xai_compare import digit_vit
from xai_compare.digit_scenes import Scenes, make_scenes


def main() -> None:
    """Explain the user's image, or digit scenes."""
    parser = argparse.ArgumentParser(description="CDAM and its baselines on real images.")
    parser.add_argument("--image", type=Path, help="an image to explain; without it, digit scenes")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="any timm ViT, for --image")
    parser.add_argument("--pretrained", action="store_true", help="load the model's pretrained weights, for --image")
    parser.add_argument("--scenes", type=int, default=24, help="number of digit scenes to score")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    np.random.seed(0)  # Quantus draws the pixels it removes from the global state
    if args.image is None:
        digits_demo(args.scenes, args.out)
    else:
        image_demo(args.image, args.model, args.pretrained, args.out)


def digits_demo(count: int, out: Path) -> None:
    """Explain two digits of every scene with every method; print a table, write a picture and the scores."""
    start = time.perf_counter()
    model = digit_vit.load()
    found = digit_vit.top_digits_found(model, make_scenes(1000, "test", digits=2, seed=1))
    print(f"The model puts both digits on top in {found.float().mean():.1%} of 1000 unseen two-digit scenes.")
    parts = [make_scenes(count - count // 2, digits=2, seed=2), make_scenes(count // 2, digits=3, seed=3)]
    images, targets, digits = (torch.cat(x) for x in zip(*map(two_questions, parts), strict=True))

    maps = explain_all(explanations(model), images, targets)
    scores = score(model, images, targets, digits, maps)
    scores.to_csv(out / "scores.csv", index=False)
    picture_grid(images, targets, digits, maps, rows=(0, 1, 2, 3, count, count + 1)).savefig(
        out / "digits.png", dpi=110
    )

    table = summary(scores)
    print(f"\nMean scores of {len(images)} explanations, two digits of each of {count} scenes; higher is better:\n")
    print(table.round(3).to_string())
    for metric, better in winners_over(table, "CDAM").items():
        print(f"{metric}: {', '.join(better) if better else 'no method'} above CDAM")
    print(f"\nwrote {out / 'digits.png'} and {out / 'scores.csv'} in {time.perf_counter() - start:.0f} s")


def two_questions(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Each scene twice, asking for its first and its second digit: images, targets, where the digit is."""
    digits = torch.stack([scenes.mask(0), scenes.mask(1)], dim=1).flatten(0, 1)
    return scenes.images.repeat_interleave(2, 0), scenes.labels[:, :2].flatten(), digits


def explain_all(methods: dict[str, Explain], images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The maps (samples, 1, height, width) of every method."""
    maps: dict[str, list[Tensor]] = {name: [] for name in methods}
    batches = list(zip(images.split(8), targets.split(8), strict=True))
    with tqdm(total=len(methods) * len(batches), desc="explaining", unit="batch") as bar:
        for name, explain in methods.items():
            for batch in batches:
                maps[name].append(explain(*batch))
                bar.update()
    return {name: torch.cat(parts) for name, parts in maps.items()}


def image_demo(path: Path, name: str, pretrained: bool, out: Path) -> None:
    """Explain the two likeliest classes of an image with the CDAM family and the last attention."""
    if not pretrained:
        warnings.warn("The weights are random, so the maps mean nothing; add --pretrained.", stacklevel=1)
    model = timm.create_model(name, pretrained=pretrained).eval()
    config = resolve_model_data_config(model)
    pixels = create_transform(**config)(Image.open(path).convert("RGB"))[None]
    classes = model(pixels).softmax(1)[0].topk(2)
    shape = (-1, 1, 1)
    image = (pixels[0] * torch.tensor(config["std"]).view(shape) + torch.tensor(config["mean"]).view(shape)).clamp(0, 1)

    maps = {}
    for method in (CDAM, SmoothCDAM, IntegratedCDAM):
        pair = method(model).attribute_targets(pixels, classes.indices)[0]
        maps |= {f"{method.__name__}\nclass {int(c)}": heat for c, heat in zip(classes.indices, pair, strict=True)}
    # Each map is drawn on its own scale: the attention has another unit than a logit.
    maps["Attention"] = AttentionMap(model).attribute(pixels)[0, 0]
    figure = overlay_figure(image, {title: heat / heat.abs().max() for title, heat in maps.items()}, scale=1)
    target = out / f"{path.stem}_{name}.png"
    figure.savefig(target, dpi=110)
    for index, probability in zip(classes.indices, classes.values, strict=True):
        print(f"class {int(index)}: {probability:.1%}")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
