"""Mean ranks of methods, and which methods no test tells apart: the data of critical-difference diagrams."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ._statistics import SIGNIFICANT, mean_ranks, wide


@dataclass(frozen=True)
class Ranking:
    """The ranks of methods in one metric (Demsar, JMLR 7, 2006).

    Attributes:
        metric: The metric.
        n: The samples that all methods have.
        order: Methods and their mean ranks, the best first.
        groups: The longest runs of at least two methods in this order of which no pair differs significantly (paired
            Wilcoxon tests with Holm's correction, as Benavoli, Corani and Mangili, JMLR 17, 2016, recommend).
        p: Of the Friedman test, whether any method differs from the others; NaN for fewer than three methods or two
            samples.
    """

    metric: str
    n: int
    order: list[tuple[str, float]]
    groups: list[list[str]]
    p: float


def rankings(scores: pd.DataFrame, directions: Mapping[str, str], tests: pd.DataFrame) -> list[Ranking]:
    """The ranks in each metric that has a direction and at least two methods with scores of the same samples.

    Args:
        scores: Rows of sample, method, metric and score; failed ones have no score.
        directions: Of each metric "higher", "lower" or "".
        tests: What `pairwise` returns of the same scores.
    """
    found = []
    for metric, direction in directions.items():
        table = wide(scores[scores.metric == metric])
        ranks = mean_ranks(table, direction).dropna().sort_values(kind="stable")
        if len(ranks) > 1:
            shared = table[list(ranks.index)].dropna()
            order = [(str(method), float(rank)) for method, rank in ranks.items()]
            groups = _groups([method for method, _ in order], tests[tests.metric == metric])
            found.append(Ranking(metric, len(shared), order, groups, _friedman(shared)))
    return found


def _groups(order: list[str], tests: pd.DataFrame) -> list[list[str]]:
    apart = tests[tests.p_holm < SIGNIFICANT]
    pairs = {frozenset(pair) for pair in zip(apart.method_a, apart.method_b, strict=True)}
    groups: list[list[str]] = []
    end = 0
    for start in range(len(order)):
        last = start + 1
        while last < len(order) and not _differ(order[last], order[start:last], pairs):
            last += 1
        if last > max(end, start + 1):  # not within the group before
            groups.append(order[start:last])
            end = last
    return groups


def _differ(method: str, others: Iterable[str], pairs: set[frozenset[str]]) -> bool:
    return any(frozenset((method, other)) in pairs for other in others)


def _friedman(shared: pd.DataFrame) -> float:
    if shared.shape[1] < 3 or len(shared) < 2:
        return float("nan")
    if (shared.nunique(axis=1) == 1).all():  # nothing differs
        return 1.0
    return float(stats.friedmanchisquare(*np.asarray(shared, float).T).pvalue)
