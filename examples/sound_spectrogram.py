"""Which frequencies, and when: a small Audio Spectrogram Transformer on chirps and tones in noise.

    python examples/sound_spectrogram.py            # trains for a minute or two, writes out/sound_spectrogram.png
    python examples/sound_spectrogram.py --quick    # a few steps, to see that everything runs

Every sound holds two of five events at different times: a low or high chirp that rises or falls, or a steady tone.
The model says for each event whether it is there. The map of an event should lie where it sounds.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ASTConfig, ASTForAudioClassification

from captum_ext import CDAM, spectrogram_figure

EVENTS = ("low, rising", "low, falling", "high, rising", "high, falling", "tone")
RATE, SECONDS = 8000, 2.0
BINS, HOP, WINDOW = 64, 250, 256  # of the spectrogram: frequencies up to 2 kHz, frames of 31 ms
EVENT = 0.5  # seconds


@dataclass(frozen=True)
class Sounds:
    """Sounds of two events.

    spectrograms: (batch, time, frequency), logarithms of power, normalised.
    labels: (batch, 2), the events.
    places: (batch, 2, time, frequency) booleans: where each event sounds, two bins to each side of its pitch.
    """

    spectrograms: Tensor
    labels: Tensor
    places: Tensor


def make_sounds(count: int, seed: int) -> Sounds:
    """Sounds, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, len(EVENTS), generator=generator).argsort(1)[:, :2]
    first = torch.rand(count, 1, generator=generator) * (SECONDS - 2 * EVENT) / 2
    starts = torch.cat([first, first + EVENT + torch.rand(count, 1, generator=generator) * (SECONDS / 2 - EVENT)], 1)
    starts = starts.gather(1, torch.rand(count, 2, generator=generator).argsort(1))  # either comes first
    lowest = torch.tensor([200.0, 200.0, 1100.0, 1100.0, 400.0])[labels] + 200 * torch.rand(
        count, 2, generator=generator
    )
    slope = torch.tensor([800.0, -800.0, 800.0, -800.0, 0.0])[labels]  # hertz a second
    base = lowest - EVENT * slope.clamp(max=0)
    parts = zip(starts.split(100), base.split(100), slope.split(100), strict=True)
    spectrograms = torch.cat([_spectrograms(_waves(*part, generator)) for part in parts])
    return Sounds(spectrograms, labels, _places(starts, base, slope))


def _waves(starts: Tensor, base: Tensor, slope: Tensor, generator: torch.Generator) -> Tensor:
    time = torch.arange(int(RATE * SECONDS)) / RATE
    since = time - starts[..., None]  # seconds since the event began, (batch, 2, samples)
    envelope = ((since >= 0) & (since < EVENT)) * torch.sin(torch.pi * since / EVENT).clamp(min=0).sqrt()
    phase = 2 * torch.pi * (base[..., None] * since + slope[..., None] / 2 * since**2)
    return (envelope * phase.sin()).sum(1) + 0.3 * torch.randn(len(starts), len(time), generator=generator)


def _spectrograms(waves: Tensor) -> Tensor:
    power = torch.stft(waves, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs().square()
    levels = (power[:, :BINS, :-1] + 1e-3).log().transpose(1, 2)
    return (levels - levels.mean((1, 2), keepdim=True)) / levels.std((1, 2), keepdim=True)


def _places(starts: Tensor, base: Tensor, slope: Tensor) -> Tensor:
    since = torch.arange(int(RATE * SECONDS) // HOP) * HOP / RATE - starts[..., None]
    pitch = (base[..., None] + slope[..., None] * since) * WINDOW / RATE  # in bins, (batch, 2, time)
    near = (torch.arange(BINS) - pitch[..., None]).abs() <= 2
    return near & ((since >= 0) & (since < EVENT))[..., None]


def build(layers: int = 1) -> ASTForAudioClassification:
    """An AST of patches of 8 bins and 8 frames, and a logit for each event."""
    config = ASTConfig(
        hidden_size=64, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=128, num_labels=len(EVENTS),
        patch_size=8, frequency_stride=8, time_stride=8, max_length=int(RATE * SECONDS) // HOP, num_mel_bins=BINS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ASTForAudioClassification(config)


def train(model: nn.Module, steps: int, sounds: Sounds) -> None:
    """Is each event there? Binary cross-entropy of each on its own."""
    shown = F.one_hot(sounds.labels, len(EVENTS)).sum(1).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    model.train()
    with tqdm(range(steps), desc="training", unit="step") as bar:
        for _ in bar:
            chosen = torch.randint(len(shown), (32,))
            loss = F.binary_cross_entropy_with_logits(model(sounds.spectrograms[chosen]).logits, shown[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def both_on_top(model: nn.Module, sounds: Sounds) -> Tensor:
    """In which sounds the two events have the two highest logits."""
    with torch.no_grad():
        top = model(sounds.spectrograms).logits.topk(2).indices
    return (top.sort(1).values == sounds.labels.sort(1).values).all(1)


def shares_of(maps: Tensor, sounds: Sounds) -> tuple[Tensor, Tensor, Tensor]:
    """Shares (batch, 2) of the positive relevance of both events' maps (batch, 2, f, t).

    In the patches that the event asked for touches, in those of the other one, and the share of all patches that the
    event touches.
    """
    touched = F.adaptive_max_pool2d(sounds.places.transpose(2, 3).float(), maps.shape[2:])
    shares = maps.clamp(min=0) / maps.clamp(min=0).sum((2, 3), keepdim=True)
    own, other = ((shares * places).sum((2, 3)) for places in (touched, touched.flip(1)))
    return own, other, touched.mean((2, 3))


def main() -> None:
    """Train, explain, measure, draw."""
    parser = argparse.ArgumentParser(description="Which part of a spectrogram an AST looks at.")
    parser.add_argument("--quick", action="store_true", help="a few steps of training only")
    parser.add_argument("--out", type=Path, default=Path("out"), help="output folder")
    parser.add_argument("--layers", type=int, default=1, help="of more, tokens may hold what others have sounded")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # more are no faster for so small a model
    steps, count = (3, 8) if args.quick else (1500, 300)
    model = build(args.layers)
    train(model, steps, make_sounds(2 * steps, seed=0))

    sounds = make_sounds(count, seed=1)
    read = both_on_top(model, sounds)
    print(f"Both events have the highest logits in {read.float().mean():.1%} of {count} unseen sounds.")
    maps = CDAM(model).attribute_targets(sounds.spectrograms, [sounds.labels[:, 0], sounds.labels[:, 1]])
    own, other, area = shares_of(maps, sounds)
    for event, name in enumerate(EVENTS):
        asked = sounds.labels == event
        on_it, on_other, patches = (100 * one[asked].mean() for one in (own, other, area))
        print(
            f"{name:14}: {on_it:.1f} % of CDAM's positive relevance on it, {on_other:.1f} % on the other event;",
            end=" ",
        )
        print(f"it has {patches:.1f} % of the patches.")
    first = int(read.float().argmax())
    named = {EVENTS[int(k)]: heat for k, heat in zip(sounds.labels[first], maps[first], strict=True)}
    spectrogram_figure(sounds.spectrograms[first].T, named, seconds=SECONDS).savefig(
        args.out / "sound_spectrogram.png", dpi=90
    )
    print(f"wrote {args.out / 'sound_spectrogram.png'}: a spectrogram, and the maps of {list(named)}")


if __name__ == "__main__":
    main()
