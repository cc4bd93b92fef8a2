"""How far methods agree: rank correlations of their maps of the same sample."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from ._statistics import interval


def spearman(maps: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Spearman's correlations of all pairs of maps.

    `scipy.stats.spearmanr` gives the same numbers, but of two rows no matrix, and warns of constant ones.

    Args:
        maps: (methods, places).

    Returns:
        (methods, methods); NaN for a map whose values are all equal.
    """
    ranks = stats.rankdata(maps, axis=1)
    centred = ranks - ranks.mean(1, keepdims=True)
    length = np.sqrt((centred**2).sum(1))
    length[length == 0] = np.nan
    return np.asarray((centred @ centred.T / np.outer(length, length)).clip(-1, 1))


def agreement(
    parts: Iterable[pd.DataFrame], methods: Iterable[str], resamples: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How far methods agree, on average and on each sample.

    Args:
        parts: Rows of sample, method and map (a flat list); a part has all rows of its samples. They are read one after
            the other, and a number is kept for each sample and pair of methods.
        methods: In the order of the rows.
        resamples: Number of resamples of the percentile bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        For each pair of methods method_a, method_b, n (samples with a correlation), mean, ci_low and ci_high (95 %);
        and for each sample, those with the lowest agreement first: sample, agreement (the mean correlation of all pairs
        of methods) and n_pairs. Failed and constant maps have no correlation.

    Raises:
        ValueError: if the maps of a sample differ in size.
    """
    methods = list(methods)
    pairs = list(combinations(methods, 2))
    samples: list[Any] = []
    found: list[npt.NDArray[np.float64]] = []
    for part in parts:
        for sample, rows in part.groupby("sample"):
            samples.append(sample)
            found.append(_of_sample(dict(zip(rows["method"], rows["map"], strict=True)), methods))
    table = np.stack(found) if found else np.empty((0, len(pairs)))
    known = [column[np.isfinite(column)] for column in table.T]
    by_pair = [
        (a, b, len(values), values.mean() if len(values) else np.nan, *interval(values, resamples, seed))
        for (a, b), values in zip(pairs, known, strict=True)
    ]
    counts = np.isfinite(table).sum(1)
    means = np.divide(np.nansum(table, 1), counts, out=np.full(len(table), np.nan), where=counts > 0)
    by_sample = pd.DataFrame({"sample": samples, "agreement": means, "n_pairs": counts})
    return (
        pd.DataFrame(by_pair, columns=["method_a", "method_b", "n", "mean", "ci_low", "ci_high"]),
        by_sample[: len(samples) * bool(pairs)].sort_values(["agreement", "sample"], ignore_index=True),
    )


def _of_sample(maps: dict[str, Sequence[float]], methods: Sequence[str]) -> npt.NDArray[np.float64]:
    """The correlation of each pair of methods; NaN for those without a map."""
    present = [at for at, method in enumerate(methods) if method in maps]
    matrix = np.full((len(methods), len(methods)), np.nan)
    if present:
        rows = [np.asarray(maps[methods[at]]) for at in present]
        if len({len(row) for row in rows}) > 1:
            sizes = {methods[at]: len(row) for at, row in zip(present, rows, strict=True)}
            raise ValueError(f"Expected maps of one size for each sample, got {sizes} places: bring them to one size.")
        matrix[np.ix_(present, present)] = spearman(np.stack(rows))
    return matrix[np.triu_indices(len(methods), 1)]
