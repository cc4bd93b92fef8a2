"""Masks of handwritten digits by a small U-Net with and without MHEX, and maps of a digit against each other.

    python examples/mhex_masks.py     # about ten minutes on a core

Scenes show two digits; a mask gives each place of ink its digit, 0 to 9, and paper is class 10. For each seed a small
residual U-Net learns them; then it learns on for as many epochs, as it is and with MHEX at its additions and skips. The
mean intersection over union (mIoU) of test scenes is compared. Then one digit of each test scene is explained by the
network with MHEX: the most salient tenth of the places is replaced by the image's mean, and the score is how far the
mean probability of the digit inside its region drops. Higher is better. Writes `out/mhex_masks.md`.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from seed_intervals import with_interval
from small_unet import SmallUNet
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import MHEX, deep_supervision_loss
from captum_ext import MHEXCAM
from xai_compare.digit_scenes import Scenes, make_scenes

PAPER, INK, SHARE = 10, 0.3, 0.1
Explain = Callable[[MHEX, Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Train, explain, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train of each kind")
    parser.add_argument("--scenes", type=int, default=1200, help="number of training scenes")
    parser.add_argument("--explained", type=int, default=200, help="number of test scenes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    test = make_scenes(args.explained, "test", seed=1)
    quality: dict[str, list[float]] = {"plain": [], "with MHEX": []}
    drops: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        train = make_scenes(args.scenes, "train", seed=seed)
        start = trained(SmallUNet(11), train, args.epochs)
        plain = trained(copy.deepcopy(start), train, args.epochs)
        model = trained(MHEX(copy.deepcopy(start), task="segmentation", kernel_size=3), train, args.epochs)
        quality["plain"].append(mean_iou(plain, test))
        quality["with MHEX"].append(mean_iou(model, test))
        for name, explain in METHODS.items():
            drops[name].append(drop(model, explain, test))
        print({name: round(values[-1], 3) for name, values in (quality | drops).items()}, flush=True)
    rows = [f"| {name} | {with_interval(values)} |" for name, values in quality.items()]
    text = "\n".join(["| network | mIoU |", "|---|---|", *rows])
    rows = [f"| {name} | {with_interval(values)} |" for name, values in drops.items()]
    text += "\n\n" + "\n".join(["| map | drop inside the region |", "|---|---|", *rows])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mhex_masks.md").write_text(text + "\n")
    print(text)


def masks(scenes: Scenes) -> Tensor:
    """(batch, height, width), the digit of each place of ink, 10 for paper."""
    found = torch.full(scenes.images[:, 0].shape, PAPER)
    for slot in range(scenes.labels.shape[1]):
        inside = scenes.mask(slot)[:, 0] & (scenes.images[:, 0] > INK)
        found = torch.where(inside, scenes.labels[:, slot, None, None], found)
    return found


def trained(model: nn.Module, train: Scenes, epochs: int) -> nn.Module:
    """The model after so many epochs of AdamW; with MHEX by the losses of all blocks."""
    images, wanted = train.images, masks(train)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * -(-len(images) // 32))
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(32):
            if isinstance(model, MHEX):
                loss = deep_supervision_loss(model.deep_forward(images[chosen]), wanted[chosen])
            else:
                loss = F.cross_entropy(model(images[chosen]), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def mean_iou(model: nn.Module, scenes: Scenes) -> float:
    """The mean over the digits of the intersection over union of all scenes together."""
    found, wanted = model(scenes.images).argmax(1), masks(scenes)
    both = [
        ((found == c) & (wanted == c)).sum() / ((found == c) | (wanted == c)).sum().clamp(min=1) for c in range(PAPER)
    ]
    return float(torch.stack(both).mean())


@torch.no_grad()
def drop(model: MHEX, explain: Explain, scenes: Scenes) -> float:
    """How far the first digit's mean probability in its ink falls without the most salient tenth of the places."""
    digits, images = scenes.labels[:, 0], scenes.images
    regions = masks(scenes) == digits[:, None, None]
    with torch.enable_grad():
        salient = explain(model, images, digits, regions).flatten(1)
    places = salient.topk(int(SHARE * salient.shape[1]), 1).indices
    changed = images.flatten(1).scatter(1, places, images.flatten(1).mean(1, keepdim=True).expand(places.shape))
    before, after = (
        model(one).softmax(1)[torch.arange(len(digits)), digits] for one in (images, changed.view_as(images))
    )
    return float((((before - after) * regions).sum((1, 2)) / regions.sum((1, 2))).mean())


def by_mhex(model: MHEX, images: Tensor, digits: Tensor, regions: Tensor) -> Tensor:
    """MHEX CAM of each digit inside its region."""
    return MHEXCAM(model).attribute(images, list(zip(digits.tolist(), regions, strict=True)))


def by_cam(kind: type) -> Explain:
    """A CAM of pytorch-grad-cam of the same."""

    def explain(model: MHEX, images: Tensor, digits: Tensor, regions: Tensor) -> Tensor:
        targets = [
            SemanticSegmentationTarget(int(cls), region.float().numpy())
            for cls, region in zip(digits, regions, strict=True)
        ]
        with kind(model, model.target_layers) as cam:
            return torch.from_numpy(cam(images, targets))

    return explain


METHODS: dict[str, Explain] = {
    "MHEX": by_mhex,
    "Grad-CAM": by_cam(GradCAM),
    "Layer-CAM": by_cam(LayerCAM),
    "random": lambda _, images, __, ___: torch.rand(images.shape),
}


if __name__ == "__main__":
    main()
