"""MHEX CAM against Grad-CAM and Layer-CAM on blood cells, as in the quality table of Sun and Liò 2025.

    python examples/mhex_table.py --data BCCD_Dataset/BCCD     # crops of blood cells (see blood_cells.py)

For each seed a small ResNet learns the classes, plainly and with MHEX; the test accuracy of both is compared. Test
images are then explained, each for its own class, by MHEX CAM of the one, and by Grad-CAM and Layer-CAM of the other;
the maps are scored by SAD, removal drop (AVG Drop) and EAD. The drops are those of another network, trained
independently, as in the paper. Last, whether the gradients of a block's head and gate agree is compared with SAD and
with confidence. Writes mhex_DATA.md, .csv and .png to `out/`; an interrupted run resumes.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from ca_stream_table import explained, trained
from image_data import load_data
from pytorch_grad_cam import GradCAM, LayerCAM
from scipy.stats import pearsonr
from small_resnet import small_resnet
from torch import Tensor, nn
from torch.utils.data import Dataset
from training import ADAMW, accuracy

from adapters import MHEX, MHEXEvidenceCAM, collaboration, spatial_collaboration
from quantus_metrics import EffectiveAverageDrop, RemovalDrop, SoftAverageDrop

SCORES = {
    "SAD": SoftAverageDrop(disable_warnings=True),
    "AVG Drop": RemovalDrop(disable_warnings=True),
    "EAD": EffectiveAverageDrop(disable_warnings=True),
}
METHODS = {
    "MHEX": lambda model: MHEXEvidenceCAM(model, gamma_neg=0.1),
    "Grad-CAM": lambda model: GradCAM(model, [model.layer4]),
    "Layer-CAM": lambda model: LayerCAM(model, [model.layer4]),
}


def main() -> None:
    """Train, explain, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="as for train_mhex.py")
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train of each kind")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, default=200, help="number of test images to explain")
    parser.add_argument("--limit", type=int, help="number of training images; all by default")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    name = Path(args.data).name.lower()
    data = {split: load_data(args.data, split, limit=args.limit) for split in ("train", "validation", "test")}
    images, labels = (
        torch.stack([torch.as_tensor(pair[i]) for pair in _first(data["test"], args.images)]) for i in (0, 1)
    )
    folder = args.out / "training" / f"{name}-mhex"
    judge = plain(data, args, folder / "judge", seed=1000)
    accuracies, scores, together = [], [], []
    for seed in range(args.seeds):
        network = plain(data, args, folder / f"plain-{seed}", seed)
        model = with_mhex(data, args, folder / f"mhex-{seed}", seed)
        accuracies.append({"plain": percent(network, data["test"]), "MHEX": percent(model, data["test"])})
        scores += scored({"MHEX": model}, network, judge, images, labels, seed)
        together.append(agreement(model, judge, images, labels, seed))
    pd.DataFrame(scores).to_csv(args.out / f"mhex_{name}.csv", index=False)
    joined = pd.concat(together)
    text = report(pd.DataFrame(accuracies), pd.DataFrame(scores), joined)
    (args.out / f"mhex_{name}.md").write_text(text)
    picture(joined, model, images[:4], labels[:4]).savefig(args.out / f"mhex_{name}.png", dpi=110)
    print(text)


def _first(data: Dataset, count: int) -> list[tuple[Tensor, int]]:
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    return [data[int(i)] for i in chosen]


def plain(data: dict[str, Dataset], args: argparse.Namespace, out: Path, seed: int) -> nn.Module:
    """A small ResNet, trained."""
    torch.manual_seed(seed)
    model = small_resnet(len(data["test"].classes), len(data["test"][0][0]))
    trained(model, data["train"], data["validation"], out, epochs=args.epochs, seed=seed, **ADAMW)
    return model


def with_mhex(data: dict[str, Dataset], args: argparse.Namespace, out: Path, seed: int) -> MHEX:
    """The same with MHEX at its down-sampling blocks."""
    torch.manual_seed(seed)
    model = MHEX(small_resnet(len(data["test"].classes), len(data["test"][0][0])), placement="downsample")
    trained(model, data["train"], data["validation"], out, epochs=args.epochs, seed=seed, **ADAMW)
    return model


def percent(model: nn.Module, test: Dataset) -> float:
    """The test accuracy."""
    return 100 * accuracy(model, test)["test_accuracy"]


