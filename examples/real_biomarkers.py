"""Where a Vision Transformer sees the size, shape, darkness and texture of a blood cell: CDAM of a regression.

    python examples/real_biomarkers.py --data BCCD_Dataset/BCCD                  # see blood_cells.py; downloads DINOv2
    python examples/real_biomarkers.py --data BCCD_Dataset/BCCD --vision FOLDER  # weights in a folder

As in section 5.2 of CDAM's paper, but on white cells: of each, scikit-image measures the diameter, the elongation, the
darkness of the nucleus and the granularity in the photograph. A linear head on a frozen DINOv2 learns to tell them from
the picture. Then CDAM explains each output: how much of its absolute relevance lies on the cell, its rim and its
nucleus? Writes real_biomarkers.md, .csv and .png to `out/`.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from blood_cells import Box, chosen_cells, split_files
from box_evidence import bootstrapped, share_on
from frozen_vit import WithHead, class_tokens, load_backbone
from matplotlib.figure import Figure
from photographs import MEAN, STD
from PIL import Image
from scipy.ndimage import binary_fill_holes
from skimage.filters import gaussian, threshold_multiotsu
from skimage.measure import label, regionprops
from skimage.morphology import dilation, disk, erosion, opening
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torchvision.transforms.functional import normalize, pil_to_tensor
from tqdm import tqdm

from captum_ext import CDAM, AttentionMap, TokenAblation, signed_overlay

OUTPUTS = ("diameter", "elongation", "darkness of the nucleus", "granularity")
REGIONS = ("cell", "rim", "nucleus")
WINDOW = 256  # pixels of the photograph around a cell, the same for all, so that a large cell looks large
SHIFT = 24  # pixels at most, of the window against the cell
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """White cells.

    images: (cells, 3, side, side), normalised as ImageNet's.
    values: (cells, 4), see OUTPUTS: pixels, a ratio of axes, and grey levels from 0 to 1.
    regions: (cells, 3, side, side), booleans, see REGIONS.
    """

    images: Tensor
    values: Tensor
    regions: Tensor


def main(given: list[str] | None = None) -> None:
    """Measure, fit, explain, print."""
    args = _arguments(given)
    start = time.perf_counter()
    train, test = (load_measured(args.data, split, args.side) for split in (("train", "validation"), ("test",)))
    backbone = load_backbone(args.vision)
    head = ridge_head(class_tokens(backbone, train.images, args.out), train.values)
    with torch.no_grad():
        predicted = head(class_tokens(backbone, test.images, args.out))
    model = WithHead(backbone, head).eval()
    maps = explained(model, test.images)
    scores = measured(maps, test.regions)
    scores.to_csv(args.out / "real_biomarkers.csv", index=False)
    fitted = [r2_score(test.values[:, i].numpy(), predicted[:, i].numpy()) for i in range(len(OUTPUTS))]
    text = report(train, test, fitted, scores) + f"\n\n{time.perf_counter() - start:.0f} s"
    (args.out / "real_biomarkers.md").write_text(text + "\n")
    picture(test, maps["CDAM"]).savefig(args.out / "real_biomarkers.png", dpi=100)
    print(text)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of BCCD")
    parser.add_argument("--vision", default="facebook/dinov2-small", help='a DINOv2, by name or folder, or "random"')
    parser.add_argument("--side", type=int, default=154, help="pixels; a token is 14 x 14")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(given)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def load_measured(folder: str, splits: tuple[str, ...], side: int) -> Measured:
    """The white cells of the photographs of these splits that lie wholly in the photograph and can be measured."""
    images, values, regions = [], [], []
    for file in [file for split in splits for file in split_files(folder, split)]:
        random = Random(file.stem)
        for number, box in chosen_cells(file):
            if number != 0:
                continue
            with Image.open(file.parent.parent / "JPEGImages" / f"{file.stem}.jpg") as photograph:
                found = window(photograph.convert("RGB"), box, random)
            measures = measure(*found) if found else None
            if found and measures:
                resized = found[0].resize((side, side), Image.Resampling.BICUBIC)
                images.append(normalize(pil_to_tensor(resized).float() / 255, MEAN, STD))
                values.append(measures[0])
                places = ((torch.arange(side) + 0.5) * WINDOW / side).long()
                regions.append(torch.from_numpy(np.stack(measures[1]))[:, places][:, :, places])
    return Measured(torch.stack(images), torch.tensor(values), torch.stack(regions))


def window(photograph: Image.Image, box: Box, random: Random) -> tuple[Image.Image, Box] | None:
    """A square around a cell and the cell's box in it, unless it is cut off or too large."""
    left, top, right, bottom = box
    inside = min(left, top) > 2 and right < photograph.width - 2 and bottom < photograph.height - 2
    if not inside or max(right - left, bottom - top) > WINDOW - 16:
        return None
    corner = []
    for first, last, length in ((left, right, photograph.width), (top, bottom, photograph.height)):
        start = round((first + last - WINDOW) / 2 + random.uniform(-SHIFT, SHIFT))
        corner.append(min(max(start, 0), length - WINDOW))
    x, y = corner
    return photograph.crop((x, y, x + WINDOW, y + WINDOW)), (left - x, top - y, right - x, bottom - y)


