"""What `check` says of the maps of twelve methods, and whether maps that pass it lie on the digit asked for more.

python examples/trust.py            # scenes of handwritten digits, with bundled weights; writes out/trust.md
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from box_evidence import RESAMPLES, share_inside
from captum.attr import InputXGradient, Saliency
from torch import Tensor, nn
from tqdm import tqdm

from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    PartialLRP,
    RelevancePropagation,
    SmoothCDAM,
    TokenAblation,
    TokenShapley,
    check,
)
from xai_compare import digit_vit
from xai_compare._statistics import interval
from xai_compare.digit_scenes import CANVAS, DIGIT, make_scenes

NUMBERS = ("agreement", "stability", "steps", "head", "all", "prefix_relevance")
VERDICTS = ("passes", "doubtful", "fails")


class Noise:
    """Maps of random numbers, which a check must not let pass."""

    def __init__(self, model: nn.Module) -> None:
        self.forward_func = model

    def attribute(self, inputs: Tensor, target: Any = None, additional_forward_args: Any = None) -> Tensor:
        """(batch, 1, height, width), of the global random state."""
        del target, additional_forward_args
        return torch.randn(len(inputs), 1, *inputs.shape[2:])


def methods(model: nn.Module) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Attributions and their options."""
    ours = (CDAM, SmoothCDAM, IntegratedCDAM, TokenAblation, AttentionMap, AttentionRollout)
    more = (RelevancePropagation, PartialLRP, InputXGradient)
    found: dict[str, tuple[Any, dict[str, Any]]] = {one.__name__: (one(model), {}) for one in (*ours, *more)}
    found["TokenShapley"] = (TokenShapley(model), {"n_samples": 20})
    found["Saliency, signed"] = (Saliency(model), {"abs": False})
    return found | {"random numbers": (Noise(model), {})}


def main(given: Sequence[str] | None = None) -> None:
    """Check, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=50, help="number of scenes, with two questions each")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(given)
    scenes, model = make_scenes(args.scenes, "test", digits=2, seed=7), digit_vit.load()
    images, targets = scenes.images.repeat_interleave(2, 0), scenes.labels.flatten()
    corners = scenes.boxes.flatten(0, 1).flip(1) / CANVAS  # left, top
    boxes = torch.cat([corners, corners + DIGIT / CANVAS], 1)
    rows = []
    for name, (explainer, options) in tqdm(methods(model).items(), desc="checking", unit="method"):
        trust = check(explainer, images, targets, **options)
        torch.manual_seed(0)
        maps = explainer.attribute(images, targets, **options).sum(1).detach()
        numbers = {one: float("nan") if getattr(trust, one) is None else getattr(trust, one) for one in NUMBERS}
        shares = share_inside(maps, boxes)
        rows.append(pd.DataFrame({"method": name, "verdict": trust.verdicts, "inside": shares.numpy(), **numbers}))
    text = report(pd.concat(rows, ignore_index=True))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trust.md").write_text(text + "\n")
    print(f"{text}\n\nwrote {args.out}/trust.md")


def report(found: pd.DataFrame) -> str:
    """Both tables."""
    lines = ["| method | " + " | ".join((*NUMBERS, *VERDICTS)).replace("_", " ") + " |", "|---" * 10 + "|"]
    for name, rows in found.groupby("method", sort=False):
        medians = ["-" if rows[one].isna().all() else f"{rows[one].median():.2f}" for one in NUMBERS]
        counts = [str(int((rows.verdict == one).sum())) for one in VERDICTS]
        lines.append(f"| {name} | {' | '.join([*medians, *counts])} |")
    lines += ["", "| verdict | maps | share of positive relevance in the box of the digit asked for |", "|---|---|---|"]
    for verdict in VERDICTS:
        shares = found.inside[(found.verdict == verdict) & found.inside.notna()].to_numpy()
        low, high = interval(shares, RESAMPLES, seed=0)
        lines.append(f"| {verdict} | {len(shares)} | {shares.mean():.3f} ({low:.3f} to {high:.3f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
