"""Train a CA-Stream on a frozen network: by default as in the paper, with SGD for 90 epochs.

    python examples/train_classifier.py                              # a small backbone for digit scenes
    python examples/train_ca_stream.py --backbone out/classifier/model.safetensors --maps 8
    accelerate launch examples/train_ca_stream.py --data imagenet --model torchvision:resnet50 --pretrained \
        --dataloader-num-workers 8 --bf16

Each epoch ends with a checkpoint; an interrupted run resumes with `--resume`. At the end the CA-Stream is in the
output folder, to be loaded by `CAStream.from_pretrained(FOLDER, model=backbone)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from class_map_callback import ClassMapCallback
from safetensors.torch import load_file
from torch.utils.data import default_collate
from training import SGD, ClassifierTrainer, ImageOptions, accuracy, parse

from adapters import CAStream
from captum_ext import RawAttention


@dataclass
class StreamOptions(ImageOptions):
    """Those of the backbone and of CAStream."""

    backbone: str | None = field(default=None, metadata={"help": "weights that train_classifier.py wrote"})
    start_stage: int = field(default=0, metadata={"help": "number of stages to skip"})
    projections: bool = field(default=False, metadata={"help": "linear maps for keys and values"})
    class_specific: bool = field(default=False, metadata={"help": "a query for each class"})
    maps: int = field(
        default=0, compare=False, metadata={"help": "draw the attention over this many validation images each epoch"}
    )

    def stream(self, backbone: torch.nn.Module) -> CAStream:
        """A new stream on a backbone."""
        return CAStream(
            backbone, start_stage=self.start_stage, projections=self.projections, class_specific=self.class_specific
        )


def main(given: Sequence[str] | None = None) -> None:
    """Train, save, compare with the backbone on test images."""
    defaults = SGD | {"output_dir": "out/ca_stream", "num_train_epochs": 90, "per_device_train_batch_size": 256}
    args, options = parse(StreamOptions, __doc__, given, **defaults)
    train, validation, test = options.splits()
    backbone = options.network(train)
    if options.backbone:
        backbone.load_state_dict(load_file(options.backbone))
    elif not options.pretrained:
        print("The backbone has random weights; give --backbone FILE or --pretrained.")
    model = options.stream(backbone)
    trainer = ClassifierTrainer(model, args, train, validation, options=options)
    if options.maps:
        shown = default_collate([validation[i] for i in range(options.maps)])
        trainer.add_callback(ClassMapCallback(trainer, *shown, RawAttention(model).attribute))
    trainer.fit()
    for name, network in (("average pooling", model.backbone), ("CA-Stream", model)):
        found = accuracy(network, test, args)
        if trainer.is_world_process_zero():
            print(f"{name:16} test accuracy {found['test_accuracy']:.1%}, loss {found['test_loss']:.4f}")


if __name__ == "__main__":
    main()
