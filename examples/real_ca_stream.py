"""CA-Stream on a real EfficientNet-Lite0 and photographs of several things: tables 1, 3, 5 and 6 of its paper, small.

    python examples/real_ca_stream.py --data fruit                          # downloads EfficientNet-Lite0
    python examples/real_ca_stream.py --data coco128 --weights FILE.pth     # or weights in a file

photographs.py says where to get the data. The network gets a new classifier, fitted on its averaged features; it is
frozen then, and streams learn to pool by attention in place of the average, by binary cross-entropy, as a photograph
may show several classes. Mean average precision on test photographs, and the scores of maps of classes that are there:
AD, AG, AI, I and D in percent. Streams start at several stages, and one has a query for each class. Writes
real_ca_stream_DATA.md and .csv to `out/`.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from box_evidence import RESAMPLES
from ca_stream_table import RISES, explained
from frozen_vit import logistic_head
from photographs import MEAN, STD, Photographs, load_photographs
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from adapters import CAStream, RawAttentionCAM
from quantus_metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion
from xai_compare._statistics import interval

CAMS = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMPlusPlus}
_QUIET = {"disable_warnings": True, "activation": "sigmoid"}
SCORES = {
    "AD": AverageDrop(**_QUIET),
    "AG": AverageGain(**_QUIET),
    "AI": AverageIncrease(**_QUIET),
    "I": Insertion(steps=10, **_QUIET),
    "D": Deletion(steps=10, **_QUIET),
}


def main(given: list[str] | None = None) -> None:
    """Fit, train the streams, explain, score, print."""
    args = _arguments(given)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    train, test = (as_read(load_photographs(args.data, split, args.side)) for split in ("train", "test"))
    backbone = load_network(args.weights, len(train.classes))
    fit_classifier(backbone, train)
    name = Path(args.data).name.lower()
    rows = list(scored("GAP", backbone, backbone, test, args.images))
    variants = {f"S{stage}": {"start_stage": stage} for stage in args.stages}
    variants["S0, class-specific"] = {"class_specific": True}
    for variant, options in variants.items():
        torch.manual_seed(args.seed)
        stream = CAStream(backbone, **options)
        train_stream(stream, train, args.epochs, variant)
        rows += scored(variant, stream, backbone, test, args.images)
    table = pd.DataFrame(rows)
    table.to_csv(args.out / f"real_ca_stream_{name}.csv", index=False)
    text = f"{len(train.images)} photographs to learn from, {len(test.images)} to test.\n\n{report(table)}"
    text += f"\n\n{time.perf_counter() - start:.0f} s"
    (args.out / f"real_ca_stream_{name}.md").write_text(text + "\n")
    print(text)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of fruit or of COCO")
    parser.add_argument("--weights", help='a file of weights for timm, "random", or by default timm\'s own')
    parser.add_argument("--side", type=int, default=160, help="pixels")
    parser.add_argument("--epochs", type=int, default=8, help="of each stream")
    parser.add_argument("--images", type=int, default=24, help="number of test photographs to explain")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 4], help="where streams start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(given)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def load_network(weights: str | None, classes: int) -> Any:
    """An EfficientNet-Lite0 with a new classifier; a file may have other names for its weights, in timm's order.

    Raises:
        ValueError: if the file's weights have other shapes.
    """
    model = timm.create_model("tf_efficientnet_lite0", pretrained=weights is None)
    if weights not in (None, "random"):
        given, own = torch.load(weights, map_location="cpu", weights_only=True), model.state_dict()
        if [value.shape for value in given.values()] != [value.shape for value in own.values()]:
            raise ValueError(f"Expected the weights of timm's tf_efficientnet_lite0 in {weights}; it holds others.")
        model.load_state_dict(dict(zip(own, given.values(), strict=True)))
    model.reset_classifier(classes)
    return model.eval()


def as_read(photographs: Photographs) -> Photographs:
    """Normalised as EfficientNet-Lite's: from about -1 to 1."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    return replace(photographs, images=2 * (photographs.images * std + mean) - 1)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, some images at a time."""
    return torch.cat([model(part) for part in images.split(16)])


