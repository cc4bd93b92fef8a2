"""The tables of CDAM's paper on photographs of several things, with a real DINOv2 and a linear head.

    python examples/real_cdam.py --data fruit                                  # downloads DINOv2 ViT-S/14
    python examples/real_cdam.py --data coco128 --vision FOLDER --limit 40     # or weights in a folder

photographs.py says where to get the data. A head learns which classes a photograph shows. In photographs of two classes
or more that it has not learned from, each method explains each class that is there and that the head finds before all
absent ones. Where does the relevance lie: on the things asked for, or on the other ones? Then the scores of tables 1 to
3, by xai-compare. Intervals and tests are over photographs, of whose questions scores are the mean. Writes
real_cdam_DATA.md and .csv to `out/`, and the comparison's page; an interrupted run resumes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from box_evidence import RESAMPLES, bootstrapped, share_on, shares_table, table
from frozen_vit import WithHead, class_tokens, load_backbone, logistic_head
from photographs import Photographs, joined, load_photographs
from sklearn.metrics import average_precision_score
from torch import Tensor

from xai_compare import Comparison, compare
from xai_compare._statistics import holm, pairwise

METHODS = {  # one of them also at the attention in front of the last
    "cdam": {},
    "smooth-cdam": {},
    "integrated-cdam": {"n_steps": 50},
    "cdam-before=cdam": {"attention": -2},
    "token-ablation": {},
    "attention": {},
    "rollout": {},
    "relevance": {},
    "partial-lrp": {},
    "gradcam": {},
    "ixg": {},
    "random": {},
}
TITLES = {name.partition("=")[0]: name.partition("=")[0].replace("-before", ", block before") for name in METHODS}


def main(given: list[str] | None = None) -> None:
    """Fit the head, explain, score, print."""
    args = _arguments(given)
    start = time.perf_counter()
    backbone = load_backbone(args.vision)
    train, test = (load_photographs(args.data, split, args.side) for split in ("train", "test"))
    alone = train[(train.labels.sum(1) == 1)] if len(train.classes) == 3 else train  # fruit: keep the others unseen
    head = logistic_head(class_tokens(backbone, alone.images, args.out), alone.labels)
    model = WithHead(backbone, head).eval()
    precision = average_precision(head, class_tokens(backbone, test.images, args.out), test)
    unseen = joined(train, test) if alone is not train else test
    unseen = unseen[(unseen.labels & unseen.areas.flatten(2).any(2)).sum(1) > 1]
    pictures, asked = questions(unseen, head, class_tokens(backbone, unseen.images, args.out), args.limit)
    name = Path(args.data).name.lower()
    run = scored(model, unseen, pictures, asked, args.out / f"real_cdam_{name}", boxes=args.boxes, steps=args.steps)
    shares = shares_of(run, unseen, pictures, asked)
    scores = by_photograph(run, pictures)
    pd.concat([shares, scores]).to_csv(args.out / f"real_cdam_{name}.csv", index=False)
    text = "\n\n".join(
        [
            f"Average precision on {len(test.labels)} test photographs: {precision}.",
            f"{len(asked)} questions about {len(set(pictures.tolist()))} photographs.",
            table(shares, "cdam"),
            "Tables 1 to 3:",
            paper_table(scores),
            f"Significant (Holm, p < 0.05) against cdam:\n\n{significant(scores)}",
            f"{time.perf_counter() - start:.0f} s",
        ]
    )
    (args.out / f"real_cdam_{name}.md").write_text(text + "\n")
    print(text)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of fruit or of COCO")
    parser.add_argument("--vision", default="facebook/dinov2-small", help='a DINOv2, by name or folder, or "random"')
    parser.add_argument("--side", type=int, default=154, help="pixels; a token is 14 x 14")
    parser.add_argument("--limit", type=int, default=60, help="number of questions, a class of a photograph each")
    parser.add_argument("--boxes", type=int, default=25, help="of each of eight sizes, or 0 for no such scores")
    parser.add_argument("--steps", type=int, default=10, help="of fidelity, or 0 for no such scores")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(given)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def average_precision(head: torch.nn.Linear, tokens: Tensor, test: Photographs) -> str:
    """Of each class in percent, and their mean."""
    with torch.no_grad():
        logits = head(tokens)
    known = [number for number in range(len(test.classes)) if test.labels[:, number].any()]
    found = {
        test.classes[i]: 100 * average_precision_score(test.labels[:, i].numpy(), logits[:, i].numpy()) for i in known
    }
    return f"{np.mean(list(found.values())):.1f} %; " + ", ".join(f"{name} {one:.1f}" for name, one in found.items())


def questions(photographs: Photographs, head: torch.nn.Linear, tokens: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Photographs, and those of their classes that have an area and that the head finds before all absent ones."""
    with torch.no_grad():
        logits = head(tokens)
    absent = logits.masked_fill(photographs.labels, -torch.inf).amax(1, keepdim=True)
    present = photographs.labels & photographs.areas.flatten(2).any(2)
    pictures, classes = (present & (logits > absent)).nonzero().unbind(1)
    if not len(pictures):
        raise ValueError("The head finds no class in photographs of several: there is nothing to explain.")
    return pictures[:limit], classes[:limit]


