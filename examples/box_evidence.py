"""Is relevance on the thing asked for? Shares of it inside boxes, with intervals and paired tests."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from xai_compare._statistics import holm, interval, pairwise

RESAMPLES = 2000
MEASURES = ("asked box", "other box", "asked - other", "asked > other")


def share_inside(maps: Tensor, boxes: Tensor) -> Tensor:
    """Which part of the positive relevance of a map lies inside a box.

    A place on the edge of the box counts by the part of its area that is inside.

    Args:
        maps: (maps, h, w), relevance in the places of a grid over the whole image.
        boxes: (maps, 4), left, top, right and bottom, as parts of the image's sides, from 0 to 1.

    Returns:
        (maps,), from 0 to 1; NaN where nothing is positive.
    """
    positive = maps.double().clamp(min=0)
    left, top, right, bottom = boxes.double().unbind(1)
    rows, columns = _covered(top, bottom, maps.shape[1]), _covered(left, right, maps.shape[2])
    inside = torch.einsum("nhw,nh,nw->n", positive, rows, columns)
    return inside / positive.sum((1, 2))


def share_on(maps: Tensor, areas: Tensor) -> Tensor:
    """Which part of the positive relevance of a map lies on an area of any shape.

    Args:
        maps: (maps, height, width), relevance of pixels.
        areas: (maps, height, width), booleans.

    Returns:
        (maps,), from 0 to 1; NaN where nothing is positive.
    """
    positive = maps.double().clamp(min=0)
    return (positive * areas).sum((1, 2)) / positive.sum((1, 2))


def _covered(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """(intervals, cells), which part of each of the equal cells from 0 to 1 an interval covers."""
    edges = torch.arange(cells + 1, dtype=start.dtype) / cells
    overlap = torch.minimum(end[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])
    return overlap.clamp(min=0) * cells


def measured(maps: Mapping[str, Tensor], asked: Tensor, other: Tensor, scenes: Sequence[int]) -> pd.DataFrame:
    """One row for each scene, method and measure, the mean over the scene's questions.

    Args:
        maps: Of each method (questions, h, w).
        asked: (questions, 4), the box of what is asked for.
        other: (questions, 4), the box of the other thing.
        scenes: The scene of each question.

    Returns:
        The columns sample, method, metric (see MEASURES) and score; a map with nothing positive has no score.
    """
    shares = {name: (share_inside(heat, asked), share_inside(heat, other)) for name, heat in maps.items()}
    return shares_table(shares, scenes)


def shares_table(shares: Mapping[str, tuple[Tensor, Tensor]], scenes: Sequence[int]) -> pd.DataFrame:
    """The same of shares that are known: of each method (questions,) on what is asked for and on the other."""
    parts = []
    for method, (here, there) in shares.items():
        more = torch.where(here.isnan(), torch.nan, (here > there).double() + (here == there) / 2)
        for name, scores in zip(MEASURES, (here, there, here - there, more), strict=True):
            parts.append(pd.DataFrame({"sample": scenes, "method": method, "metric": name, "score": scores.numpy()}))
    rows = pd.concat(parts)
    return rows.groupby(["sample", "method", "metric"], sort=False, as_index=False).score.mean()


def table(scores: pd.DataFrame, reference: str, seed: int = 0) -> str:
    """Means with 95 % intervals over scenes, and paired tests of `asked - other` of the reference against each method.

    The effect is the matched-pairs rank-biserial correlation, from -1 (the other method is always ahead) to 1.
    """
    methods = list(scores.method.unique())
    tests = pd.concat(
        [pairwise(scores, ["asked - other"], [reference, one], RESAMPLES, seed) for one in methods if one != reference]
    )
    tests = tests.assign(p=holm(tests.p.reset_index(drop=True)).to_numpy()).set_index("method_b")
    lines = [
        f"| method | {' | '.join(MEASURES)} | scenes | {reference} ahead: effect, p |",
        f"|---|{'---|' * (len(MEASURES) + 2)}",
    ]
    for method in methods:
        own = scores[scores.method == method]
        cells = [bootstrapped(own[own.metric == name].score, seed=seed) for name in MEASURES]
        count = own[own.metric == MEASURES[0]].score.notna().sum()
        test = "" if method == reference else f"{tests.effect[method]:+.2f}, {tests.p[method]:.1g}"
        lines.append(f"| {method} | {' | '.join(cells)} | {count} | {test} |")
    return "\n".join(lines)


def bootstrapped(scores: pd.Series, form: str = ".3f", seed: int = 0) -> str:
    """The mean of the scores that are there with its 95 % interval, for a table."""
    values = scores.dropna().to_numpy(float)
    if not len(values):
        return "-"
    low, high = interval(values, RESAMPLES, seed)
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"
