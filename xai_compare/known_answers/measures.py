"""How far a map agrees with what is known: functions of maps and masks, one number for each sample."""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import optimize, sparse
from sklearn.metrics import roc_auc_score
from torch import Tensor


def precision(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the places with the largest absolute values, as many as the mask has, that lie in the mask.

    Places that share the value at the edge count by their share, so that the order of places does not matter.
    """
    found = []
    for heat, mask in zip(maps.flatten(1).abs(), masks.flatten(1), strict=True):
        edge = heat.topk(int(mask.sum())).values[-1]
        above, level = heat > edge, heat == edge
        shared = (mask.sum() - above.sum()) * (level & mask).sum() / level.sum()
        found.append(((above & mask).sum() + shared) / mask.sum())
    return torch.stack(found)


def share_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the positive values that lies in the mask; 0 for a map without positive values."""
    positive = maps.flatten(1).clamp(min=0)
    return _share(positive, masks.flatten(1))


def absolute_share_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of the absolute values that lies in the mask; 0 for a map of zeros."""
    return _share(maps.flatten(1).abs(), masks.flatten(1))


def _share(values: Tensor, masks: Tensor) -> Tensor:
    inside, total = (values * masks).sum(1), values.sum(1)
    return torch.where(total > 0, inside / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)


def cells(maps: Tensor, side: int) -> Tensor:
    """The mean of each square cell, (samples, rows, columns)."""
    return F.avg_pool2d(maps[:, None], side)[:, 0]


def largest_is(values: Tensor, places: Tensor) -> Tensor:
    """Whether the largest of the values (samples, places) is at the place of each sample; several share it."""
    top = values == values.amax(1, keepdim=True)
    return top.gather(1, places[:, None])[:, 0] / top.sum(1)


def ranked_above(values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How often a place of the first kind has a larger value than one of the second, ties count as half: the AUROC.

    Args:
        values: (samples, places).
        first: Which places are of the first kind, (samples, places), at least one of each sample.
        second: Which are of the second, at least one.

    Returns:
        (samples,).
    """
    either = first | second
    rows = zip(values.numpy(force=True), first.numpy(), either.numpy(), strict=True)
    return torch.tensor([roc_auc_score(one[told], heat[told]) for heat, one, told in rows])


def transported(maps: Tensor, masks: Tensor) -> Tensor:
    """The earth mover's distance between absolute values and mask, both with the sum 1, as a score.

    It is 1 if they are the same, and 0 if everything must be moved from corner to corner; 0 for a map of zeros.
    """
    rows, columns = maps.shape[1:]
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    longest = math.hypot(rows - 1, columns - 1)
    heats = maps.flatten(1).abs().double().cpu().numpy()
    wanted = masks.flatten(1).double().cpu().numpy()
    found = [
        1 - distance(a / a.sum(), b / b.sum(), places) / longest if a.sum() else 0.0
        for a, b in zip(heats, wanted, strict=True)
    ]
    return torch.tensor(found)


def distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], places: npt.NDArray[np.int64]) -> float:
    """The earth mover's distance of two distributions over the same places, by Euclidean distances."""
    start, end = np.flatnonzero(a), np.flatnonzero(b)
    costs = np.linalg.norm(places[start][:, None] - places[end][None], axis=-1)
    sends = sparse.kron(sparse.eye(len(start)), np.ones((1, len(end))))
    receives = sparse.kron(np.ones((1, len(start))), sparse.eye(len(end)))
    amounts = np.concatenate([a[start], b[end]])
    plan = optimize.linprog(costs.ravel(), A_eq=sparse.vstack([sends, receives]).tocsr()[:-1], b_eq=amounts[:-1])
    if plan.status != 0:
        raise ValueError(f"The earth mover's distance was not found: {plan.message}")
    return float(plan.fun)