def scored(
    model: torch.nn.Module,
    photographs: Photographs,
    pictures: Tensor,
    asked: Tensor,
    out: Path,
    *,
    boxes: int,
    steps: int,
) -> Comparison:
    """All methods on these questions."""
    options = {name.partition("=")[0]: given for name, given in METHODS.items() if given}
    metrics = ["compactness"]
    for metric, given in (("box-sensitivity", {"num_boxes": boxes}), ("fidelity", {"steps": steps})):
        if all(given.values()):
            other = f"{metric}-discrimination"
            metrics += [metric, f"{other}=class-discrimination"]
            options |= {metric: given, other: {"metric": metric}}
    return compare(
        model,
        (photographs.images[pictures], asked.tolist()),
        out=out,
        methods=list(METHODS),
        metrics=metrics,
        targets="label",
        activation="sigmoid",
        labels=photographs.classes,
        options=options,
        batch_size=4,
        save_maps=True,
        gallery=6,
    )


def shares_of(run: Comparison, photographs: Photographs, pictures: Tensor, asked: Tensor) -> pd.DataFrame:
    """Shares of relevance on the things asked for and on the other ones."""
    here = photographs.areas[pictures, asked]
    there = photographs.areas[pictures].any(1) & ~here
    found = {}
    for name in TITLES:
        with np.load(run.folder / "maps" / f"{name}.npz") as kept:
            maps = torch.full(here.shape, torch.nan)
            maps[kept["sample"]] = torch.from_numpy(kept["maps"])
        found[TITLES[name]] = share_on(maps, here), share_on(maps, there)
    area = here.double().mean((1, 2)), there.double().mean((1, 2))
    return shares_table(found | {"uniform": area}, pictures.tolist())


def by_photograph(run: Comparison, pictures: Tensor) -> pd.DataFrame:
    """The scores of xai-compare, means over the questions of a photograph."""
    scores = run.scores()
    scores["sample"] = pictures.numpy()[scores["sample"]]
    return scores.groupby(["sample", "method", "metric"], sort=False, as_index=False).score.mean()


def paper_table(scores: pd.DataFrame) -> str:
    """Means with intervals: a row for each method, a column for each score."""
    metrics = list(scores.metric.unique())
    by_cell = scores.groupby(["method", "metric"]).score
    lines = [f"| method | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name, title in TITLES.items():
        cells = [bootstrapped(by_cell.get_group((name, metric)), ".3g") for metric in metrics]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def significant(scores: pd.DataFrame) -> str:
    """In which scores a method differs from CDAM, of all tests against it."""
    lines = []
    for metric in scores.metric.unique():
        tests = pd.concat([pairwise(scores, [metric], ["cdam", one], RESAMPLES, 0) for one in TITLES if one != "cdam"])
        tests = tests[(holm(tests.p.reset_index(drop=True)) < 0.05).to_numpy()]
        for sign, word in ((1, "cdam higher than"), (-1, "cdam lower than")):
            names = [TITLES[one] for one in tests.method_b[np.sign(tests.effect) == sign]]
            if names:
                lines.append(f"- {metric}: {word} {', '.join(names)}")
    return "\n".join(lines) or "- none"


if __name__ == "__main__":
    main()
