"""What xai-compare adds to the methods and metrics it calls, what methods share, and how much memory it takes.

    make bench                                                   # with the others
    .venv/bin/python benchmarks/comparison.py --samples 32

Writes comparison-DEVICE.md. On scenes of digits with the bundled ViT, and with a network whose pass takes a few
milliseconds: processor seconds of a whole run (checks, statistics and report included) against a loop that calls the
same methods and metrics by hand; other work on the machine hardly changes these. With the ViT: how many images go
through the model for the metrics of one method and of all, and the largest memory of runs of different lengths, each
in a process of its own.
"""

import argparse
import itertools
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import make_parser, seconds, spread, write_page
from torch import Tensor, nn
from tqdm import tqdm

from quantus_metrics import BoxSensitivity, ClassDiscrimination, Compactness, EffectiveAverageDrop, SoftAverageDrop
from xai_compare import METHODS, METRICS, compare, digit_vit, methods_named
from xai_compare.digit_scenes import make_scenes

BATCH = 16
CAMS = ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigencam")
OF_A_NETWORK = (*CAMS, "ixg", "saliency", "guided-backprop", "occlusion")


def main() -> None:
    """Measure, print and write."""
    parser = make_parser("The cost of xai-compare itself.", repeats=3)
    parser.add_argument("--samples", type=int, default=64, help="number of scenes")
    parser.add_argument("--boxes", type=int, default=25, help="of each of 8 sizes, in box sensitivity")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads; one is disturbed least by other processes"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenes = make_scenes(args.samples, digits=2, seed=0)
    model = digit_vit.load().to(args.device)
    network = convolutional().to(args.device)
    labels = scenes.labels[:, 0]
    ratios = {
        "the bundled ViT": overhead(model, scenes.images, labels, METHODS, args),
        f"a network of {milliseconds(network, scenes.images[:1], args.device):.1f} ms a pass": overhead(
            network, scenes.images, labels, OF_A_NETWORK, args
        ),
    }
    rows = {count: passed(model, scenes.images[:BATCH], args, METHODS[:count]) for count in (1, len(METHODS))}
    memory = {count: largest_memory(count, args) for count in (BATCH, 2 * BATCH, 6 * BATCH)}
    text = (
        "# What a comparison costs beside its methods and metrics\n\n"
        f"{len(METHODS)} methods, {len(METRICS)} metrics, {args.samples} scenes of digits, {args.boxes} boxes of each "
        "size.\n\n"
        "| | |\n|---|---|\n"
        + "".join(
            f"| processor seconds of a whole run with {name}, in those of a loop by hand: median of {args.repeats} "
            f"rounds (quartiles) | {spread(found):.3f} |\n"
            for name, found in ratios.items()
        )
        + f"| images that pass the model for the metrics of {len(METHODS)} methods, in those of one | "
        f"{rows[len(METHODS)] / rows[1]:.3f} |\n"
        + "".join(f"| largest memory of a run of {count} samples, MB | {m:.0f} |\n" for count, m in memory.items())
        + f"\nThreads: {torch.get_num_threads()}; torch {version('torch')}; `python benchmarks/comparison.py`."
    )
    write_page(args, "comparison", text)
    print(text)


def convolutional() -> nn.Module:
    """A small network of convolutions for the scenes, with random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for given, made in itertools.pairwise((1, 32, 64, 64, 64)):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def milliseconds(model: nn.Module, image: Tensor, device: str) -> float:
    """Of a forward pass of one image, at best."""
    with torch.no_grad():
        return 1000 * min(seconds(lambda: model(image.to(device)), device) for _ in range(20))


def overhead(
    model: nn.Module, images: Tensor, labels: Tensor, methods: Sequence[str], args: argparse.Namespace
) -> list[float]:
    """A whole run's seconds divided by those of the loop by hand, once a round."""
    timed = processor_seconds if args.device == "cpu" else partial(seconds, device=args.device)
    ratios = []
    for _ in tqdm(range(args.repeats), desc="overhead", unit="round"):
        hand = timed(lambda: by_hand(model, images, labels, methods, args.boxes))
        ratios.append(timed(lambda: run(model, images, labels, args.boxes, methods)) / hand)
    return ratios


def processor_seconds(work: Callable[[], object]) -> float:
    """The time that processors spend on a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    boxes: int,
    methods: Sequence[str] = METHODS,
    metrics: Sequence[str] = METRICS,
    options: Mapping[str, Any] | None = None,
) -> None:
    """The comparison, into a folder that is thrown away."""
    options = options or ({"box-sensitivity": {"num_boxes": boxes}} if "box-sensitivity" in metrics else {})
    with tempfile.TemporaryDirectory() as folder:
        compare(
            model,
            (images, labels),
            out=Path(folder) / "run",
            methods=methods,
            metrics=metrics,
            targets="label",
            options=options,
            batch_size=BATCH,
        )


def by_hand(model: nn.Module, images: Tensor, labels: Tensor, methods: Sequence[str], boxes: int) -> None:
    """The same explanations and scores, without anything else."""
    box = BoxSensitivity(num_boxes=boxes)
    metrics = [SoftAverageDrop(), EffectiveAverageDrop(), box, ClassDiscrimination(box), Compactness()]
    explains = {name: method.explain({}, BATCH) for name, method in methods_named(methods).items()}
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        with torch.no_grad():
            other = model(x).scatter(1, y[:, None], float("-inf")).argmax(1)
        for explain in explains.values():
            maps, wrong = explain(model, x, y), explain(model, x, other)
            for metric in metrics:
                further = {"wrong_a_batch": wrong} if isinstance(metric, ClassDiscrimination) else {}
                metric(model, x.numpy(), y.numpy(), maps, channel_first=True, **further)


def passed(model: nn.Module, images: Tensor, args: argparse.Namespace, methods: Sequence[str]) -> int:
    """The number of images that go through the model for the metrics of some methods."""
    seen: list[int] = []
    hook = model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    try:
        labels = torch.zeros(len(images), dtype=torch.long)
        run(model, images, labels, args.boxes, methods, METRICS)
        everything = sum(seen)
        seen.clear()
        # The same explanations, of two classes, with scores that hardly run the model
        few = ["compactness", "class-discrimination"]
        options = {"class-discrimination": {"metric": BoxSensitivity([12], num_boxes=2)}}
        run(model, images, labels, args.boxes, methods, few, options)
        return everything - (sum(seen) - 2 * len(images))
    finally:
        hook.remove()


def largest_memory(samples: int, args: argparse.Namespace) -> float:
    """The largest resident memory of a process that runs a comparison of so many samples, in MB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_of, (samples, args.boxes))


def _memory_of(samples: int, boxes: int) -> float:
    warnings.simplefilter("ignore")
    scenes = make_scenes(samples, digits=2, seed=0)
    run(digit_vit.load(), scenes.images, scenes.labels[:, 0], boxes, methods=("cdam", "ixg", "gradcam"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Quantus'
    main()
