"""Train the demo's ViT on digit scenes: about 25 minutes on two cores.

    python examples/train_digit_vit.py            # writes examples/weights/digit_vit.safetensors
    python examples/train_digit_vit.py --resume   # goes on after an interruption

The first tenth of the steps shows one digit a scene, the rest one to three; the target is cross-entropy with the
probability shared equally by the digits shown. Half of the patches are dropped in training, which is twice as fast.
"""

import argparse
from pathlib import Path

import digit_vit
import torch
import torch.nn.functional as F
from digit_scenes import make_scenes
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT = Path("out/digit_vit_training.pt")


def batch(size: int, digits: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training scenes and the (batch, 10) probabilities that the digits shown share equally."""
    scenes = make_scenes(size, "train", digits=digits, seed=seed)
    return scenes.images, F.one_hot(scenes.labels, 10).sum(1) / digits


def accuracy(model: nn.Module, split: str, count: int) -> dict[int, float]:
    """The share of unseen scenes whose digits are all on top, by number of digits."""
    model.eval()
    found = {
        digits: digit_vit.top_digits_found(model, make_scenes(count, split, digits, seed=1)).float().mean().item()
        for digits in (1, 2, 3)
    }
    model.train()
    return found


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description="Train the demo's ViT on digit scenes.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=digit_vit.WEIGHTS)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = digit_vit.build(patch_drop_rate=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps, pct_start=0.1)
    start = 0
    if args.resume and CHECKPOINT.exists():
        state = torch.load(CHECKPOINT, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        start = state["step"]

    CHECKPOINT.parent.mkdir(exist_ok=True)
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, unit="step")
    for step in bar:
        digits = 1 if step < args.steps // 10 else 1 + step % 3
        images, targets = batch(args.batch_size, digits, seed=step)
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 250 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"schedule": schedule.state_dict(), "random": torch.get_rng_state(), "step": step + 1}
            torch.save(state, CHECKPOINT)
            tqdm.write(f"step {step + 1}: loss {loss.item():.3f}, validation {accuracy(model, 'validation', 500)}")

    digit_vit.save(model, args.out)
    found = accuracy(digit_vit.load(args.out), "test", 2000)
    for digits, share in found.items():
        print(f"unseen scenes of {digits} digits, all on top: {share:.1%}")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
