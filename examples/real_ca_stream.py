"""CA-Stream on a real EfficientNet-Lite0 and photographs of several things: tables 1, 3, 5 and 6 of its paper, small.

    python examples/real_ca_stream.py --data fruit                          # downloads EfficientNet-Lite0
    python examples/real_ca_stream.py --data coco128 --weights FILE.pth     # or weights in a file
    python examples/real_ca_stream.py --data fruit --network resnet         # learns from the photographs alone
    python examples/real_ca_stream.py --data fruit --unseen banana          # never sees one

photographs.py says where to get the data. EfficientNet-Lite0 gets a new classifier, fitted on its averaged features; a
small ResNet learns from the photographs alone. The network is frozen then, and streams learn to pool by attention in
place of the average, by binary cross-entropy, as a photograph may show several classes. Mean average precision on test
photographs, and the scores of maps of classes that are there: AD, AG, AI, I and D in percent. Streams start at several
stages, and one has a query for each class. `--unseen` leaves all photographs of a class out, and asks which share of
the attention lies on it, in the photographs that were left out. Writes real_ca_stream_DATA_NETWORK.md and .csv to
`out/`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from box_evidence import RESAMPLES, bootstrapped, share_on
from ca_stream_table import RISES, explained
from frozen_vit import logistic_head
from photographs import MEAN, STD, Photographs, joined, load_photographs
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from sklearn.metrics import average_precision_score
from small_resnet import small_resnet
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from adapters import CAStream, RawAttentionCAM
from quantus_metrics import AverageDrop, AverageGain, AverageIncrease, Deletion, Insertion
from xai_compare._statistics import holm, pairwise

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
    unseen = train[:0]
    if args.unseen:
        train, test, unseen = without(train, test, args.unseen)
    if args.network == "resnet":
        backbone = small_resnet(len(train.classes))
        train_network(backbone, train, args.network_epochs)
    else:
        backbone = load_network(args.weights, len(train.classes))
        fit_classifier(backbone, train)
    variants: dict[str, dict[str, Any]] = {f"S{stage}": {"start_stage": stage} for stage in args.stages}
    variants["S0, class-specific"] = {"class_specific": True}
    rows = list(scored("GAP", backbone, backbone, test, args.images))
    shares = list(shares_on_unseen("GAP", backbone, backbone, unseen, args.unseen))
    for variant, options in variants.items():
        torch.manual_seed(args.seed)
        stream = CAStream(backbone, **options)
        train_stream(stream, train, args.epochs, variant)
        rows += scored(variant, stream, backbone, test, args.images)
        shares += shares_on_unseen(variant, stream, backbone, unseen, args.unseen)
    table = pd.DataFrame(rows)
    parts = ["real_ca_stream", Path(args.data).name.lower(), args.network, args.unseen]
    name = "_".join(part for part in parts if part)
    table.to_csv(args.out / f"{name}.csv", index=False)
    text = f"{len(train.images)} photographs to learn from, {len(test.images)} to test.\n\n{report(table)}"
    if shares:
        text += f"\n\nOn {len(unseen.images)} photographs of {args.unseen}:\n\n{report_of_unseen(pd.DataFrame(shares))}"
    text += f"\n\n{time.perf_counter() - start:.0f} s"
    (args.out / f"{name}.md").write_text(text + "\n")
    print(text)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of fruit or of COCO")
    parser.add_argument("--weights", help='a file of weights for timm, "random", or by default timm\'s own')
    parser.add_argument("--network", choices=["lite0", "resnet"], default="lite0")
    parser.add_argument("--network-epochs", type=int, default=60, help="of the ResNet")
    parser.add_argument("--unseen", default="", metavar="CLASS", help="a class that nothing learns from")
    parser.add_argument("--side", type=int, default=160, help="pixels")
    parser.add_argument("--epochs", type=int, default=8, help="of each stream")
    parser.add_argument("--images", type=int, default=24, help="number of test photographs to explain")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 4], help="where streams start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(given)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def without(train: Photographs, test: Photographs, name: str) -> tuple[Photographs, Photographs, Photographs]:
    """The photographs to learn from and to test without a class, and all of the class whose place is known.

    Raises:
        ValueError: if there is no such class.
    """
    if name not in train.classes:
        raise ValueError(f"Expected --unseen to be one of {', '.join(train.classes)}, got {name!r}.")
    number = train.classes.index(name)
    shown = [one.labels[:, number] for one in (train, test)]
    left_out = joined(train[shown[0]], test[shown[1]])
    return train[~shown[0]], test[~shown[1]], left_out[left_out.areas[:, number].flatten(1).any(1)]


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
    """Learn what is not frozen; of several classes one is drawn where queries are by class."""

    def asked(images: Tensor, labels: Tensor) -> Tensor:
        answer: Tensor = model(images, torch.multinomial(labels + 1e-6, 1)[:, 0])
        return answer

    learned = [weight for weight in model.parameters() if weight.requires_grad]
    learn(model, asked, train, torch.optim.Adam(learned, 1e-3), epochs, 16, title)


def train_network(model: nn.Module, train: Photographs, epochs: int) -> None:
    """Learn the photographs from nothing, and freeze what was learned."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    learn(model, lambda images, labels: model(images), train, optimizer, epochs, 32, "network")
    model.requires_grad_(False)