def scored(
    models: dict[str, nn.Module], plain: nn.Module, judge: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> list[dict[str, object]]:
    """The scores of each method's maps of the labels, by the judge and by the network that is explained."""
    rows: list[dict[str, object]] = []
    for method, make in METHODS.items():
        model = models.get(method, plain).eval()
        maps = explained(make(model), images, labels)
        for by, network in (("judge", judge.eval()), ("itself", model)):
            values = {name: score(network, images.numpy(), labels.numpy(), maps) for name, score in SCORES.items()}
            rows.append({"seed": seed, "method": method, "by": by} | {k: float(np.mean(v)) for k, v in values.items()})
    return rows


def agreement(model: MHEX, judge: nn.Module, images: Tensor, labels: Tensor, seed: int) -> pd.DataFrame:
    """The collaboration of each block and image, with the image's SAD and the model's confidence."""
    cosines = collaboration(model, images, labels)
    maps = explained(METHODS["MHEX"](model), images, labels)
    sad = SCORES["SAD"](judge, images.numpy(), labels.numpy(), maps)
    with torch.no_grad():
        sure = model(images).softmax(1).gather(1, labels[:, None])[:, 0]
    frames = [
        pd.DataFrame({"seed": seed, "block": name, "cosine": column, "SAD": sad, "confidence": sure})
        for name, column in zip(model.names, cosines.T.numpy(), strict=False)
    ]
    return pd.concat(frames)


def report(accuracies: pd.DataFrame, scores: pd.DataFrame, together: pd.DataFrame) -> str:
    """The tables."""
    lines = accuracy_table(accuracies)
    lines += ["| method | drops of | " + " | ".join(SCORES) + " |", "|---" * (2 + len(SCORES)) + "|"]
    table = scores.groupby(["by", "method"], sort=False)[list(SCORES)].agg(["mean", "std"]).fillna(0)
    for (by, method), row in table.iterrows():
        cells = [f"{row[name, 'mean']:.4f} ± {row[name, 'std']:.4f}" for name in SCORES]
        lines.append(
            f"| {method} | {'the judge' if by == 'judge' else 'the network explained'} | " + " | ".join(cells) + " |"
        )
    lines += ["", "Means ± standard deviations over seeds; higher is better in all three.", ""]
    lines += ["| collaboration | mean cosine | with SAD | with confidence |", "|---|---|---|---|"]
    for block, rows in together.groupby("block", sort=False):
        cells = []
        for other in ("SAD", "confidence"):
            r, p = pearsonr(rows.cosine, rows[other])
            cells.append(f"r = {r:.3f}, p = {p:.2g}")
        lines.append(f"| {block} | {rows.cosine.mean():.3f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def accuracy_table(accuracies: pd.DataFrame) -> list[str]:
    """The lines of a table with a row for each seed, and their mean."""
    lines = ["| test accuracy | plain | with MHEX |", "|---|---|---|"]
    lines += [f"| seed {row.Index} | {row.plain:.2f} | {row.MHEX:.2f} |" for row in accuracies.itertuples()]
    return [*lines, f"| mean | {accuracies.plain.mean():.2f} | {accuracies.MHEX.mean():.2f} |", ""]


def picture(together: pd.DataFrame, model: MHEX, images: Tensor, labels: Tensor) -> plt.Figure:
    """The collaboration against SAD and confidence, and its 7 x 7 maps of some images on one scale."""
    maps = spatial_collaboration(model, images, labels)
    blocks = list(together.block.unique())
    figure = plt.figure(figsize=(11, 5 + 2.6 * len(blocks)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(5, 2.6 * (1 + len(blocks))))
    axes = above.subplots(2, len(blocks), sharey="col", squeeze=False)
    for column, block in enumerate(blocks):
        rows = together[together.block == block]
        axes[0, column].set_title(block)
        for row, other in enumerate(("SAD", "confidence")):
            axes[row, column].scatter(rows[other], rows.cosine, s=4, alpha=0.4)
            axes[row, column].set(xlabel=other, ylabel="cosine")
    axes = below.subplots(1 + len(blocks), len(images), squeeze=False)
    most = float(maps.abs().max())
    for column, image in enumerate(images):
        axes[0, column].imshow(shown_image(image))
        axes[0, column].set_title(f"class {int(labels[column])}")
        for row in range(len(blocks)):
            shown = axes[row + 1, column].imshow(maps[column, row].numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
    for row, name in enumerate(["image", *blocks]):
        axes[row, 0].set_ylabel(name)
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    below.colorbar(shown, ax=list(axes[1:].flat), label="cosine, one cell replaced by the mean", shrink=0.6)
    return figure


def shown_image(image: Tensor) -> np.ndarray:
    """An image (height, width, channels) with values from 0 to 1, whatever its normalisation."""
    shown = image.movedim(0, 2).numpy()
    return (shown - shown.min()) / (shown.max() - shown.min())


if __name__ == "__main__":
    main()
