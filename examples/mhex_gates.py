"""What the gates of MHEX do: the ablation of Sun and Liò 2025, appendix E, on digits or blood cells.

    python examples/mhex_gates.py                                # scenes of one digit
    python examples/mhex_gates.py --data BCCD_Dataset/BCCD       # crops of blood cells, see blood_cells.py

For each seed a small ResNet with MHEX learns the classes twice from the same weights, with gates and without (x' = x).
The paper finds cleaner maps and much less confident early heads without them. For each block this compares the test
accuracy of its head, its confidence (the mean probability of the class that it predicts), and the share of the positive
evidence in its map of the true class that lies inside the box of the digit or cell. Writes `out/mhex_gates_DATA.md`,
after each seed; an interrupted run resumes.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from blood_cells import load_cells
from ca_stream_table import trained
from image_data import DIGITS, load_data
from seed_intervals import with_interval
from small_resnet import small_resnet
from torch import Tensor
from training import ADAMW

from adapters import MHEX
from captum_ext import MHEXCAM
from xai_compare.digit_scenes import make_scenes

MEASURES = ("accuracy", "confidence", "evidence in the box")
TOGETHER = "all blocks"


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help='"digits", or the folder of BCCD')
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train of each kind")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit", type=int, help="number of training images; all by default")
    parser.add_argument("--images", type=int, default=200, help="number of test images")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name = Path(args.data).name.lower()
    data = {split: load_data(args.data, split, limit=args.limit) for split in ("train", "validation")}
    test, boxes = load_data(args.data, "test"), boxes_of(args.data)[: args.images]
    images, labels = (torch.stack([torch.as_tensor(test[i][part]) for i in range(len(boxes))]) for part in (0, 1))
    rows = []
    for seed in range(args.seeds):
        for gate in (True, False):
            torch.manual_seed(seed)
            network = small_resnet(len(test.classes), images.shape[1])
            model = MHEX(network, placement="downsample", gate=gate)
            folder = args.out / "training" / f"{name}-{'gates' if gate else 'no-gates'}-{seed}"
            trained(model, data["train"], data["validation"], folder, epochs=args.epochs, seed=seed, **ADAMW)
            rows += measured(model.eval(), images, labels, boxes, seed)
        text = report(pd.DataFrame(rows), float(boxes.float().mean()))
        (args.out / f"mhex_gates_{name}.md").write_text(text + "\n")
    print(text)


def boxes_of(data: str) -> Tensor:
    """(images, height, width) booleans, the boxes of the test images in their order."""
    if data != "digits":
        return load_cells(data, "test").mask()[:, 0]
    count, seed = DIGITS["test"]
    return make_scenes(count, "test", digits=1, seed=seed).mask(0)[:, 0]


@torch.no_grad()
def measured(model: MHEX, images: Tensor, labels: Tensor, boxes: Tensor, seed: int) -> list[dict[str, object]]:
    """A row for each block, and one for the prediction and the sum of the maps."""
    heads = [y.softmax(1) for y in model.deep_forward(images)]
    cam = MHEXCAM(model)
    maps = [*cam.attribute(images, labels, per_layer=True).unbind(1), cam.attribute(images, labels)[:, 0]]
    rows = []
    for block, head, one in zip((*model.names, TOGETHER), (*heads, heads[-1]), maps, strict=True):
        values = (head.argmax(1) == labels).float(), head.amax(1), shares_inside(one, boxes)
        means = {name: float(value.mean()) for name, value in zip(MEASURES, values, strict=True)}
        rows.append({"seed": seed, "block": block, "gates": "with" if model.gated else "without"} | means)
    return rows


def shares_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """(images,), which share of the positive values of each map lies in a box; the box's area where there are none."""
    positive = maps.clamp(min=0)
    whole, inside = positive.sum((1, 2)), (positive * boxes).sum((1, 2))
    return torch.where(whole > 0, inside / whole, boxes.float().mean((1, 2)))


def report(rows: pd.DataFrame, area: float) -> str:
    """The table: means over seeds with their intervals."""
    columns = [(name, gates) for name in MEASURES for gates in ("with", "without")]
    lines = ["| block | " + " | ".join(f"{name}, {gates} gates" for name, gates in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for block, own in rows.groupby("block", sort=False):
        cells = [with_interval(own.loc[own.gates == gates, name].tolist()) for name, gates in columns]
        lines.append(f"| {block} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"The boxes have {area:.3f} of the area."])


if __name__ == "__main__":
    main()