def fit_classifier(model: Any, train: Photographs) -> None:
    """Replace the classifier by logistic regressions on averaged features."""
    head = model.classifier
    model.classifier = nn.Identity()
    features = outputs(model, train.images)
    model.classifier = head
    head.load_state_dict(logistic_head(features, train.labels).state_dict())


def train_stream(model: CAStream, train: Photographs, epochs: int, title: str) -> None:
    """Learn by Adam with a cosine decay; of several classes one is drawn where queries are by class."""
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    steps = epochs * -(-len(train.images) // 16)
    optimizer = torch.optim.Adam(learned, 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    model.train()
    with tqdm(total=steps, desc=title, unit="step") as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(train.images)).split(16):
                labels = train.labels[chosen].float()
                asked = torch.multinomial(labels + 1e-6, 1)[:, 0]
                loss = binary_cross_entropy_with_logits(model(train.images[chosen], asked), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{float(loss):.3f}")
    model.eval()


def precision(logits: Tensor, labels: Tensor) -> float:
    """Mean average precision over the classes that are there, in percent."""
    there = [number for number in range(labels.shape[1]) if labels[:, number].any()]
    return 100 * float(np.mean([average_precision_score(labels[:, i].numpy(), logits[:, i].numpy()) for i in there]))


def scored(
    pooling: str, model: nn.Module, backbone: nn.Module, test: Photographs, count: int
) -> Iterator[dict[str, object]]:
    """A row for each method and photograph; of each photograph the likeliest class that it shows is explained."""
    logits = outputs(model, test.images)
    found = precision(logits, test.labels)
    chosen = test.labels.any(1).nonzero()[:, 0]
    chosen = chosen[torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).long()]
    images = test.images[chosen]
    classes = logits[chosen].masked_fill(~test.labels[chosen], -torch.inf).argmax(1)
    layer = CAStream(backbone).stages[-1]
    cams = {name: make(model=model, target_layers=[backbone.get_submodule(layer)]) for name, make in CAMS.items()}
    if isinstance(model, CAStream):
        cams["raw attention"] = RawAttentionCAM(model)
    for method, cam in tqdm(cams.items(), desc=f"scoring {pooling}", unit="method"):
        maps = explained(cam, images.clone().requires_grad_(), classes)  # the backbone is frozen
        values = {name: score(model, images.numpy(), classes.numpy(), maps) for name, score in SCORES.items()}
        for sample in range(len(images)):
            row = {"pooling": pooling, "mAP": found, "method": method, "sample": sample}
            yield row | {name: 100 * float(value[sample]) for name, value in values.items()}


def report(table: pd.DataFrame) -> str:
    """Means with intervals over photographs, and which differences of S0 and GAP have the paper's sign."""
    lines = [f"| method | pooling | mAP | {' | '.join(SCORES)} |", "|---" * (3 + len(SCORES)) + "|"]
    for (method, pooling), rows in table.groupby(["method", "pooling"], sort=False):
        cells = []
        for name in SCORES:
            low, high = interval(rows[name].to_numpy(), RESAMPLES, 0)
            cells.append(f"{rows[name].mean():.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {method} | {pooling} | {rows.mAP.iloc[0]:.1f} | {' | '.join(cells)} |")
    means = table.groupby(["method", "pooling"])[[*SCORES]].mean()
    lines += ["", "With the stream from the first stage in place of the average, the sign is the paper's for:", ""]
    first = table.pooling.unique()[1]
    for name, rises in RISES.items():
        agree = [one for one in CAMS if (means.loc[(one, first), name] > means.loc[(one, "GAP"), name]) == rises]
        lines.append(f"- {name}: {', '.join(agree) or 'no method'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
