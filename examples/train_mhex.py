"""Train MHEX on images: gates and classifiers at the residual additions of a network, which learns with them.

    python examples/train_mhex.py --data BCCD_Dataset/BCCD --model timm:resnet18 --image-size 64
    accelerate launch examples/train_mhex.py --data imagenet --model torchvision:resnet18 --pretrained --epochs 25 \
        --batch-size 468 --workers 8 --mixed-precision bf16

By default as the paper trains on MedMNIST: AdamW for 20 epochs, cosine schedule. `--data` may be a `.npz` of MedMNIST.
Each epoch ends with a checkpoint and a line of `OUT/log.csv`; what is interrupted goes on with `--resume`. At the end
the model is in OUT, to be loaded by `MHEX.from_pretrained(OUT, model=backbone)`.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from run_folder import BEST, LAST, load_weights
from small_resnet import build_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset
from training import Progress, Trainer, classification_scores, learned
from training_options import add_data_options, add_options, settings_of, splits_of

from adapters import MHEX, deep_supervision_loss
from adapters.wrappers.deep_supervision import Mode


class DeepLogits(nn.Module):
    """A model as several processes can train it, whose `forward` returns the logits of all blocks in training."""

    def __init__(self, model: MHEX) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Tensor | list[Tensor]:
        """Logits of all blocks in training, else those that predict."""
        return self.model.deep_forward(*args) if self.training else self.model(*args)


def deep_loss(model: nn.Module, batch: Sequence[Tensor], mode: Mode = "finetune") -> Tensor:
    """The deep supervision loss of a batch, whose last tensor are the labels."""
    return deep_supervision_loss(model(*batch[:-1]), batch[-1], mode)


def fit(
    trainer: Trainer,
    model: MHEX,
    train: Dataset,
    validation: Dataset,
    *,
    out: Path,
    learning_rate: float,
    mode: Mode = "finetune",
    description: dict[str, object] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Progress:
    """Train all weights by AdamW with a cosine schedule."""
    return trainer.fit(
        DeepLogits(model),
        train,
        validation,
        loss=partial(deep_loss, mode=mode),
        scores=classification_scores,
        optimizer=torch.optim.AdamW(learned(model), learning_rate),
        schedule=CosineAnnealingLR,
        out=out,
        description={"mode": mode, "learning_rate": learning_rate} | (description or {}),
        resume=resume,
        overwrite=overwrite,
    )


def main() -> None:
    """Train, save, evaluate on test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--placement", default="downsample", help="all, downsample, or names with commas (%(default)s)")
    parser.add_argument("--mode", choices=("finetune", "pretrain"), default="finetune", help="the loss (%(default)s)")
    parser.add_argument("--no-gate", dest="gate", action="store_false", help="classifiers without gates")
    add_options(parser, Path("out/mhex"), epochs=20, learning_rate=1e-3)
    args = parser.parse_args()

    trainer = Trainer(settings_of(args))
    train, validation, test = splits_of(args)
    backbone = build_model(args.model, len(train.classes), len(train[0][0]), args.pretrained)
    placement = args.placement if args.placement in ("all", "downsample") else args.placement.split(",")
    model = MHEX(backbone, num_classes=len(train.classes), placement=placement, gate=args.gate)
    chosen = ("data", "model", "pretrained", "image_size", "placement", "gate")
    fit(
        trainer,
        model,
        train,
        validation,
        out=args.out,
        learning_rate=args.learning_rate,
        mode=args.mode,
        description={name: getattr(args, name) for name in chosen},
        resume=args.resume,
        overwrite=args.overwrite,
    )
    load_weights(DeepLogits(model), args.out / (LAST if args.patience is None else BEST))
    if trainer.accelerator.is_main_process:
        model.save_pretrained(args.out)
    found = trainer.evaluate(DeepLogits(model), test, classification_scores)
    trainer.accelerator.print(f"test accuracy {found['accuracy']:.1%}; wrote {args.out}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
