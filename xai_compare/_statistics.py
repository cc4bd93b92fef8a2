"""Statistics of a run: means with intervals, ranks, and which differences are significant."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

LEVEL = 0.95
SIGNIFICANT = 0.05  # p values below it
_AT_ONCE = 10_000_000  # numbers that the bootstrap samples at a time
_IN_CACHE = 16_000  # the same, where each is used several times
_SIGNS = 13  # differences whose signs are enumerated


def summarise(
    scores: pd.DataFrame, directions: Mapping[str, str], methods: Iterable[str], resamples: int, seed: int
) -> pd.DataFrame:
    """One row for each metric and method.

    Args:
        scores: Rows of sample, method, metric, score and seconds; failed ones have no score.
        directions: Of each metric "higher", "lower" or "".
        methods: In the order of the rows.
        resamples: Number of resamples of the percentile bootstrap.
        seed: Seed of the bootstrap; all methods share the resampled samples.

    Returns:
        The columns metric, direction, method, n, failed, mean, ci_low and ci_high (95 %), mean_rank (over the samples
        that all methods have, 1 is best, ties share) and seconds (for one score).
    """
    rows = []
    for metric, direction in directions.items():
        of_metric = scores[scores.metric == metric]
        ranks = mean_ranks(wide(of_metric), direction)
        for method in methods:
            of_method = of_metric[of_metric.method == method]
            values = of_method.score.dropna().to_numpy(float)
            low, high = interval(values, resamples, seed)
            rows.append(
                {
                    "metric": metric,
                    "direction": direction,
                    "method": method,
                    "n": len(values),
                    "failed": len(of_method) - len(values),
                    "mean": values.mean() if len(values) else np.nan,
                    "ci_low": low,
                    "ci_high": high,
                    "mean_rank": ranks.get(method, np.nan),
                    "seconds": of_method.seconds.mean(),
                }
            )
    return pd.DataFrame(rows)


def interval(values: npt.NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def wide(scores: pd.DataFrame) -> pd.DataFrame:
    """One metric's scores, a row for each sample and a column for each method."""
    return scores.pivot(index="sample", columns="method", values="score")


def mean_ranks(table: pd.DataFrame, direction: str) -> pd.Series:
    """Of each method, over the samples that all methods have; empty where no direction is better."""
    if not direction:
        return pd.Series(dtype=float)
    return table.dropna(axis=1, how="all").dropna().rank(axis=1, ascending=direction == "lower").mean()


def pairwise(
    scores: pd.DataFrame, metrics: Iterable[str], methods: Iterable[str], resamples: int, seed: int
) -> pd.DataFrame:
    """Paired Wilcoxon signed-rank tests of all pairs of methods, corrected by Holm within each metric.

    Args:
        scores: Rows of sample, method, metric and score; failed ones have no score.
        metrics: In the order of the rows.
        methods: In the order of the rows.
        resamples: Number of resamples of the percentile bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        The columns metric, method_a, method_b, n (samples that both have), median_difference (a - b), effect (see
        `effect`), effect_low and effect_high (its 95 % interval), p and p_holm; p is 1 and effect 0 where all
        differences are zero, both are NaN without a pair.
    """
    columns = ["metric", "method_a", "method_b", "n", "median_difference"]
    columns += ["effect", "effect_low", "effect_high", "p"]
    rows = []
    pairs = list(combinations(methods, 2))
    for metric in metrics:
        table = wide(scores[scores.metric == metric])
        for a, b in pairs:
            known = a in table and b in table
            difference = (table[a] - table[b]).dropna() if known else pd.Series(dtype=float)
            values = difference.to_numpy(float)
            sizes = effect(values), *effect_interval(values, resamples, seed)
            rows.append((metric, a, b, len(values), difference.median(), *sizes, _wilcoxon(values)))
    tests = pd.DataFrame(rows, columns=columns)
    tests["p_holm"] = tests.groupby("metric", sort=False)["p"].transform(holm)
    return tests