def learn(
    model: nn.Module,
    logits: Callable[[Tensor, Tensor], Tensor],
    train: Photographs,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    size: int,
    title: str,
) -> None:
    """Learn photographs and their mirror images by binary cross-entropy, with a cosine decay."""
    steps = epochs * -(-len(train.images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps)
    model.train()
    with tqdm(total=steps, desc=title, unit="step") as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(train.images)).split(size):
                images, labels = train.images[chosen], train.labels[chosen].float()
                mirrored = torch.rand(len(chosen), 1, 1, 1) < 0.5
                answers = logits(torch.where(mirrored, images.flip(-1), images), labels)
                loss = binary_cross_entropy_with_logits(answers, labels)
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
    for method, cam in tqdm(cams_of(model, backbone).items(), desc=f"scoring {pooling}", unit="method"):
        maps = explained(cam, images.clone().requires_grad_(), classes)  # the backbone is frozen
        values = {name: score(model, images.numpy(), classes.numpy(), maps) for name, score in SCORES.items()}
        for sample in range(len(images)):
            row = {"pooling": pooling, "mAP": found, "method": method, "sample": sample}
            yield row | {name: 100 * float(value[sample]) for name, value in values.items()}


def cams_of(model: nn.Module, backbone: nn.Module) -> dict[str, Any]:
    """The CAMs of the last stage, and raw attention where there is a stream."""
    layer = backbone.get_submodule(CAStream(backbone).stages[-1])
    cams = {name: make(model=model, target_layers=[layer]) for name, make in CAMS.items()}
    return cams | ({"raw attention": RawAttentionCAM(model)} if isinstance(model, CAStream) else {})


def shares_on_unseen(
    pooling: str, model: nn.Module, backbone: nn.Module, unseen: Photographs, name: str
) -> Iterator[dict[str, object]]:
    """A row for each method and photograph: the share of the map on a class that was never seen.

    CAMs are those of the class that the model takes it for.
    """
    if not len(unseen.images):
        return
    areas = unseen.areas[:, unseen.classes.index(name)]
    classes = outputs(model, unseen.images).argmax(1)
    maps = {"uniform": torch.ones(areas.shape)} if pooling == "GAP" else {}
    for method, cam in tqdm(cams_of(model, backbone).items(), desc=f"{name} by {pooling}", unit="method"):
        found = explained(cam, unseen.images.clone().requires_grad_(), classes)
        maps[f"{method}, {pooling}"] = torch.from_numpy(found[:, 0])
    for method, heat in maps.items():
        for sample, score in enumerate(share_on(heat, areas).tolist()):
            yield {"sample": sample, "method": method, "metric": "share", "score": score}


def report_of_unseen(shares: pd.DataFrame) -> str:
    """Means with intervals, and paired tests against the part of the area."""
    methods = [one for one in shares.method.unique() if one != "uniform"]
    tests = pd.concat([pairwise(shares, ["share"], [one, "uniform"], RESAMPLES, 0) for one in methods])
    tests["p"] = holm(tests.p.reset_index(drop=True)).to_numpy()
    said = {test.method_a: f"{test.effect:+.2f}, {test.p:.1g}" for test in tests.itertuples()}
    lines = ["| map | share on the class | above its part of the area: effect, p |", "|---|---|---|"]
    for method in ["uniform", *methods]:
        lines.append(f"| {method} | {bootstrapped(shares[shares.method == method].score)} | {said.get(method, '')} |")
    return "\n".join(lines)


def report(table: pd.DataFrame) -> str:
    """Means with intervals over photographs, and which differences of S0 and GAP have the paper's sign."""
    lines = [f"| method | pooling | mAP | {' | '.join(SCORES)} |", "|---" * (3 + len(SCORES)) + "|"]
    for (method, pooling), rows in table.groupby(["method", "pooling"], sort=False):
        cells = [bootstrapped(rows[name], ".1f") for name in SCORES]
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
