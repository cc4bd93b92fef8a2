"""Masks of digits or blood cells by a small U-Net with and without MHEX, and maps of one thing against each other.

    python examples/mhex_masks.py                                # digits, about half an hour on a core
    python examples/mhex_masks.py --data BCCD_Dataset/BCCD       # blood cells, see blood_cells.py

Scenes show two digits, and the masks are their ink; fields of blood smears show white cells, red cells and platelets,
and the masks are ellipses in the boxes of BCCD. For each seed a small residual U-Net learns them; then it learns on for
as many epochs, as it is and with MHEX at its additions and skips. The mean intersection over union (mIoU) over the
classes of things is compared on test pictures.

Then one thing in each test picture is explained by the network with MHEX: a digit, or all platelets, else white cells,
else red ones. The most salient tenth of the places is replaced by the picture's mean colour, and the score is how far
the mean probability of the class inside its region drops: that of the network itself, and that of the U-Net of another
seed without MHEX. Higher is better. Writes `out/mhex_masks_DATA.md`; an interrupted run resumes.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mask_data import Pictures, load_pictures, mirrored
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from seed_intervals import with_interval
from small_unet import SmallUNet
from torch import Tensor, nn
from torch.nn import functional as F

from adapters import MHEX, deep_supervision_loss
from captum_ext import MHEXCAM

SHARE = 0.1
Explain = Callable[[MHEX, Pictures], Tensor]


def main() -> None:
    """Train, explain, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help='"digits", or the folder of BCCD')
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train of each kind")
    parser.add_argument("--pictures", type=int, default=1200, help="number of training pictures")
    parser.add_argument("--explained", type=int, default=200, help="number of test pictures")
    parser.add_argument("--epochs", type=int, default=10, help="before and after MHEX")
    parser.add_argument("--kernel-size", type=int, default=1, help="of MHEX's gates")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    folder = args.out / "training" / f"masks-{Path(args.data).name.lower()}"
    folder.mkdir(parents=True, exist_ok=True)
    test = load_pictures(args.data, "test", args.explained, seed=1)
    plain, explained = [], []
    for seed in range(args.seeds):
        one, model = networks(args, test, folder, seed)
        plain.append(one)
        explained.append(Explained(mean_iou(model, test), maps_of(model, test)))
        print(f"seed {seed}: mIoU {mean_iou(one, test):.3f}, with MHEX {explained[-1].quality:.3f}", flush=True)
        for name, maps in explained[-1].maps.items():
            explained[-1].drops[name] = drop(model, maps, test)
    text = report(plain, explained, test)
    (args.out / f"mhex_masks_{Path(args.data).name.lower()}.md").write_text(text + "\n")
    print(text)


@dataclass
class Explained:
    """A network with MHEX: its mIoU, the maps of each method, and by how much its probability drops."""

    quality: float
    maps: dict[str, Tensor]
    drops: dict[str, float] = field(default_factory=dict)


def networks(args: argparse.Namespace, test: Pictures, folder: Path, seed: int) -> tuple[nn.Module, MHEX]:
    """A U-Net that learned for twice as many epochs, and one that had MHEX for the second half of them."""
    train = load_pictures(args.data, "train", args.pictures, seed)
    name = f"{len(train.images)}-{args.epochs}-{args.kernel_size}-{seed}"
    start = learned(_unet(test, seed), train, args.epochs, folder / f"{name}-start.pt")
    plain = learned(copy.deepcopy(start), train, args.epochs, folder / f"{name}-plain.pt")
    model = MHEX(start, task="segmentation", kernel_size=args.kernel_size)
    return plain, learned(model, train, args.epochs, folder / f"{name}-mhex.pt")


def _unet(like: Pictures, seed: int) -> SmallUNet:
    torch.manual_seed(seed)
    return SmallUNet(like.things + 1, like.images.shape[1])


