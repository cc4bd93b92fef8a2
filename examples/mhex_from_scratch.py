"""Masks of digits learned from random weights, with and without MHEX: what makes it slow.

    python examples/mhex_from_scratch.py

A network first learns to tell ink from paper, and much later one digit from another. When it leaves that plateau
depends on its last layers. The loss of the last block alone, without gates, is exactly that of the plain U-Net with two
convolutions, W and P, as its head. Writes `out/mhex_from_scratch.md`: the mIoU of test scenes.
"""

import argparse
from pathlib import Path

import torch
from mask_data import load_pictures
from mhex_masks import learned, mean_iou
from seed_intervals import with_interval
from small_unet import SmallUNet
from torch import nn

from adapters import MHEX

ALONE = {"last_alone": True}
SLOW = {"rate_of_gates": 1 / 9}
WAYS = {  # options of MHEX, or None for the plain network, and of its training
    "plain": (None, {}),
    "kernel 1, last loss alone, no gates": ({"gate": False}, ALONE),
    "kernel 3, last loss alone, no gates": ({"gate": False, "kernel_size": 3}, ALONE),
    "the same, W learns at a ninth of the rate": ({"gate": False, "kernel_size": 3}, ALONE | SLOW),
    "kernel 1": ({}, {}),
    "kernel 3": ({"kernel_size": 3}, {}),
    "kernel 3, W learns at a ninth of the rate": ({"kernel_size": 3}, SLOW),
}


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="number of networks to train of each kind")
    parser.add_argument("--pictures", type=int, default=1200, help="number of training scenes")
    parser.add_argument("--tested", type=int, default=200, help="number of test scenes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    folder = args.out / "training" / "from-scratch"
    folder.mkdir(parents=True, exist_ok=True)
    test = load_pictures("digits", "test", args.tested, seed=1)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(args.seeds):
        train = load_pictures("digits", "train", args.pictures, seed)
        for number, (name, (options, training)) in enumerate(WAYS.items()):
            file = folder / f"{args.pictures}-{args.epochs}-{number}-{seed}.pt"
            model = learned(network(options, seed), train, args.epochs, file, **training)
            found[name].append(mean_iou(model, test))
            print(f"seed {seed}, {name}: {found[name][-1]:.3f}", flush=True)
    rows = [f"| {name} | {with_interval(values)} |" for name, values in found.items()]
    text = "\n".join(["| U-Net | mIoU |", "|---|---|", *rows])
    (args.out / "mhex_from_scratch.md").write_text(text + "\n")
    print(text)


def network(options: dict[str, object] | None, seed: int) -> nn.Module:
    """A U-Net with random weights, plain or with MHEX."""
    torch.manual_seed(seed)
    net = SmallUNet(11)
    return net if options is None else MHEX(net, task="segmentation", **options)


if __name__ == "__main__":
    main()