def measure(picture: Image.Image, box: Box) -> tuple[list[float], tuple[Mask, Mask, Mask]] | None:
    """The four measures of a white cell, and where cell, rim and nucleus are; None where no nucleus stands out.

    Three grey levels of green light (multi-Otsu): the ground, cells, and nuclei. The nucleus is what is darkest in the
    box; the cell is what is not ground there, connected with the nucleus. Diameter: of a disk of the cell's area.
    Elongation: the longer axis over the shorter. Darkness: 1 minus the nucleus's mean green. Granularity: standard
    deviation within the cell of what a Gaussian of 2 pixels takes away.
    """
    green = np.asarray(picture)[..., 1] / 255
    smooth = gaussian(green, 1.5)
    dark, light = threshold_multiotsu(smooth)
    left, top, right, bottom = (round(edge) for edge in box)
    inside = np.zeros(green.shape, bool)
    inside[max(top - 6, 0) : bottom + 6, max(left - 6, 0) : right + 6] = True
    nucleus = opening(inside & (smooth < dark), disk(3))
    if nucleus.sum() < 200:
        return None
    parts = label(opening(inside & (smooth < light), disk(5)) | nucleus)
    cell = binary_fill_holes(parts == np.argmax(np.bincount(parts[nucleus])))
    nucleus = nucleus & cell
    shape = regionprops(cell.astype(int))[0]
    if shape.axis_minor_length < 10 or nucleus.sum() < 200:
        return None
    fine = green - gaussian(green, 2)
    values = [
        shape.equivalent_diameter_area,
        shape.axis_major_length / shape.axis_minor_length,
        1 - green[nucleus].mean(),
        fine[cell].std(),
    ]
    return [float(one) for one in values], (cell, dilation(cell, disk(8)) & ~erosion(cell, disk(8)), nucleus)


def ridge_head(tokens: Tensor, values: Tensor) -> nn.Linear:
    """A ridge regression of each output, its strength chosen by leaving out."""
    head = nn.Linear(tokens.shape[1], values.shape[1])
    mean, deviation = tokens.mean(0), tokens.std(0).clamp(min=1e-6)
    standard = ((tokens - mean) / deviation).double().numpy()
    with torch.no_grad():
        for number, column in enumerate(values.T.double().numpy()):
            fitted = RidgeCV(np.logspace(0, 5, 16)).fit(standard, column)
            head.weight[number] = torch.from_numpy(fitted.coef_).float() / deviation
            head.bias[number] = float(fitted.intercept_) - (head.weight[number] * mean).sum()
    return head


