"""Agreement of methods: rank correlations of their maps, against scipy's."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xai_compare._agreement import agreement, spearman
from xai_compare._display import small_map
from xai_compare._statistics import interval


def random_maps(seed, shape=(6, 7)):
    """Correlated maps with ties, of four methods."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(size=shape)
    weights = {"a": 1, "b": 2, "c": 0, "d": -1}
    return {name: (weight * shared + draw.normal(size=shape)).round(1) for name, weight in weights.items()}


def part_of(maps_of_samples):
    """What a run keeps of {sample: {method: map}}."""
    rows = [(i, m, one.ravel().tolist()) for i, maps in maps_of_samples.items() for m, one in maps.items()]
    return pd.DataFrame(rows, columns=["sample", "method", "map"])


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((224, 224), (32, 32)),
        ((56, 224), (16, 64)),
        ((2048,), (1024,)),
        ((64, 64, 64), (10, 10, 10)),
        ((100_000, 2), (1024, 1)),
        ((2, 3, 40, 40), (1, 2, 22, 22)),
    ],
)
def test_large_maps_are_averaged_down_in_their_proportions(shape, sides):
    assert np.prod(sides) <= 1024
    heat = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    small = heat.astype(float)
    for axis, (length, size) in enumerate(zip(shape, sides, strict=True)):
        bins = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        small = np.stack([small.take(range(low, high), axis).mean(axis) for low, high in bins], axis)
    np.testing.assert_allclose(small_map(heat[None]), small, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(1024,), (32, 32), (8, 8, 16), (5, 3)])
def test_maps_of_few_places_keep_all_of_them(shape):
    heat = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    np.testing.assert_allclose(small_map(heat), heat.mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-8, 7e9])
@pytest.mark.parametrize("shape", [(4, 4), (225, 311), (1500,)])
def test_constant_maps_stay_constant(shape, value):
    assert len(set(small_map(np.full((1, *shape), value)).ravel().tolist())) == 1


def test_blocks_of_equal_values_stay_tied_where_they_are_averaged_down():
    blocks = np.kron(np.array([[0.1, 0.7], [0.3, 0.1]]), np.ones((150, 150)))
    values, counts = np.unique(small_map(blocks[None]), return_counts=True)
    assert values.tolist() == pytest.approx([0.1, 0.3, 0.7], abs=1e-7)
    assert counts.tolist() == [512, 256, 256]


@pytest.mark.parametrize("shape", [(31,), (6, 7), (3, 4, 5)])
def test_correlations_of_small_maps_are_scipys(shape):
    maps = random_maps(3, shape)
    found = spearman(np.stack([one.ravel() for one in maps.values()]))
    expected = stats.spearmanr(np.stack([one.ravel() for one in maps.values()], 1)).statistic
    assert found == pytest.approx(expected, abs=1e-12)
    assert np.abs(found - np.eye(4)).max() > 0.1


def test_a_constant_map_has_no_correlation_and_opposite_ones_have_minus_one():
    rising = np.arange(9.0)
    found = spearman(np.stack([rising, np.ones(9), -(rising**3)]))
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert found[0, 2] == pytest.approx(-1, abs=1e-12)
    assert found[0, 0] == pytest.approx(1, abs=1e-12)


def test_agreement_is_the_mean_of_scipys_correlations_by_pair_and_by_sample():
    maps = {sample: random_maps(sample) for sample in range(12)}
    parts = [
        part_of({sample: maps[sample] for sample in rows}) for rows in ((0, 1, 2, 3, 4), (5, 6), (7, 8, 9, 10, 11))
    ]
    pairs, samples = agreement(iter(parts), ["c", "a", "d", "b"], 200, 4)
    expected = {
        pair: np.array([stats.spearmanr(of[pair[0]], of[pair[1]], axis=None).statistic for of in maps.values()])
        for pair in combinations("cadb", 2)
    }
    assert list(zip(pairs.method_a, pairs.method_b, strict=True)) == list(expected)
    assert pairs.n.tolist() == [12] * 6
    for row, values in zip(pairs.itertuples(), expected.values(), strict=True):
        assert row.mean == pytest.approx(values.mean(), abs=1e-12)
        assert (row.ci_low, row.ci_high) == pytest.approx(interval(values, 200, 4), abs=1e-12)
    means = np.mean(list(expected.values()), 0)
    assert samples["sample"].tolist() == np.argsort(means).tolist()
    assert samples.agreement.tolist() == pytest.approx(np.sort(means), abs=1e-12)
    assert samples.n_pairs.tolist() == [6] * 12


def test_missing_and_constant_maps_are_left_out():
    first, second, third = (random_maps(seed) for seed in range(3))
    del second["a"]
    third = {"a": third["a"], "b": np.zeros((6, 7))}
    pairs, samples = agreement([part_of({0: first, 1: second}), part_of({2: third})], list("abc"), 100, 0)
    assert pairs.n.tolist() == [1, 1, 2]
    assert pairs.ci_low.isna().tolist() == [True, True, False]
    of_b_c = [stats.spearmanr(one["b"], one["c"], axis=None).statistic for one in (first, second)]
    assert pairs["mean"][2] == pytest.approx(np.mean(of_b_c), abs=1e-12)
    by_sample = samples.set_index("sample")
    assert by_sample.n_pairs.to_dict() == {0: 3, 1: 1, 2: 0}
    assert by_sample.agreement[1] == pytest.approx(of_b_c[1], abs=1e-12)
    assert np.isnan(by_sample.agreement[2])
    assert samples["sample"].tolist()[-1] == 2  # last, as nothing is known of it


def test_a_method_without_any_map_has_pairs_without_a_number():
    pairs, _ = agreement([part_of({0: random_maps(0), 1: random_maps(1)})], ["a", "b", "gone"], 100, 0)
    assert pairs.n.tolist() == [2, 0, 0]
    assert pairs.loc[1:, ["mean", "ci_low", "ci_high"]].isna().all(axis=None)


@pytest.mark.parametrize("methods", [["a"], []])
def test_one_method_alone_agrees_with_nothing(methods):
    pairs, samples = agreement([part_of({0: random_maps(0)})], methods, 100, 0)
    assert (len(pairs), len(samples)) == (0, 0)
    assert list(pairs) == ["method_a", "method_b", "n", "mean", "ci_low", "ci_high"]
    assert list(samples) == ["sample", "agreement", "n_pairs"]


def test_without_parts_nothing_is_known():
    pairs, samples = agreement([], ["a", "b"], 100, 0)
    assert pairs.n.tolist() == [0]
    assert np.isnan(pairs["mean"][0])
    assert len(samples) == 0


def test_maps_of_different_sizes_are_refused_with_their_sizes():
    with pytest.raises(ValueError, match=r"one size.*'a': 4, 'b': 6"):
        agreement([part_of({0: {"a": np.eye(2), "b": np.ones((2, 3))}})], ["a", "b"], 100, 0)
