"""Signals and volumes: compared like images, and drawn in the report; channels are never guessed."""

import base64
import io
import json
import re

import numpy as np
import pytest
import quantus
import torch
from data_runs import compared
from PIL import Image
from torch import nn

from xai_compare._display import flat, shown_map, visible

ECG = nn.Sequential(nn.Conv1d(12, 8, 7), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
CT = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
DATA = {"signals": (ECG, torch.randn(3, 12, 500)), "volumes": (CT, torch.randn(3, 1, 16, 24, 20))}


class First:
    """Explains by the first channel."""

    def __init__(self, model):
        del model

    def attribute(self, inputs, target):
        return inputs[:, :1].detach()


class Largest(quantus.Sparseness):
    """The largest value of a map."""

    def __call__(self, model, x_batch, y_batch, a_batch, **_):
        assert a_batch.shape == (len(x_batch), 1, *x_batch.shape[2:])
        return a_batch.reshape(len(a_batch), -1).max(1).tolist()


def pictures(run):
    page = run.report().read_text()
    return json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])["pictures"]


def decoded(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["image"].split(",")[1]))))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "x"), DATA.values(), ids=DATA)
def test_signals_and_volumes_are_compared(tmp_path, model, x):
    y = torch.tensor([1, 0, 1])
    methods, metrics = {"first": First}, {"largest": Largest(disable_warnings=True)}
    run = compared((x, y), tmp_path / "run", model, methods=methods, metrics=metrics, targets="label", gallery=2)
    assert np.allclose(run.scores().score, x[:, 0].flatten(1).max(1).values)
    assert run.explanations().target.tolist() == [1, 0, 1]
    found = pictures(run)
    assert len(found) == 2
    assert decoded(found[0]).std() > 10


@pytest.mark.parametrize(("model", "x"), DATA.values(), ids=DATA)
def test_arrays_in_files(tmp_path, model, x):
    for name, one in zip(("a/1.npy", "b/1.npy"), x, strict=False):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        np.save(tmp_path / "data" / name, one.numpy())
    methods, metrics = {"first": First}, {"largest": Largest(disable_warnings=True)}
    run = compared(tmp_path / "data", tmp_path / "run", model, transform=None, methods=methods, metrics=metrics)
    assert np.allclose(run.scores().score, x[:2, 0].flatten(1).max(1).values)


@pytest.mark.slow
def test_occlusion_hides_stretches_and_cubes(tmp_path):
    from captum.attr import Occlusion

    from xai_compare._methods import methods

    for model, x in DATA.values():
        side = min(x.shape[2:]) // 8
        window = (x.shape[1], *[side] * (x.dim() - 2))
        ours = methods()["occlusion"].make(model).attribute(x[:1], torch.tensor([1]))
        assert torch.equal(ours, Occlusion(model).attribute(x[:1], window, strides=window, target=1))


def test_a_signal_is_drawn_as_lines():
    signal = np.stack([np.linspace(0, 1, 100), np.zeros(100), np.linspace(5, -5, 100)])
    picture = visible(signal, {})
    lanes = np.split(picture[..., 0], 3)
    assert picture.shape == (144, 448, 3)
    rows = [[int(np.argmin(lane[:, column])) for column in (10, 224, 437)] for lane in lanes]
    assert rows[0][0] > rows[0][1] > rows[0][2]  # it rises
    assert rows[1][0] == rows[1][1] == rows[1][2]
    assert rows[2][0] < rows[2][1] < rows[2][2]


def test_a_volume_is_shown_by_its_middle_slices():
    volume = np.random.default_rng(0).random((1, 4, 6, 5)).astype(np.float32)
    found = flat(volume)
    assert found.shape == (1, 6, 5 + 5 + 6)
    assert np.array_equal(found[0, :, :5], volume[0, 2])
    assert np.array_equal(found[0, :4, 5:10], volume[0, :, 3])
    assert np.array_equal(found[0, :4, 10:], volume[0, :, :, 2])
    assert np.isnan(found[0, 4:, 5:]).all()
    assert np.array_equal(shown_map(volume[0]), found[0], equal_nan=True)
    drawn = visible(found, {})
    assert np.array_equal(drawn[:, :5, 1], (255 * volume[0, 2]).round())
    assert (drawn[4:, 5:] == 0).all()
    restored = visible(flat((volume - 0.4) / 0.2), {"mean": [0.4], "std": [0.2]})
    assert np.abs(restored.astype(int) - drawn)[:, :5].max() <= 1


def test_a_long_map_keeps_its_length_and_a_large_one_is_averaged():
    assert np.array_equal(shown_map(np.arange(300.0)), np.arange(300, dtype=np.float32)[None])
    assert np.allclose(shown_map(np.arange(896.0)), np.arange(896).reshape(448, 2).mean(1)[None])
    square = np.random.default_rng(0).random((112, 112))
    assert np.allclose(shown_map(square), square.reshape(56, 2, 56, 2).mean((1, 3)), atol=1e-6)


def test_a_narrow_image_is_no_image_with_channels_last(tmp_path):
    layers = nn.Conv2d(12, 8, (7, 1)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    x = torch.randn(3, 12, 500, 1)
    run = compared(
        (x, [1, 2, 3]), tmp_path / "run", nn.Sequential(*layers), metrics=["soft-average-drop", "compactness"]
    )
    assert run.scores().error.isna().all()


def test_images_normalised_over_other_channels_are_drawn(tmp_path):
    image = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    assert np.array_equal(visible(image, {"mean": [0.5] * 3, "std": [0.1] * 3})[..., 0], (255 * image[0]).round())