def between_models(
    scores: pd.DataFrame,
    metrics: Iterable[str],
    methods: Iterable[str],
    models: Iterable[str],
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Paired tests as `pairwise` of all pairs of models for each method, corrected by Holm within each metric.

    Returns:
        Its columns with method, model_a and model_b in place of method_a and method_b.
    """
    names = {"method_a": "model_a", "method_b": "model_b"}
    found = []
    for method in methods:
        of_method = scores[scores.method == method]
        tests = pairwise(of_method.assign(method=of_method.model), metrics, models, resamples, seed)
        tests = tests.rename(columns=names)
        tests.insert(1, "method", method)
        found.append(tests[tests.n > 0])
    tests = pd.concat(found, ignore_index=True)
    tests["p_holm"] = tests.groupby("metric", sort=False)["p"].transform(holm)
    return tests


def _wilcoxon(difference: npt.NDArray[np.float64]) -> float:
    if len(difference) == 0:
        return float("nan")
    sizes = np.abs(difference)
    if np.count_nonzero(sizes) < 2:  # either sign is as extreme
        return 1.0
    tied = len(np.unique(sizes)) < len(sizes) or not sizes.all()
    if (
        tied and len(sizes) <= _SIGNS
    ):  # `wilcoxon` goes through all signs too, but one by one: 2 s for a pair of methods
        few = (difference[sizes > 0],)
        return float(stats.permutation_test(few, _signed_ranks, permutation_type="samples").pvalue)
    return float(stats.wilcoxon(difference).pvalue)


def _signed_ranks(difference: npt.NDArray[np.float64], axis: int) -> Any:
    return (np.sign(difference) * stats.rankdata(np.abs(difference), axis=axis)).sum(axis)


def effect(difference: npt.NDArray[np.float64]) -> float:
    """The matched-pairs rank-biserial correlation (W+ - W-) / (W+ + W-) of paired differences.

    W+ and W- are the sums of the ranks of positive and negative differences, ranked by size without the zeros. From
    -1, all are negative, to 1, all are positive; 0 if all are zero, NaN without any.
    """
    if len(difference) == 0:
        return float("nan")
    changed = difference[difference != 0]
    ranks = stats.rankdata(np.abs(changed))
    return float((np.sign(changed) * ranks).sum() / ranks.sum()) if len(changed) else 0.0


def effect_interval(difference: npt.NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of `effect`; NaN for fewer than two differences."""
    if len(difference) < 2:
        return float("nan"), float("nan")
    sizes, place = np.unique(np.abs(difference), return_inverse=True)
    steps = len(sizes)
    found = stats.bootstrap(
        (np.sign(difference).astype(np.int64) * (place + 1),),
        lambda drawn, axis: _effects(np.atleast_2d(drawn), steps),
        n_resamples=resamples,
        batch=max(1, _IN_CACHE // len(difference)),
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _effects(signed: npt.NDArray[np.int64], steps: int) -> npt.NDArray[np.float64]:
    """The effect in each row of differences, which are given by sign and place among all sizes: -steps to steps.

    Counting them takes the place of sorting: a size's rank is the number of smaller ones and half of its own, and half.
    """
    width = 2 * steps + 1
    first = np.arange(len(signed))[:, None] * width + steps
    counts = np.bincount((first + signed).ravel(), minlength=width * len(signed)).reshape(-1, width)
    plus, minus = counts[:, steps + 1 :], counts[:, :steps][:, ::-1]
    own = plus + minus
    upto = own.cumsum(1)
    number = upto[:, -1]
    total = number * (number + 1)  # twice the sum of the ranks
    found = np.einsum("ij,ij->i", plus - minus, 2 * upto - own + 1)
    return np.asarray(np.divide(found, total, out=np.zeros(len(signed)), where=total > 0))


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down correction: the i-th smallest of m times m - i + 1, never below the one before, at most 1."""
    ordered = p.dropna().sort_values(kind="stable")
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


def curve_means(parts: Iterable[pd.DataFrame], resamples: int, seed: int) -> pd.DataFrame:
    """The mean curve of each metric, method and curve name, read a part at a time.

    Its interval is that of the percentile bootstrap in the form that needs no curve twice: in each resample a curve
    counts as often as a Poisson number of mean 1 says. So it is inside of the range of the curves.

    Args:
        parts: Rows of method, metric, curve, axis, x and y.
        resamples: Number of resamples.
        seed: Seed of the bootstrap; all curves share the resampled samples of a part.

    Returns:
        The columns metric, method, curve, axis, x, mean, low and high: the mean's 95 % interval.
    """
    sums: dict[tuple[Any, ...], list[npt.NDArray[np.float64]]] = {}
    places: dict[tuple[Any, ...], npt.NDArray[np.float64]] = {}
    for number, part in enumerate(parts):
        for key, rows in part.groupby(["metric", "method", "curve", "axis"], sort=False):
            y = np.stack(rows.y.to_list()).astype(float)
            places.setdefault(key, np.asarray(rows.x.iloc[0], float))
            times = np.random.default_rng([seed, number]).poisson(1.0, (resamples, len(y))).astype(float)
            added = [np.array(float(len(y))), y.sum(0), times.sum(1), times @ y]
            sums[key] = [a + b for a, b in zip(sums[key], added, strict=True)] if key in sums else added
    found = []
    for key, (count, total, times, resampled) in sums.items():
        drawn = times > 0
        means = resampled[drawn] / times[drawn, None]
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        found.append((*key, places[key], total / count, low, high))
    return pd.DataFrame(found, columns=["metric", "method", "curve", "axis", "x", "mean", "low", "high"])
