"""What notebooks show of figures, comparisons and answers."""

import base64
import html
import io
import re

import numpy as np
import torch
from PIL import Image

from captum_ext import overlay_figure
from xai_compare import compare


def test_a_notebook_shows_the_picture_that_is_saved(tmp_path):
    figure = overlay_figure(torch.rand(3, 24, 24), {'a "cat" & more': torch.randn(4, 4)})
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # which moves things at each drawing
    figure.savefig(tmp_path / "saved.png")
    tag = figure._repr_html_()
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1])))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(tmp_path / "saved.png")))
    assert html.unescape(re.search(r'alt="([^"]*)"', tag)[1]) == 'image; a "cat" & more'


def test_a_notebook_shows_the_summary_of_a_comparison(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).eval()
    folder = tmp_path / "a <b>"
    settings = {"methods": ["saliency"], "metrics": ["compactness"], "gallery": 0, "resamples": 100}
    results = compare(model, torch.randn(3, 1, 6, 6), out=folder, **settings)
    shown = results._repr_html_()
    heads, cells = (re.findall(rf"<{tag}>(.*?)</{tag}>", shown) for tag in ("th", "td"))
    assert dict(zip(heads, cells, strict=True))["mean"] == f"{results.summary()['mean'][0]:.4g}"
    assert "a &lt;b&gt;" in shown
