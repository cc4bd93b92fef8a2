"""Average pooling against CA-Stream, as in table 1 of Torres et al. 2024, on small data sets.

    python examples/ca_stream_table.py                                # scenes of one handwritten digit
    python examples/ca_stream_table.py --data BCCD_Dataset/BCCD --epochs 40 --stream-epochs 40    # blood cells

The cells are crops, see blood_cells.py. For each seed a small ResNet learns the classes, and a CA-Stream learns to pool
its features. Then Grad-CAM, Grad-CAM++ and Score-CAM of pytorch-grad-cam explain the class that each predicts for test
images, and the maps are scored: AD, AG, AI, I and D in percent. Writes ca_stream_DATA.md and .csv to `out/`; an
interrupted run resumes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from image_data import load_data
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from small_resnet import small_resnet
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from training import SGD, ClassifierTrainer, accuracy, arguments

from adapters import CAStream, RawAttentionCAM
from quantus_metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion

CAMS = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMPlusPlus, "Score-CAM": ScoreCAM}
SCORES = {
    "AD": AverageDrop(disable_warnings=True),
    "AG": AverageGain(disable_warnings=True),
    "AI": AverageIncrease(disable_warnings=True),
    "I": Insertion(steps=50, disable_warnings=True),
    "D": Deletion(steps=50, disable_warnings=True),
}
RISES = {"AD": False, "AG": True, "AI": True, "I": True, "D": True}  # with CA-Stream, in the paper's table 1


def main() -> None:
    """Train, explain, score, print."""
    parser = argparse.ArgumentParser(description="Average pooling against CA-Stream.")
    parser.add_argument("--data", default="digits", help="as for train_ca_stream.py")
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train")
    parser.add_argument("--epochs", type=int, default=10, help="of the network")
    parser.add_argument("--stream-epochs", type=int, default=10, help="of the CA-Stream")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=100, help="number of test images to explain")
    parser.add_argument("--limit", type=int, help="number of training images; all by default")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    name = Path(args.data).name.lower()
    runs = [run for seed in range(args.seeds) for run in one_seed(seed, name, args)]
    table = pd.DataFrame(runs)
    table.to_csv(args.out / f"ca_stream_{name}.csv", index=False)
    text = report(table)
    (args.out / f"ca_stream_{name}.md").write_text(text)
    print(text)


def one_seed(seed: int, name: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Rows of the table for one network and its stream."""
    train, validation, test = (load_data(args.data, split) for split in ("train", "validation", "test"))
    train = load_data(args.data, "train", limit=args.limit)
    torch.manual_seed(seed)
    backbone = small_resnet(len(test.classes), len(test[0][0]))
    folder = args.out / "training" / f"{name}-{seed}"
    how = {"seed": seed, "batch_size": args.batch_size}
    trained(backbone, train, validation, folder / "average", epochs=args.epochs, **how)
    images = torch.stack([test[i][0] for i in range(min(args.images, len(test)))])
    yield from rows("GAP", backbone, backbone, images, test, seed)
    stream = CAStream(backbone)
    trained(stream, train, validation, folder / "stream", epochs=args.stream_epochs, **how)
    yield from rows("CA", stream, backbone, images, test, seed)


def trained(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    folder: Path,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 64,
    **recipe: Any,
) -> None:
    """Train a model, by default by the recipe of CA-Stream's paper; resume, or load what was trained before."""
    recipe = recipe or SGD | {"learning_rate": SGD["learning_rate"] * batch_size / 256}
    recipe |= {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "seed": seed}
    ClassifierTrainer(model, arguments(folder, resume=True, **recipe), train, validation).fit()
    model.cpu()


def rows(
    pooling: str, model: nn.Module, backbone: nn.Module, images: Tensor, test: Dataset, seed: int
) -> Iterator[dict[str, object]]:
    """Accuracy, and the scores of each method's maps of the predicted classes."""
    model.eval()
    share = accuracy(model, test)["test_accuracy"]
    with torch.no_grad():
        classes = model(images).argmax(1)
    cams = {name: make(model=model, target_layers=[backbone.layer4]) for name, make in CAMS.items()}
    if isinstance(model, CAStream):
        cams["raw attention"] = RawAttentionCAM(model)
    for method, cam in tqdm(cams.items(), desc=f"seed {seed}, {pooling}", unit="method"):
        maps = explained(cam, images, classes)
        scores = {
            name: 100 * float(np.mean(score(model, images.numpy(), classes.numpy(), maps)))
            for name, score in SCORES.items()
        }
        yield {"seed": seed, "pooling": pooling, "accuracy": 100 * share, "method": method} | scores


def explained(cam: Any, images: Tensor, classes: Tensor) -> np.ndarray:
    """Maps (images, 1, height, width) from 0 to 1."""
    parts = zip(images.split(50), classes.split(50), strict=True)
    return np.concatenate([cam(x, [ClassifierOutputTarget(int(c)) for c in y]) for x, y in parts])[:, None]


def report(table: pd.DataFrame) -> str:
    """A table of means over seeds, and which differences have the paper's sign."""
    means = table.groupby(["method", "pooling"], sort=False)[["accuracy", *SCORES]].agg(["mean", "std"])
    lines = ["| method | pooling | accuracy | " + " | ".join(SCORES) + " |", "|---" * (3 + len(SCORES)) + "|"]
    for (method, pooling), row in means.iterrows():
        cells = [f"{row[name, 'mean']:.2f} ± {row[name, 'std']:.2f}" for name in ("accuracy", *SCORES)]
        lines.append(f"| {method} | {pooling} | " + " | ".join(cells) + " |")
    wide = table[table.method.isin(list(CAMS))].pivot_table(
        index=["seed", "method"], columns="pooling", values=[*SCORES]
    )
    lines += [
        "",
        "In percent, mean ± standard deviation over seeds. AG, AI and I are better when higher, AD and D when",
    ]
    lines += ["lower. The paper finds AD lower and the others higher with CA-Stream. Here that holds for:", ""]
    for name, rises in RISES.items():
        change = (wide[name]["CA"] - wide[name]["GAP"]).groupby("method", sort=False).mean()
        agree = [method for method in CAMS if (change[method] > 0) == rises]
        lines.append(f"- {name}: {', '.join(agree) if agree else 'no method'}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
