"""Train a plain convolutional classifier, as a backbone for `train_ca_stream.py`.

    python examples/train_classifier.py                                        # digit scenes: minutes on two cores
    python examples/train_classifier.py --data BCCD_Dataset/BCCD --epochs 40   # blood cells
    accelerate launch examples/train_classifier.py --data imagenette --model timm:resnet50 --pretrained

Writes the weights to `OUT/best.safetensors` and `OUT/last.safetensors`.
"""

import argparse
from pathlib import Path

import torch
from run_folder import BEST, LAST, load_weights
from small_resnet import build_model
from training import Trainer, classification_loss, classification_scores, in_thirds, learned
from training_options import add_data_options, add_options, settings_of, splits_of


def main() -> None:
    """Train, evaluate on test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    add_options(parser, Path("out/classifier"), epochs=15, learning_rate=0.1)
    args = parser.parse_args()

    trainer = Trainer(settings_of(args))
    train, validation, test = splits_of(args)
    model = build_model(args.model, len(train.classes), len(train[0][0]), args.pretrained)
    trainer.fit(
        model,
        train,
        validation,
        loss=classification_loss,
        scores=classification_scores,
        optimizer=torch.optim.SGD(learned(model), args.learning_rate, momentum=0.9, weight_decay=1e-4),
        schedule=in_thirds,
        out=args.out,
        description={
            "model": args.model,
            "data": Path(args.data).name,
            "image_size": args.image_size,
            "learning_rate": args.learning_rate,
        },
        resume=args.resume,
        overwrite=args.overwrite,
    )
    used = args.out / (LAST if args.patience is None else BEST)
    load_weights(model, used)
    found = trainer.evaluate(model, test, classification_scores)
    trainer.accelerator.print(f"test accuracy {found['accuracy']:.1%} with {used}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
