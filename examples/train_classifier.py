"""Train a plain convolutional classifier, as a backbone for `train_ca_stream.py`.

    python examples/train_classifier.py                                                  # minutes on two cores
    python examples/train_classifier.py --data BCCD_Dataset/BCCD --num-train-epochs 40   # blood cells
    accelerate launch examples/train_classifier.py --data imagenette --model timm:resnet50 --pretrained

Writes the weights to `model.safetensors` in the output folder.
"""

from collections.abc import Sequence

from training import SGD, ClassifierTrainer, ImageOptions, accuracy, parse


def main(given: Sequence[str] | None = None) -> None:
    """Train, evaluate on test images."""
    defaults = SGD | {"output_dir": "out/classifier", "num_train_epochs": 15, "per_device_train_batch_size": 256}
    args, options = parse(ImageOptions, __doc__, given, **defaults)
    train, validation, test = options.splits()
    model = options.network(train)
    trainer = ClassifierTrainer(model, args, train, validation, options=options)
    trainer.fit()
    found = accuracy(model, test, args)
    if trainer.is_world_process_zero():
        print(f"test accuracy {found['test_accuracy']:.1%}; wrote {args.output_dir}")


if __name__ == "__main__":
    main()
