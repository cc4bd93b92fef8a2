"""How much of a model's raw throughput a score reaches: perturbed images per second against plain forward passes.

    make bench                                                   # after the explanations, on the CPU
    .venv/bin/python benchmarks/throughput.py --device cuda      # on a GPU

Writes throughput-DEVICE.md. All scores perturb random images for random models; the time per image that goes through
the model is compared with the time the model alone needs for as many images in batches of the same size.
"""

import argparse
import warnings
from importlib.metadata import version

import numpy as np
import quantus
import timm
import torch
from measuring import Run, Spread, machine, make_parser, spread, timed, write_page
from torch import Tensor, nn

import quantus_metrics

MODELS = {"resnet18": "ResNet-18", "vit_small_patch16_224": "ViT-S/16"}
STEPS = 2  # of Quantus' own scores, which perturb a whole batch in each


def main() -> None:
    """Measure, print and write the table."""
    parser = make_parser("The throughput of scores against that of the model.", repeats=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="models of timm")
    parser.add_argument("--batch", type=int, default=64, help="batch size")
    parser.add_argument("--boxes", type=int, default=100, help="boxes of each of 8 sizes")
    parser.add_argument("--images", type=int, default=1, help="images that box sensitivity scores")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    args = parser.parse_args()
    lines = ["| score | " + " | ".join(MODELS.get(name, name) for name in args.models) + " |"]
    lines.append("|---" * (len(args.models) + 1) + "|")
    columns = [measured(name, args) for name in args.models]
    lines += [f"| {row} | " + " | ".join(f"{column[row]:.2f}" for column in columns) + " |" for row in columns[0]]
    how = (
        "Images per second that pass the model during a score, as a fraction of plain forward passes without gradients "
        f"of {args.batch} images ({args.size} px): median of {args.repeats} rounds, quartiles in parentheses; each "
        "score is timed between two plain passes. What a score perturbs, sorts and correlates is in its time.\n\n"
        f"Box Sensitivity: {args.images} image(s), {args.boxes} boxes of each of 8 sizes. Quantus' own: {args.batch} "
        f"images, {STEPS} steps.\n\n"
        f"{machine(args.device)}, torch {version('torch')}, quantus {version('quantus')}, "
        f"timm {version('timm')}; `python benchmarks/throughput.py --device {args.device}`."
    )
    table = "\n".join(lines)
    write_page(args, "throughput", f"# The throughput of scores\n\n{table}\n\n{how}")
    print(table)


def measured(name: str, args: argparse.Namespace) -> dict[str, Spread]:
    """The fraction of the model's throughput that each score reaches."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().to(args.device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)

    @torch.no_grad()
    def plain() -> Tensor:
        out: Tensor = model(images)
        return out

    seen: list[int] = []
    model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    passed: dict[str, int] = {}

    def counted(label: str, run: Run) -> Run:
        def score() -> None:
            seen.clear()
            run()
            passed[label] = sum(seen)

        return score

    runs = {label: counted(label, run) for label, run in scores(model, images, args).items()}
    plain()
    timings = timed(MODELS.get(name, name), plain, runs, args.repeats, args.device)
    return {label: spread([passed[label] / args.batch / timing.ratio for timing in timings[label]]) for label in runs}


def scores(model: nn.Module, images: Tensor, args: argparse.Namespace) -> dict[str, Run]:
    """Box sensitivity, and Quantus' scores that perturb most alike; each run starts with an empty cache."""
    x = images.cpu().numpy()
    maps = np.random.default_rng(0).random((len(x), 1, args.size, args.size), dtype=np.float32)
    call = {"model": model, "device": args.device, "batch_size": args.batch}
    y = np.arange(len(x)) % 1000
    few = {"x_batch": x[: args.images], "y_batch": y[: args.images], "a_batch": maps[: args.images]}
    every = {"x_batch": x, "y_batch": y, "a_batch": maps}
    quiet = {"disable_warnings": True, "normalise": False}
    per_step = args.size * args.size // STEPS

    return {
        "Box Sensitivity": lambda: quantus_metrics.BoxSensitivity(num_boxes=args.boxes)(**call, **few),
        "Quantus Sensitivity-N": lambda: quantus.SensitivityN(features_in_step=per_step, n_max_percentage=1.0, **quiet)(
            **call, **every
        ),
        "Quantus Pixel-Flipping": lambda: quantus.PixelFlipping(features_in_step=per_step, **quiet)(**call, **every),
        "Quantus Region Perturbation": lambda: quantus.RegionPerturbation(
            patch_size=args.size // 8, regions_evaluation=STEPS, **quiet
        )(**call, **every),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Quantus'
    main()
