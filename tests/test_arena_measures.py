"""The measures of the arena against numbers obtained another way."""

import numpy as np
import pytest
import torch
from scipy import stats

from adapters.maps_on_grid import spearman
from xai_compare.known_answers import measures


def test_precision_counts_the_largest_absolute_values_and_shares_ties():
    mask = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.bool)
    given = torch.tensor([[[-5.0, 4.0, 3.0, 1.0]], [[5.0, 0.0, -6.0, 1.0]], [[1.0, 1.0, 1.0, 1.0]]])
    assert measures.precision(given, mask.expand(3, -1, -1)).tolist() == [1.0, 0.5, 0.5]
    assert measures.precision(torch.tensor([[[3.0, 1.0, 1.0, 1.0]]]), mask).item() == pytest.approx((1 + 1 / 3) / 2)


def test_the_perfect_map_scores_1_its_inverse_0_and_random_ones_the_mask_s_share():
    mask = torch.zeros(400, 8, 8, dtype=torch.bool)
    mask[:, 2:4, 3:5] = True
    for measure in (measures.precision, measures.share_inside, measures.absolute_share_inside):
        assert measure(mask.float(), mask).unique().tolist() == [1.0]
        assert measure((~mask).float(), mask).unique().tolist() == [0.0]
        assert measure(torch.randn(400, 8, 8), mask).mean().item() == pytest.approx(4 / 64, abs=0.02)


def test_shares_of_maps_without_positive_values_are_0():
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    assert measures.share_inside(-torch.ones(1, 2, 2), mask).item() == 0
    assert measures.absolute_share_inside(torch.zeros(1, 2, 2), mask).item() == 0


def test_on_a_line_the_earth_mover_s_distance_is_that_of_cumulative_sums():
    places = np.stack([np.zeros(12, int), np.arange(12)], 1)
    draws = np.random.default_rng(0)
    for _ in range(5):
        a, b = draws.dirichlet(np.ones(12)), draws.dirichlet(np.ones(12))
        assert measures.distance(a, b, places) == pytest.approx(np.abs(np.cumsum(a - b)).sum())
        assert measures.distance(a, b, places) == pytest.approx(stats.wasserstein_distance(range(12), range(12), a, b))


def test_in_the_plane_the_earth_mover_s_distance_is_what_scipy_s_matching_finds():
    draws = np.random.default_rng(1)
    places = np.stack(np.meshgrid(range(6), range(6), indexing="ij"), -1).reshape(-1, 2)
    a, b = (np.isin(np.arange(36), draws.choice(36, 5, replace=False)) / 5 for _ in range(2))
    expected = stats.wasserstein_distance_nd(places, places, a, b)
    assert measures.distance(a, b, places) == pytest.approx(expected)


def test_transport_scores_1_on_the_mask_and_0_from_corner_to_corner():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 0, 0] = True
    heat = torch.zeros(2, 4, 4)
    heat[0, 0, 0], heat[1, 3, 3] = -2.0, 7.0
    assert measures.transported(heat, mask).tolist() == pytest.approx([1.0, 0.0])


def test_ranks_are_compared_as_by_hand_and_constants_score_0():
    known = torch.tensor([[1.0, 2.0, 3.0]]).expand(4, -1)
    found = torch.tensor([[10.0, 20.0, 21.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    assert spearman(found, known).tolist() == pytest.approx([1.0, -1.0, 0.5, 0.0])


def test_places_that_share_the_largest_value_count_by_their_share():
    values, places = torch.tensor([[1.0, 3.0, 3.0], [5.0, 0.0, 0.0], [5.0, 0.0, 0.0]]), torch.tensor([1, 0, 2])
    assert measures.largest_is(values, places).tolist() == [0.5, 1.0, 0.0]
