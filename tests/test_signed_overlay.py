"""Signed overlays: colours, transparency, one scale, no pyplot."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from captum_ext import overlay_figure, signed_overlay

GRAY = torch.full((1, 4, 4), 0.5)


def test_zero_is_transparent_and_signs_have_their_colours():
    heat = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    drawn = signed_overlay(torch.full((2, 2), 0.5), heat)
    assert np.allclose(drawn[0, 1], 0.5)
    assert np.allclose(drawn[0, 0], [0.9, 0.1, 0.1], atol=0.01)
    assert np.allclose(drawn[1, 1], [0.1, 0.3, 0.95], atol=0.01)


def test_maps_share_one_scale():
    loud = torch.ones(4, 4)
    together = signed_overlay(GRAY, torch.stack([loud, 0.5 * loud]))
    assert np.allclose(together[1], 0.5 * together[0] + 0.5 * 0.5, atol=0.01)  # half as opaque
    assert np.allclose(signed_overlay(GRAY, 0.5 * loud), together[0])  # alone it sets the scale
    assert np.allclose(signed_overlay(GRAY, 0.5 * loud, scale=1.0), together[1])


def test_a_blank_map_leaves_the_image():
    assert np.allclose(signed_overlay(torch.rand(3, 4, 4) * 0 + 0.3, torch.zeros(2, 2)), 0.3)


def test_figure_shows_each_map_under_its_title_on_the_shared_scale():
    figure = overlay_figure(GRAY, {"cat": torch.ones(2, 2), "dog": -0.5 * torch.ones(2, 2)})
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "cat", "dog"]
    assert np.allclose(figure.axes[2].images[0].get_array(), signed_overlay(GRAY, -0.5 * torch.ones(2, 2), 1.0))
    assert figure.axes[3].get_ylim() == (-1.0, 1.0)


def test_drawing_leaves_pyplot_alone():
    before = plt.get_fignums()
    overlay_figure(torch.zeros(2, 2), {"a": torch.ones(2, 2)})
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("image", "maps", "scale", "error", "words"),
    [
        ("cat.png", torch.zeros(2, 2), None, TypeError, "`image` to be a tensor, an array or a PIL image"),
        (torch.zeros(2, 4, 4), torch.zeros(2, 2), None, ValueError, r"got \(2, 4, 4\)"),
        (GRAY - 1, torch.zeros(2, 2), None, ValueError, "Undo the model's normalisation"),
        (GRAY, [1.0], None, TypeError, "`maps` to be a tensor"),
        (GRAY, torch.zeros(1, 1, 2, 2), None, ValueError, r"got shape \(1, 1, 2, 2\)"),
        (GRAY, torch.full((2, 2), float("nan")), None, ValueError, "finite `maps`"),
        (GRAY, torch.zeros(2, 2), 0.0, ValueError, "`scale` to be positive"),
    ],
)
def test_wrong_arguments_are_named(image, maps, scale, error, words):
    with pytest.raises(error, match=words):
        signed_overlay(image, maps, scale)


@pytest.mark.parametrize(
    ("maps", "error", "words"),
    [
        ({}, ValueError, "at least one map"),
        (torch.zeros(2, 1, 2, 2), ValueError, r"got shape \(2, 1, 2, 2\).*`heat\[0, 0\]`"),
        ({"a": [1.0]}, TypeError, "each map to be a tensor"),
        (["a"], TypeError, "dictionary of titles and maps, or one map"),
    ],
)
def test_maps_that_are_none(maps, error, words):
    with pytest.raises(error, match=words):
        overlay_figure(GRAY, maps)


def test_images_of_all_kinds_are_the_same_picture():
    pixels = torch.arange(48, dtype=torch.uint8).view(3, 4, 4) * 5
    last = pixels.permute(1, 2, 0).numpy()
    heat = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    expected = signed_overlay(pixels / 255, heat)
    for image in (pixels, pixels[None], last, last / 255, Image.fromarray(last), pixels.numpy()):
        np.testing.assert_allclose(signed_overlay(image, heat), expected, atol=1e-6)


@pytest.mark.slow
def test_a_figure_takes_what_attribute_returns_and_is_saved(tmp_path):
    heat = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    expected = overlay_figure(GRAY, {"relevance": heat}).axes[1].images[0].get_array()
    for maps in (heat, heat[None], heat[None, None], {"relevance": heat[None]}):
        figure = overlay_figure(GRAY, maps, path=tmp_path / "maps.png")
        assert np.array_equal(figure.axes[1].images[0].get_array(), expected)
    assert Image.open(tmp_path / "maps.png").size[0] > 100


def test_maps_of_other_units_have_their_own_scale_which_is_said():
    figure = overlay_figure(GRAY, {"logit": 4 * torch.ones(2, 2), "weight": -0.01 * torch.ones(2, 2)}, "each")
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "image",
        "logit\n(full colour: 4)",
        "weight\n(full colour: 0.01)",
    ]
    assert np.allclose(figure.axes[1].images[0].get_array(), [0.9, 0.1, 0.1], atol=0.01)
    assert np.allclose(figure.axes[2].images[0].get_array(), [0.1, 0.3, 0.95], atol=0.01)
    assert figure.axes[3].get_ylabel() == "relevance in parts of each map's largest"


def test_long_titles_stay_above_their_picture():
    name = "a name of a class that is far too long for one line"
    figure = overlay_figure(GRAY, {name: torch.ones(2, 2), "other": torch.ones(2, 2)})
    FigureCanvasAgg(figure).draw()
    first, second = (axes.title.get_window_extent() for axes in figure.axes[1:3])
    assert first.x1 < second.x0
    assert first.y1 <= figure.bbox.height
    assert " ".join(figure.axes[1].get_title().split()) == name
