"""The cost of the wrapped models: forward passes and training steps against those of the model they wrap.

    make bench                                                 # after the scores, on the CPU
    .venv/bin/python benchmarks/wrappers.py --device cuda      # on a GPU

Writes wrappers-DEVICE.md.
"""

import argparse
import copy
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version

import measuring
import segmentation_models_pytorch as smp
import torch
import torchvision
from measuring import Run, Spread, machine, make_parser, peak_memory, spread, timed, write_page
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import MHEX, CAStream, deep_supervision_loss
from captum_ext import MHEXCAM

Measured = tuple[Spread, float]


def main() -> None:
    """Measure, print and write the tables."""
    parser = make_parser("The cost of wrapped models against the models themselves.", repeats=11)
    parser.add_argument("--backbone", default="resnet50", help="a model of torchvision")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--processor-time", action="store_true", help="measure it, where others use the machine, too")
    args = parser.parse_args()
    measuring.clock = time.process_time if args.processor_time else time.perf_counter
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    labels = torch.randint(1000, (args.batch,), device=args.device)
    model = getattr(torchvision.models, args.backbone)().eval().to(args.device)
    forward = measured("CAStream", lambda: _forward(model, images), ca_stream_passes(model, images), args, 3)
    wrapped = MHEX(copy.deepcopy(model)).eval()
    maps = measured("MHEX", lambda: _forward(wrapped, images), mhex_maps(wrapped, images, labels), args)
    plain, steps = training_steps(model, images, labels)
    training = measured("training", plain, steps, args)
    segmenting = masks_of_mhex(images, args)
    text = "\n\n".join(
        [
            "# The cost of wrapped models",
            table(f"of one forward pass of {args.backbone}", forward),
            table(f"of one forward pass of {args.backbone} with MHEX at all of its residual additions", maps),
            table(f"of one step of full fine-tuning of {args.backbone}", training),
            *(table(f"of {what}", rows) for what, rows in segmenting.items()),
            f"Medians of {args.repeats} rounds, {3 * args.repeats} in the first table, quartiles in parentheses; each "
            f"run is timed between two runs of the plain one. {args.batch} images of {args.size} px. Memory: the peak "
            "of what a call allocates.",
            f"{'Processor time' if args.processor_time else 'Time'} on {machine(args.device)}, torch "
            f"{version('torch')}, torchvision {version('torchvision')}; `python benchmarks/wrappers.py "
            f"{' '.join(sys.argv[1:])}`.",
        ]
    )
    write_page(args, "wrappers", text)
    print(text)


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> object:
    return model(images)


def mhex_maps(model: MHEX, images: Tensor, labels: Tensor) -> dict[str, Run]:
    """Maps of an MHEX model, and what its forward pass is without MHEX."""
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    layer = [model.backbone.layer4[-2]]  # in front of what the last head reads
    return {
        "MHEXCAM": lambda: MHEXCAM(model).attribute(images, labels),
        "pytorch-grad-cam GradCAM": lambda: GradCAM(model, layer)(images, targets),
        "pytorch-grad-cam LayerCAM": lambda: LayerCAM(model, layer)(images, targets),
        "the backbone's forward pass": lambda: _forward(model.backbone, images),
    }


def masks_of_mhex(images: Tensor, args: argparse.Namespace) -> dict[str, dict[str, Measured]]:
    """Maps of a U-Net with MHEX against its forward pass, and its training step against the plain U-Net's."""
    unet = smp.Unet("resnet18", encoder_weights=None, classes=4).to(args.device)
    masks = torch.randint(4, (len(images), *images.shape[2:]), device=args.device)
    region = masks[0] == 2
    found = {}
    steps = {}
    for kernel in (1, 3):
        model = MHEX(copy.deepcopy(unet), task="segmentation", kernel_size=kernel)
        steps[f"MHEX, kernel {kernel}"] = _step_of_masks(copy.deepcopy(model).train(), images, masks)
        model.eval()
        runs = {
            "MHEXCAM of a class": lambda model=model: MHEXCAM(model).attribute(images, 2),
            "MHEXCAM of a region": lambda model=model: MHEXCAM(model).attribute(images, (2, region)),
            "pytorch-grad-cam GradCAM": lambda model=model: _grad_cam_of_masks(model, images, region),
            "the U-Net's forward pass": lambda model=model: _forward(model.backbone, images),
        }
        what = f"one forward pass of smp.Unet (ResNet-18) with MHEX of masks, kernel {kernel}"
        found[what] = measured(what, lambda model=model: _forward(model, images), runs, args)
    plain = _step_of_masks(copy.deepcopy(unet).train(), images, masks)
    found["one training step of smp.Unet (ResNet-18)"] = measured("masks", plain, steps, args)
    return found


def _grad_cam_of_masks(model: MHEX, images: Tensor, region: Tensor) -> object:
    target = SemanticSegmentationTarget(2, region.cpu().float().numpy())
    return GradCAM(model, model.target_layers)(images, [target] * len(images))


def _step_of_masks(model: nn.Module, images: Tensor, masks: Tensor) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        outputs = model.deep_forward(images) if isinstance(model, MHEX) else [model(images)]
        deep_supervision_loss(outputs, masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ca_stream_passes(model: nn.Module, images: Tensor) -> dict[str, Run]:
    """Forward passes without gradients of CA-Streams."""
    ways = {"": {}, ", last stage alone": {"start_stage": 4}, ", projections": {"projections": True}}
    ways[", class-specific"] = {"class_specific": True}
    wrapped = {f"CAStream{way}": CAStream(copy.deepcopy(model), **options).eval() for way, options in ways.items()}
    wrapped["a copy of the network, for comparison"] = copy.deepcopy(model)
    return {name: (lambda model=one: _forward(model, images)) for name, one in wrapped.items()}


def training_steps(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Run, dict[str, Run]]:
    """A step of full fine-tuning, and those of the wrappers."""
    tuned = copy.deepcopy(model).train()
    wrapped = {
        "CAStream": CAStream(copy.deepcopy(model)).train(),
        "CAStream, projections": CAStream(copy.deepcopy(model), projections=True).train(),
    }
    return _step(tuned, images, labels), {name: _step(one, images, labels) for name, one in wrapped.items()}


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Run:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-3, momentum=0.9)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(
    what: str, plain: Run, runs: Mapping[str, Run], args: argparse.Namespace, more: int = 1
) -> dict[str, Measured]:
    """Time and peak memory of each run as multiples of the plain one's."""
    for run in (plain, *runs.values()):
        run()
    of_plain = peak_memory(plain, args.device, times=3)
    memory = {name: peak_memory(run, args.device, times=3) / of_plain for name, run in runs.items()}
    timings = timed(what, plain, runs, args.repeats * more, args.device)
    return {name: (spread([timing.ratio for timing in timings[name]]), memory[name]) for name in runs}


def table(what: str, rows: Mapping[str, Measured]) -> str:
    """A table of ratios."""
    lines = [f"| multiples {what} | time | peak memory |", "|---|---|---|"]
    lines += [f"| {name} | {time:.2f} | {memory:.2f} |" for name, (time, memory) in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
