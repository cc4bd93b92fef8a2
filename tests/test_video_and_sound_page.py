"""The page on video and sound: its code runs, its table is what is tested, its examples write what they say."""

import re
import sys

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from video_and_sound import SOUNDS, VIDEOS

PAGE = (ROOT / "docs" / "video-and-sound.md").read_text()


@pytest.mark.slow
def test_the_code_runs_and_its_shapes_are_those_of_the_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video, sound = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope = {}
    exec(video, scope)
    assert scope["heat"].shape == (2, 4, 4, 4)
    assert scope["both"].shape == (2, 2, 4, 4, 4)
    torch.testing.assert_close(scope["both"][:, 0], scope["heat"])
    assert scope["per_frame"].shape == (2, 4)
    assert scope["frames"].shape == (8, 64, 64, 3)
    with Image.open(tmp_path / "wave.gif") as found:
        assert found.n_frames == 8
    exec(sound, scope)
    assert scope["heat"].shape == (2, 1, 12, 25)
    assert scope["picture"].shape == (128, 256, 3)
    assert [axes.get_title() for axes in scope["figure"].axes[:2]] == ["spectrogram", "dog"]


def test_the_table_is_of_what_is_tested_and_its_pictures_are_small():
    rows = [row.split(" | ") for row in PAGE.split("## Families")[1].splitlines() if row.startswith("| ")][1:]
    grids = {name: grid for name, (_, _, grid, _) in (VIDEOS | SOUNDS).items()}
    assert [row[0].removeprefix("| ") for row in rows] == list(grids)
    for row, grid in zip(rows, grids.values(), strict=True):
        assert row[2] == str((2, 1, *grid) if len(grid) == 2 else (2, *grid))
        assert float(row[4]) <= 1e-9
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) == 2
    assert all(0 < (ROOT / "docs" / name).stat().st_size < 300_000 for name in pictures)


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--quick", *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "written"), [("video_frames", (".png", ".gif")), ("sound_spectrogram", (".png",))])
def test_the_examples_say_and_write_the_same_each_time(name, written, monkeypatch, tmp_path, capsys):
    module = __import__(name)
    said = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        run(monkeypatch, module, "--out", folder)
        said.append(capsys.readouterr().out.replace(str(folder), ""))
    assert said[0] == said[1]
    assert "highest logits in" in said[0]
    for end in written:
        one, other = (np.asarray(Image.open(tmp_path / f / f"{name}{end}").convert("RGB")) for f in "ab")
        assert np.array_equal(one, other)
        assert one.std() > 10


def test_clips_show_each_digit_in_its_tube_and_shares_are_counted_there():
    from video_frames import FRAMES, make_clips, shares_of

    clips = make_clips(6, "test", seed=3)
    frames = clips.tubes.any(-1).any(-1)  # (clips, digits, frames)
    assert frames[:, 0].all()  # the first digit is there from the beginning
    assert not frames[:, 1, : FRAMES // 4].any()
    assert frames[:, 1, -1].all()
    assert not (clips.tubes[:, 0] & clips.tubes[:, 1]).any()
    ink = clips.videos[:, :, 0] > 0.4
    assert (ink & clips.tubes.any(1)).sum() == ink.sum()
    assert all((ink & tube).any() for tube in clips.tubes.unbind(1))
    again = make_clips(6, "test", seed=3)
    assert torch.equal(again.videos, clips.videos)

    shares = shares_of(clips.tubes.float() - 0.0, clips)
    torch.testing.assert_close(shares.own, torch.ones(6, 2))
    torch.testing.assert_close(shares.other, torch.zeros(6, 2))
    torch.testing.assert_close(shares.early[:, 1], torch.zeros(6))
    uniform = shares_of(torch.ones(6, 2, 4, 4, 4), clips)
    torch.testing.assert_close(uniform.own, clips.tubes.float().mean((2, 3, 4)))
    torch.testing.assert_close(uniform.early, uniform.frames[:, None].expand(6, 2))


def test_sounds_are_loud_where_their_events_are_and_shares_are_counted_there():
    from sound_spectrogram import make_sounds, shares_of

    sounds = make_sounds(12, seed=3)
    assert torch.equal(make_sounds(12, seed=3).spectrograms, sounds.spectrograms)
    there = sounds.places.any(1)
    assert sounds.spectrograms[there].mean() > 1.0 > 0.1 > sounds.spectrograms[~there].mean()
    assert not (sounds.places[:, 0] & sounds.places[:, 1]).any()
    bins = torch.arange(64.0)
    for label, rises in ((0, 1), (1, -1), (2, 1), (3, -1)):
        (places,) = (sounds.places[sounds.labels == label][:1],)
        pitch = (places[0] * bins).sum(1) / places[0].sum(1).clamp(min=1)
        heard = pitch[places[0].any(1)]
        assert (heard[-1] - heard[0]) * rises > 8
        assert (heard.mean() > 32) == (label > 1)
    touched = torch.nn.functional.adaptive_max_pool2d(sounds.places.transpose(2, 3).float(), 8)
    own, other, area = shares_of(touched - 0.5 * touched.flip(1), sounds)
    torch.testing.assert_close(own, torch.ones_like(own))
    torch.testing.assert_close(area, touched.mean((2, 3)))
    assert (other < 0.3).all()
