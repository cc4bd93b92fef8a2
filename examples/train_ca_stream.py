"""Train a CA-Stream on a frozen network: by default as in the paper, with SGD for 90 epochs.

    python examples/train_classifier.py                              # a small backbone for digit scenes
    python examples/train_ca_stream.py --backbone out/classifier/last.safetensors
    accelerate launch examples/train_ca_stream.py --data imagenet --model torchvision:resnet50 --pretrained \
        --workers 8 --mixed-precision bf16

Each epoch ends with a checkpoint and a line of `OUT/log.csv`; what is interrupted goes on with `--resume`. At the end
the CA-Stream is in OUT, to be loaded by `CAStream.from_pretrained(OUT, model=backbone)`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from run_folder import BEST, LAST, load_weights
from small_resnet import build_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import Progress, Trainer, classification_scores, in_thirds, learned
from training_options import add_data_options, add_options, settings_of, splits_of

from adapters import CAStream


def labelled_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean cross-entropy of a batch, where labels choose the queries of a class-specific stream."""
    return cross_entropy(model(*batch), batch[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save, compare with the backbone on test images."""
    args = _options().parse_args(arguments)
    trainer = Trainer(settings_of(args))
    train, validation, test = splits_of(args)
    backbone = build_model(args.model, len(train.classes), len(train[0][0]), args.pretrained)
    if args.backbone:
        load_weights(backbone, args.backbone)
    elif not args.pretrained:
        trainer.accelerator.print("The backbone has random weights; give --backbone FILE or --pretrained.")
    model = CAStream(
        backbone,
        start_stage=args.start_stage,
        projections=args.projections,
        class_specific=args.class_specific,
    )
    fit(trainer, model, train, validation, args)
    load_weights(model, args.out / (LAST if args.patience is None else BEST))
    if trainer.accelerator.is_main_process:
        model.save_pretrained(args.out)
    for name, network in (("average pooling", model.backbone), ("CA-Stream", model)):
        found = trainer.evaluate(network, test, classification_scores)
        trainer.accelerator.print(f"{name:16} test accuracy {found['accuracy']:.1%}, loss {found['loss']:.4f}")
    trainer.accelerator.print(f"wrote {args.out}")
    trainer.accelerator.end_training()


def fit(trainer: Trainer, model: CAStream, train: object, validation: object, args: argparse.Namespace) -> Progress:
    """Train the stream by the paper's recipe."""
    return trainer.fit(
        model,
        train,
        validation,
        loss=labelled_loss,
        scores=classification_scores,
        optimizer=torch.optim.SGD(learned(model), args.learning_rate, momentum=0.9, weight_decay=1e-4),
        schedule=in_thirds,
        out=args.out,
        description={
            "model": args.model,
            "backbone": str(args.backbone),
            "data": Path(args.data).name,
            "image_size": args.image_size,
            "learning_rate": args.learning_rate,
            "start_stage": args.start_stage,
            "projections": args.projections,
            "class_specific": args.class_specific,
        },
        resume=args.resume,
        overwrite=args.overwrite,
    )


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--backbone", type=Path, help="weights of the model that train_classifier.py wrote")
    parser.add_argument("--start-stage", type=int, default=0, help="how many stages to leave out (%(default)s)")
    parser.add_argument("--projections", action="store_true", help="linear maps for keys and values")
    parser.add_argument("--class-specific", action="store_true", help="a query for each class")
    add_options(parser, Path("out/ca_stream"), epochs=90, learning_rate=0.1)
    return parser


if __name__ == "__main__":
    main()