def explained(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of each method (outputs, cells, h, w)."""
    explainers = {
        "CDAM": CDAM(model),
        "CDAM, block before": CDAM(model, attention=-2),
        "token ablation": TokenAblation(model),
        "attention": AttentionMap(model),
    }
    maps = {}
    for name, explainer in tqdm(explainers.items(), desc="explaining", unit="method"):
        parts = [
            torch.stack([explainer.attribute(part, target=output)[:, 0] for output in range(len(OUTPUTS))])
            for part in images.split(8)
        ]
        maps[name] = torch.cat(parts, 1).detach()
    return maps


def measured(maps: dict[str, Tensor], regions: Tensor) -> pd.DataFrame:
    """Which part of the absolute relevance lies in each region: method, output, region, cell, share.

    The method "uniform" is the region's part of the area.
    """
    side = regions.shape[-1]
    rows = []
    for number, region in enumerate(REGIONS):
        area = regions[:, number].double().mean((1, 2))
        for position, output in enumerate(OUTPUTS):
            found = {
                name: share_on(_pixels(heat[position].abs(), side), regions[:, number]) for name, heat in maps.items()
            }
            for name, shares in (found | {"uniform": area}).items():
                rows += [
                    {"method": name, "output": output, "region": region, "cell": cell, "share": float(share)}
                    for cell, share in enumerate(shares)
                ]
    return pd.DataFrame(rows)


def _pixels(maps: Tensor, side: int) -> Tensor:
    return nn.functional.interpolate(maps[:, None], (side, side), mode="nearest-exact")[:, 0]


def report(train: Measured, test: Measured, fitted: list[float], scores: pd.DataFrame) -> str:
    """What was learned, and where relevance lies."""
    lines = ["| output | mean | standard deviation | R^2, test |", "|---|---|---|---|"]
    for number, output in enumerate(OUTPUTS):
        values = test.values[:, number]
        lines.append(f"| {output} | {values.mean():.3g} | {values.std():.2g} | {fitted[number]:.2f} |")
    lines += ["", f"| absolute relevance | method | {' | '.join(REGIONS)} |", "|---" * (2 + len(REGIONS)) + "|"]
    for output in OUTPUTS:
        for method in scores.method.unique():
            if output != OUTPUTS[0] and method in ("attention", "uniform"):
                continue  # the same for all outputs
            own = scores[(scores.output == output) & (scores.method == method)]
            cells = [bootstrapped(own[own.region == region].share) for region in REGIONS]
            of = "any output" if method in ("attention", "uniform") else output
            lines.append(f"| {of} | {method} | {' | '.join(cells)} |")
    return f"{len(train.images)} white cells to learn from, {len(test.images)} to test.\n\n" + "\n".join(lines)


def picture(test: Measured, maps: Tensor, count: int = 4) -> Figure:
    """The first cells with the map of each output, each on its own scale; lines bound cell and nucleus."""
    figure = Figure(figsize=(2.2 * (1 + len(OUTPUTS)), 2.2 * count + 0.5), layout="constrained")
    figure.suptitle("Red raises the output, blue lowers it; lines: cell and nucleus")
    axes = figure.subplots(min(count, len(test.images)), 1 + len(OUTPUTS), squeeze=False)
    for row, line in enumerate(axes):
        image = (test.images[row] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).clamp(0, 1)
        line[0].imshow(image.permute(1, 2, 0).numpy())
        line[0].set_ylabel(f"cell {row}")
        for number, output in enumerate(OUTPUTS):
            heat = maps[number, row]
            line[number + 1].imshow(signed_overlay(0.6 + 0.4 * image, heat, float(heat.abs().max()) or 1.0))
            axes[0, number + 1].set_title(output, fontsize=9)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            for region in (0, 2):
                axis.contour(test.regions[row, region].numpy(), [0.5], colors="black", linewidths=0.7)
    return figure


if __name__ == "__main__":
    main()