def learned(
    model: nn.Module, train: Pictures, epochs: int, file: Path, *, rate_of_gates: float = 1.0, last_alone: bool = False
) -> nn.Module:
    """The model after so many epochs of AdamW, or from the file where it was saved then. Cells are mirrored at random.

    Args:
        model: A network of masks.
        train: What it learns.
        epochs: How often.
        file: Where it is saved.
        rate_of_gates: The learning rate of MHEX's W as a multiple of that of all other weights.
        last_alone: Does it learn by the loss of its prediction, and not, with MHEX, of all blocks?
    """
    if file.exists():
        model.load_state_dict(torch.load(file))
        return model.eval()
    gates = [block.gate.weight for block in model.mhex_blocks] if isinstance(model, MHEX) else []
    others = [one for one in model.parameters() if not any(one is gate for gate in gates)]
    groups = [{"params": others}, {"params": gates}] if gates else [{"params": others}]
    rates = [4e-3, 4e-3 * rate_of_gates][: len(groups)]
    optimizer = torch.optim.AdamW(groups, 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, epochs * -(-len(train.images) // 32))
    model.train().to(memory_format=torch.channels_last)  # much faster on a CPU
    for _ in range(epochs):
        for chosen in torch.randperm(len(train.images)).split(32):
            images, wanted = train.images[chosen], train.masks[chosen]
            if images.shape[1] == 3:
                images, wanted = mirrored(images, wanted)
            if isinstance(model, MHEX) and not last_alone:
                loss = deep_supervision_loss(model.deep_forward(images), wanted)
            else:
                loss = F.cross_entropy(model(images), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), file)
    return model.eval()


@torch.no_grad()
def mean_iou(model: nn.Module, pictures: Pictures) -> float:
    """The mean over the classes of things of the intersection over union of all pictures together."""
    found, wanted = model(pictures.images).argmax(1), pictures.masks
    both = [
        ((found == c) & (wanted == c)).sum() / ((found == c) | (wanted == c)).sum().clamp(min=1)
        for c in range(pictures.things)
    ]
    return float(torch.stack(both).mean())


@torch.no_grad()
def drop(model: nn.Module, maps: Tensor, pictures: Pictures) -> float:
    """How far a class's mean probability in its region falls without the most salient tenth of the places.

    Args:
        model: Whose probability.
        maps: (pictures, height, width), or with an axis for one channel.
        pictures: What is explained, and where.
    """
    images, regions = pictures.images, pictures.regions()
    salient = maps.flatten(1)
    hidden = torch.zeros_like(salient, dtype=torch.bool)
    hidden.scatter_(1, salient.topk(int(SHARE * salient.shape[1]), 1).indices, True)
    changed = images.mean((2, 3), keepdim=True).where(hidden.view_as(images[:, :1]), images)
    before, after = (model(one).softmax(1)[torch.arange(len(images)), pictures.explained] for one in (images, changed))
    return float((((before - after) * regions).sum((1, 2)) / regions.sum((1, 2))).mean())


def maps_of(model: MHEX, pictures: Pictures) -> dict[str, Tensor]:
    """The maps of each method."""
    return {name: explain(model, pictures) for name, explain in METHODS.items()}


def by_mhex(model: MHEX, pictures: Pictures) -> Tensor:
    """MHEX CAM of each thing inside its region."""
    targets = list(zip(pictures.explained.tolist(), pictures.regions(), strict=True))
    return MHEXCAM(model).attribute(pictures.images, targets)


def by_cam(kind: type) -> Explain:
    """A CAM of pytorch-grad-cam of the same."""

    def explain(model: MHEX, pictures: Pictures) -> Tensor:
        targets = [
            SemanticSegmentationTarget(int(cls), region.float().numpy())
            for cls, region in zip(pictures.explained, pictures.regions(), strict=True)
        ]
        with kind(model, model.target_layers) as cam:
            return torch.from_numpy(cam(pictures.images, targets))

    return explain


METHODS: dict[str, Explain] = {
    "MHEX CAM": by_mhex,
    "Grad-CAM": by_cam(GradCAM),
    "Layer-CAM": by_cam(LayerCAM),
    "random": lambda _, pictures: torch.rand(pictures.masks.shape),
}


def report(plain: list[nn.Module], explained: list[Explained], test: Pictures) -> str:
    """The tables: means over seeds with their intervals. A map is also judged by the plain network of another seed."""
    qualities = {"as it is": [mean_iou(one, test) for one in plain], "with MHEX": [one.quality for one in explained]}
    lines = ["| U-Net | mIoU |", "|---|---|"]
    lines += [f"| {name} | {with_interval(values)} |" for name, values in qualities.items()]
    lines += ["", "| map | drop of the network explained | drop of another one |", "|---|---|---|"]
    for name in METHODS:
        own = [one.drops[name] for one in explained]
        others = [drop(plain[seed - 1], one.maps[name], test) for seed, one in enumerate(explained)]
        lines.append(f"| {name} | {with_interval(own)} | {with_interval(others)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
