"""What a score draws."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from quantus_metrics import BoxSensitivity, Fidelity, SoftAverageDrop

X, Y = np.random.default_rng(0).normal(size=(3, 1, 8, 8)), np.array([0, 1, 1])


def scored(metric):
    torch.manual_seed(0)
    metric(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double(), X, Y, X)
    return metric


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What `show` finds: the current figure, and whether the picture was saved before."""
    seen = []
    monkeypatch.setattr(plt, "show", lambda: seen.append((plt.gcf(), (tmp_path / "a.png").exists())))
    yield seen
    plt.close("all")


@pytest.mark.parametrize(
    ("metric", "points"),
    [(BoxSensitivity([2, 4, 6], 9), [2, 4, 6]), (Fidelity(steps=4), [0, 25, 50, 75, 100])],
    ids=["box", "fidelity"],
)
def test_a_plot_shows_the_mean_curves_and_is_saved_before_it_is_shown(metric, points, shown, tmp_path):
    scored(metric).plot(path_to_save=tmp_path / "a.png")
    ((figure, saved),) = shown
    assert saved
    assert plt.imread(tmp_path / "a.png").std() > 0.05  # not blank
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == list(metric.curves)
    for line, curve in zip(axes.lines, metric.curves.values(), strict=True):
        assert np.allclose(line.get_xdata(), points)
        assert np.allclose(line.get_ydata(), curve.mean(0))


def test_a_score_without_a_curve_says_so_and_draws_what_it_is_given(shown):
    metric, given = scored(SoftAverageDrop()), []
    with pytest.raises(ValueError, match="no curve to plot: Soft Average Drop"):
        metric.plot()
    metric.plot(lambda *args, **kwargs: given.append((args, kwargs)), True, None, 1, two=2)
    assert given == [((1,), {"two": 2})]
    assert len(shown) == 1


def test_interpretation_is_that_of_the_class(capsys):
    SoftAverageDrop().interpret_scores()
    assert "Higher is\nbetter; from 0 to 1" in capsys.readouterr().out
