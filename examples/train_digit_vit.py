"""Train the demo's ViT on digit scenes: about half an hour on two cores.

    python examples/train_digit_vit.py            # writes xai_compare/weights/digit_vit.safetensors
    python examples/train_digit_vit.py --resume   # resumes after an interruption

First the model learns to read: cross-entropy with the probability shared equally by the digits shown, one digit a scene
for the first tenth, then one to three. In the last sixth each logit answers for its own digit, "is there a 3?" (binary
cross-entropy). The first loss learns faster, but makes the digits of a scene compete: a logit then speaks against the
other digits as much as for its own, and no explanation finds the digit. Half of the patches are dropped in training,
which is twice as fast.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from xai_compare import digit_vit
from xai_compare.digit_scenes import Split, make_scenes

CHECKPOINT = Path("out/digit_vit_training.pt")
SAVE_EVERY = 250


def shared_loss(logits: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy with the probability shared equally by the digits shown."""
    return F.cross_entropy(logits, shown / shown.sum(1, keepdim=True))


def own_loss(logits: Tensor, shown: Tensor) -> Tensor:
    """Binary cross-entropy of each digit on its own, summed over digits."""
    return F.binary_cross_entropy_with_logits(logits, shown, reduction="none").sum(1).mean()


PHASES = ((shared_loss, 1e-3), (own_loss, 5e-4))  # with the highest learning rate of each


def batch(size: int, digits: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training scenes and (batch, 10) indicators of the digits shown."""
    scenes = make_scenes(size, "train", digits=digits, seed=seed)
    return scenes.images, F.one_hot(scenes.labels, 10).sum(1).float()


def accuracy(model: nn.Module, split: Split, count: int) -> dict[int, float]:
    """The share of unseen scenes whose digits are all on top, by number of digits."""
    model.eval()
    found = {
        digits: digit_vit.top_digits_found(model, make_scenes(count, split, digits, seed=1)).float().mean().item()
        for digits in (1, 2, 3)
    }
    model.train()
    return found


class Training:
    """A model, its optimiser and how far they are; saved and restored together."""

    def __init__(self, steps: int) -> None:
        self.ends = (steps * 5 // 6, steps)
        self.model = digit_vit.build(patch_drop_rate=0.5)
        self.step = 0
        self.begin_phase(0)

    def begin_phase(self, phase: int) -> None:
        """A new optimiser and learning rate schedule for one of the losses."""
        self.phase = phase
        self.loss, rate = PHASES[phase]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=0.05)
        length = self.ends[phase] - self.step
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=length, pct_start=0.1)

    def advance(self, size: int) -> float:
        """One step of training; returns its loss."""
        if self.phase == 0 and self.step == self.ends[0]:
            self.begin_phase(1)
        digits = 1 if self.step < self.ends[0] // 10 else 1 + self.step % 3
        images, shown = batch(size, digits, seed=self.step)
        loss = self.loss(self.model(images), shown)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Save everything needed to resume."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        CHECKPOINT.parent.mkdir(exist_ok=True)
        torch.save(parts | {"random": torch.get_rng_state(), "step": self.step, "phase": self.phase}, CHECKPOINT)

    def restore(self) -> None:
        """Restore what was saved last."""
        state = torch.load(CHECKPOINT, weights_only=True)
        self.step = self.ends[0] if state["phase"] else 0
        self.begin_phase(state["phase"])
        self.step = state["step"]
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description="Train the demo's ViT on digit scenes.")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path, default=digit_vit.WEIGHTS)
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint in out/")
    args = parser.parse_args()

    torch.manual_seed(0)
    training = Training(args.steps)
    if args.resume and CHECKPOINT.exists():
        training.restore()
    with tqdm(initial=training.step, total=args.steps, unit="step") as bar:
        while training.step < args.steps:
            loss = training.advance(args.batch_size)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            if training.step % SAVE_EVERY == 0:
                training.save()
                found = accuracy(training.model, "validation", 500)
                tqdm.write(f"step {training.step}: loss {loss:.3f}, validation {found}")

    digit_vit.save(training.model, args.out)
    for digits, share in accuracy(digit_vit.load(args.out), "test", 2000).items():
        print(f"unseen scenes of {digits} digits, all on top: {share:.1%}")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
