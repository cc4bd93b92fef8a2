"""Which frames, and where in them: a small VideoMAE on clips of two moving digits, of which one enters later.

    python examples/video_frames.py            # trains for a minute or two, writes out/video_frames.png and .gif
    python examples/video_frames.py --quick    # a few steps, to see that everything runs

The model says for each digit from 0 to 3 whether it is in the clip. The map of a digit should lie on it, and only
from the frame on in which it enters.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from captum_ext import CDAM, save_gif, video_overlay, video_strip
from xai_compare.digit_scenes import DIGIT, Split, load_split

FRAMES, SIDE, CLASSES, FPS = 8, 32, 4, 4


@dataclass(frozen=True)
class Clips:
    """Clips of two digits, one above the other, that move to the left or right.

    videos: (batch, frames, 1, side, side), ink 1 on paper 0, with a little noise.
    labels: (batch, 2), the digits; the second one enters later.
    tubes: (batch, 2, frames, side, side) booleans: the box of each digit, in the frames in which it is there.
    """

    videos: Tensor
    labels: Tensor
    tubes: Tensor


def make_clips(count: int, split: Split, seed: int) -> Clips:
    """Clips, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    handwriting, classes = load_split(split)
    by_class = [handwriting[classes == k] for k in range(CLASSES)]
    labels = torch.rand(count, CLASSES, generator=generator).argsort(1)[:, :2]
    first_above = torch.rand(count, generator=generator) < 0.5
    ends = torch.randint(SIDE - DIGIT + 1, (count, 2, 2), generator=generator)
    enters = torch.randint(FRAMES // 4, FRAMES * 3 // 4 + 1, (count,), generator=generator)
    videos, tubes = torch.zeros(count, FRAMES, SIDE, SIDE), torch.zeros(count, 2, FRAMES, SIDE, SIDE, dtype=torch.bool)
    for clip in range(count):
        for slot in (0, 1):
            pool = by_class[labels[clip, slot]]
            drawn = pool[torch.randint(len(pool), (), generator=generator)]
            rows = slice(0, DIGIT) if first_above[clip] == (slot == 0) else slice(DIGIT, 2 * DIGIT)
            for frame in range(int(enters[clip]) if slot else 0, FRAMES):
                left = int(torch.lerp(*ends[clip, slot].float(), frame / (FRAMES - 1)).round())
                videos[clip, frame, rows, left : left + DIGIT] = drawn
                tubes[clip, slot, frame, rows, left : left + DIGIT] = True
    videos += 0.05 * torch.randn(videos.shape, generator=generator)
    return Clips(videos[:, :, None], labels, tubes)


def build() -> VideoMAEForVideoClassification:
    """A VideoMAE of tubelets of 2 frames and 8 x 8 pixels, and a logit for each digit."""
    config = VideoMAEConfig(
        image_size=SIDE, patch_size=8, num_channels=1, num_frames=FRAMES, tubelet_size=2, hidden_size=64,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, num_labels=CLASSES,
    )  # fmt: skip
    return VideoMAEForVideoClassification(config)


def train(model: nn.Module, steps: int, clips: Clips) -> None:
    """Is each digit there? Binary cross-entropy of each on its own."""
    shown = F.one_hot(clips.labels, CLASSES).sum(1).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    model.train()
    with tqdm(range(steps), desc="training", unit="step") as bar:
        for _ in bar:
            chosen = torch.randint(len(shown), (32,))
            loss = F.binary_cross_entropy_with_logits(model(clips.videos[chosen]).logits, shown[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def both_on_top(model: nn.Module, clips: Clips) -> Tensor:
    """In which clips the two digits have the two highest logits."""
    with torch.no_grad():
        top = torch.cat([model(part).logits.topk(2).indices for part in clips.videos.split(64)])
    return (top.sort(1).values == clips.labels.sort(1).values).all(1)


@dataclass(frozen=True)
class Shares:
    """Where the positive relevance of each digit's map lies, (batch, 2) shares of all of it.

    own: In the tube of the digit asked for.
    other: In the other digit's.
    early: In the frames before the second digit enters; of its own map this should be little.
    frames: The share of these frames.
    """

    own: Tensor
    other: Tensor
    early: Tensor
    frames: Tensor


def shares_of(maps: Tensor, clips: Clips) -> Shares:
    """Of the maps (batch, 2, t, h, w) of both digits."""
    pixels = F.interpolate(maps.clamp(min=0), clips.tubes.shape[2:])
    pixels = pixels / pixels.sum((2, 3, 4), keepdim=True)
    own, other = ((pixels * tubes).sum((2, 3, 4)) for tubes in (clips.tubes, clips.tubes.flip(1)))
    absent = ~clips.tubes[:, 1].any(-1).any(-1)
    return Shares(own, other, (pixels.sum((3, 4)) * absent[:, None]).sum(2), absent.float().mean(1))


def main() -> None:
    """Train, explain, measure, draw."""
    parser = argparse.ArgumentParser(description="Which frames a VideoMAE looks at.")
    parser.add_argument("--quick", action="store_true", help="a few steps of training only")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # more are no faster for so small a model
    steps, count = (3, 8) if args.quick else (1000, 300)
    model = build()
    train(model, steps, make_clips(steps * 3, "train", seed=0))

    clips = make_clips(count, "test", seed=1)
    read = both_on_top(model, clips)
    print(f"Both digits have the highest logits in {read.float().mean():.1%} of {count} clips of unseen handwriting.")
    maps = CDAM(model).attribute_targets(clips.videos, [clips.labels[:, 0], clips.labels[:, 1]])
    shares, volume = shares_of(maps, clips), clips.tubes.float().mean((2, 3, 4))
    for slot, name in enumerate(("the first digit", "the digit that enters later")):
        own, other, early = (100 * one[:, slot].mean() for one in (shares.own, shares.other, shares.early))
        print(
            f"CDAM of {name}: {own:.1f} % of its positive relevance on it ({volume[:, slot].mean():.1%} of the clip), "
            f"{other:.1f} % on the other,\n    {early:.1f} % before the second enters "
            f"({shares.frames.mean():.1%} of the frames)."
        )
    draw(clips, maps, int(read.float().argmax()), args.out)


def draw(clips: Clips, maps: Tensor, clip: int, out: Path) -> None:
    """A strip and an animation of one clip."""
    video = clips.videos[clip].clamp(0, 1)
    titles = [f"is there a {int(k)}?" for k in clips.labels[clip]]
    figure = video_strip(video, dict(zip(titles, maps[clip], strict=True)), fps=FPS)
    figure.savefig(out / "video_frames.png", dpi=110)
    drawn = video_overlay(video, torch.cat([torch.zeros_like(maps[clip, :1]), maps[clip]]))
    side_by_side = np.concatenate(list(drawn.repeat(5, 2).repeat(5, 3)), axis=2)
    save_gif(out / "video_frames.gif", side_by_side, FPS)
    print(f"wrote {out / 'video_frames.png'} and {out / 'video_frames.gif'}: the clip, and the maps of {titles}")


if __name__ == "__main__":
    main()
