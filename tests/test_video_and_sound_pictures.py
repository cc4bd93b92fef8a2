"""Maps over videos and spectrograms: which frame lies where, sums, orientation, files, refusals."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from captum_ext import (
    save_gif,
    signed_overlay,
    spectrogram_figure,
    spectrogram_overlay,
    video_overlay,
    video_strip,
)

VIDEO = torch.linspace(0.1, 0.9, 7)[:, None, None, None].expand(7, 3, 6, 8).contiguous()
MAPS = torch.arange(1.0, 5)[:, None, None].expand(4, 3, 4).contiguous()
LOUD = torch.zeros(16, 64)
LOUD[2, 10:20] = 1.0  # a low tone, early


def test_each_frame_shows_the_map_of_its_tubelet_on_one_scale():
    drawn = video_overlay(VIDEO, MAPS)
    assert drawn.shape == (7, 6, 8, 3)
    for frame, number in enumerate([0, 0, 1, 1, 2, 2, 3]):
        expected = signed_overlay(VIDEO[frame], MAPS[number], scale=4.0)
        assert np.array_equal(drawn[frame], expected)
    assert np.allclose(drawn[6, 0, 0], [0.9, 0.1, 0.1], atol=0.01)  # the largest is opaque


def test_several_maps_share_the_scale_and_gray_videos_are_drawn():
    both = video_overlay(VIDEO[:, 0], torch.stack([MAPS, -0.5 * MAPS]))
    assert both.shape == (2, 7, 6, 8, 3)
    assert np.array_equal(both[1], video_overlay(VIDEO, -0.5 * MAPS, scale=4.0))


@pytest.mark.slow
def test_the_strip_shows_the_frames_asked_for_and_the_sums_of_each_tubelet():
    signed = MAPS.clone()
    signed[2, 0, :2] = -1.0
    before = plt.get_fignums()
    figure = video_strip(VIDEO, {"wave": MAPS, "jump": signed}, frames=[0, 3, 6], fps=2)
    figure.savefig(io.BytesIO(), dpi=40)
    assert plt.get_fignums() == before
    assert [axes.get_title() for axes in figure.axes[:3]] == ["0.00 s", "1.50 s", "3.00 s"]
    assert [axes.get_ylabel() for axes in figure.axes[:11]] == [
        *("video", "", ""), *("wave", "", "", "sum"), *("jump", "", "", "sum"),
    ]  # fmt: skip
    for column, frame in enumerate((0, 3, 6)):
        shown = figure.axes[3 + column].images[0].get_array()
        assert np.array_equal(shown, video_overlay(VIDEO, MAPS, scale=4.0)[frame])
    bars = figure.axes[10].patches
    spans = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in bars[:8]]
    assert [span[:2] for span in spans[:4]] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 3.5)]  # seconds
    assert [span[2] for span in spans[:4]] == [12.0, 24.0, 30.0, 48.0]
    assert [span[2] for span in spans[4:]] == [0.0, 0.0, -2.0, 0.0]
    assert bars[8].get_data().values.tolist() == [12.0, 24.0, 28.0, 48.0]
    assert figure.axes[6].get_ylim() == figure.axes[10].get_ylim()
    assert figure.axes[-1].get_ylim() == (-4.0, 4.0)


def test_frames_of_the_strip_are_spread_evenly():
    figure = video_strip(VIDEO, {"wave": MAPS}, frames=3)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["frame 0", "frame 3", "frame 6"]
    assert len(video_strip(VIDEO, {"wave": MAPS}).axes) == 7 + 7 + 2  # no more than there are


def test_a_gif_holds_the_frames_at_their_times(tmp_path):
    drawn = video_overlay(VIDEO, MAPS)
    save_gif(tmp_path / "wave.gif", drawn, fps=3)
    with Image.open(tmp_path / "wave.gif") as found:
        assert found.n_frames == 7
        assert found.info["loop"] == 0  # for ever
        for number, frame in enumerate(drawn):
            found.seek(number)
            assert found.info["duration"] == 330
            assert np.abs(np.asarray(found.convert("RGB")) / 255 - frame).max() < 0.03


def test_low_frequencies_are_drawn_at_the_bottom_and_time_to_the_right():
    heat = torch.zeros(4, 16)
    heat[0, 3] = 1.0  # where the tone is
    drawn = spectrogram_overlay(LOUD, heat)
    assert drawn.shape == (16, 64, 3)
    red = drawn[..., 0] - drawn[..., 1]
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert row >= 12  # the last quarter from above
    assert 12 <= column < 16
    blank = spectrogram_overlay(LOUD, torch.zeros(4, 16))
    assert np.array_equal(blank[13, :, 0], LOUD[2].numpy())
    assert np.array_equal(blank, spectrogram_overlay(LOUD * 30 - 80, torch.zeros(1, 4, 16))[0])  # decibels


@pytest.mark.slow
def test_the_figure_of_a_spectrogram_has_time_and_frequency():
    heat = torch.zeros(4, 16)
    heat[0, 3] = 1.0
    figure = spectrogram_figure(LOUD, {"tone": heat, "none": 0.5 * heat}, seconds=2.0)
    figure.savefig(io.BytesIO(), dpi=40)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["spectrogram", "tone", "none"]
    assert figure.axes[1].get_xlim() == (0, 2.0)
    assert figure.axes[1].get_ylim() == (0, 16)  # upwards
    assert np.array_equal(figure.axes[2].images[0].get_array(), spectrogram_overlay(LOUD, 0.5 * heat, 1.0))
    assert figure.axes[0].images[0].get_array()[13, 15, 0] == 1.0
    assert spectrogram_figure(LOUD, {"tone": heat}).axes[1].get_xlabel() == "time (frame)"


def test_exchanged_axes_of_a_spectrogram_are_refused_and_the_advice_works():
    inputs, heat = torch.randn(1024, 128), torch.randn(12, 101)  # of an AST: (time, frequency), (frequency, time)
    with pytest.raises(ValueError, match=r"map \(12, 101\), got shape \(1024, 128\).*pass `spectrogram.T`"):
        spectrogram_overlay(inputs, heat)
    assert spectrogram_overlay(inputs.T, heat).shape == (128, 1024, 3)
    for rows, columns in ((1, 101), (12, 1), (6, 30)):  # long places are drawn where nothing fits better
        assert spectrogram_overlay(inputs.T, torch.randn(rows, columns)).shape == (128, 1024, 3)


WRONG = [
    (video_overlay, (np.zeros((7, 3, 6, 8)), MAPS), TypeError, "`video` to be a tensor"),
    (video_overlay, (VIDEO.transpose(0, 1), MAPS), ValueError, r"\(3, 7, 6, 8\).*Pass `video.transpose\(0, 1\)`"),
    (video_overlay, (VIDEO[0, 0], MAPS), ValueError, r"got shape \(6, 8\)"),
    (video_overlay, (VIDEO - 0.5, MAPS), ValueError, "Undo the model's normalisation"),
    (video_overlay, (VIDEO * torch.nan, MAPS), ValueError, r"in \[0, 1\]"),
    (video_overlay, (VIDEO, MAPS.numpy()), TypeError, "`maps` to be a tensor"),
    (video_overlay, (VIDEO, MAPS[0]), ValueError, r"got \(3, 4\)"),
    (video_overlay, (VIDEO, MAPS * torch.inf), ValueError, "finite `maps`"),
    (video_overlay, (VIDEO[:3], MAPS), ValueError, r"at most as many frames as the video, 3, got 4"),
    (video_overlay, (VIDEO, MAPS, -1.0), ValueError, "`scale` to be positive"),
    (video_strip, (VIDEO, {}), ValueError, "at least one map"),
    (video_strip, (VIDEO, {"two": MAPS[None]}), ValueError, r"for 'two', got shape \(1, 4, 3, 4\)"),
    (video_strip, (VIDEO, {"a": MAPS}, None, [7]), ValueError, r"from 0 to 6, got \[7\]"),
    (video_strip, (VIDEO, {"a": MAPS}, None, 0), ValueError, "`frames` to be at least 1"),
    (video_strip, (VIDEO, {"a": MAPS}, None, 2, 0), ValueError, "`fps` to be positive"),
    (save_gif, ("x.gif", VIDEO), TypeError, "array of floating-point numbers, got <class 'torch.Tensor'>"),
    (save_gif, ("x.gif", np.zeros((2, 4, 4, 3), np.uint8)), TypeError, "got one of uint8"),
    (save_gif, ("x.gif", np.zeros((2, 2, 4, 4, 3))), ValueError, r"write one at a time, `frames\[0\]`"),
    (save_gif, ("x.gif", np.full((2, 4, 4, 3), 255.0)), ValueError, r"in \[0, 1\], got \[255, 255\]"),
    (save_gif, ("x.gif", np.zeros((2, 4, 4, 3)), 60), ValueError, "at most 50, got 60"),
    (spectrogram_overlay, (LOUD.numpy(), MAPS[0]), TypeError, "`spectrogram` to be a tensor"),
    (spectrogram_overlay, (LOUD[None], MAPS[0]), ValueError, r"got shape \(1, 16, 64\)"),
    (spectrogram_overlay, (LOUD * torch.nan, MAPS[0]), ValueError, "finite `spectrogram`"),
    (spectrogram_overlay, (LOUD, [1.0]), TypeError, "`maps` to be a tensor"),
    (spectrogram_overlay, (LOUD, MAPS[None]), ValueError, r"got shape \(1, 4, 3, 4\)"),
    (spectrogram_figure, (LOUD, {}), ValueError, "at least one map"),
    (spectrogram_figure, (LOUD, {"a": MAPS[0]}, None, 0.0), ValueError, "`seconds` to be positive"),
]


@pytest.mark.parametrize(("draw", "arguments", "error", "words"), WRONG)
def test_wrong_arguments_are_named(draw, arguments, error, words):
    with pytest.raises(error, match=words):
        draw(*arguments)
