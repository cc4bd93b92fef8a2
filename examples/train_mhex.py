"""Train MHEX on images: gates and classifiers at the residual additions of a network, which learns with them.

    python examples/train_mhex.py --data BCCD_Dataset/BCCD --model timm:resnet18 --image-size 64 --maps 8
    accelerate launch examples/train_mhex.py --data imagenet --model torchvision:resnet18 --pretrained \
        --num-train-epochs 25 --per-device-train-batch-size 468 --dataloader-num-workers 8 --bf16

By default as the paper trains on MedMNIST: AdamW for 20 epochs, cosine schedule. `--data` may be a `.npz` of MedMNIST.
Each epoch ends with a checkpoint; an interrupted run resumes with `--resume`. At the end the model is in the output
folder, to be loaded by `MHEX.from_pretrained(FOLDER, model=backbone)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from class_map_callback import ClassMapCallback
from torch.utils.data import Dataset, default_collate
from training import ADAMW, ClassifierTrainer, ImageOptions, accuracy, parse

from adapters import MHEX
from adapters.wrappers.deep_supervision import Mode
from captum_ext import MHEXCAM


@dataclass
class MHEXOptions(ImageOptions):
    """Those of the backbone, of MHEX and its loss."""

    placement: str = field(default="downsample", metadata={"help": "all, downsample, or names with commas"})
    mode: Mode = field(default="finetune", metadata={"help": "the loss"})
    gate: bool = field(default=True, metadata={"help": "gates, not only classifiers"})
    maps: int = field(
        default=0, compare=False, metadata={"help": "draw MHEX CAM of this many validation images each epoch"}
    )

    def mhex(self, data: Dataset) -> MHEX:
        """A new network with MHEX."""
        placement = self.placement if self.placement in ("all", "downsample") else self.placement.split(",")
        return MHEX(self.network(data), num_classes=len(data.classes), placement=placement, gate=self.gate)


def main(given: Sequence[str] | None = None) -> None:
    """Train, save, evaluate on test images."""
    defaults = ADAMW | {"output_dir": "out/mhex", "num_train_epochs": 20, "per_device_train_batch_size": 256}
    args, options = parse(MHEXOptions, __doc__, given, **defaults)
    train, validation, test = options.splits()
    model = options.mhex(train)
    trainer = ClassifierTrainer(model, args, train, validation, options.mode, options)
    if options.maps:
        shown = default_collate([validation[i] for i in range(options.maps)])
        trainer.add_callback(ClassMapCallback(trainer, *shown, MHEXCAM(model).attribute))
    trainer.fit()
    found = accuracy(model, test, args)
    if trainer.is_world_process_zero():
        print(f"test accuracy {found['test_accuracy']:.1%}; wrote {args.output_dir}")


if __name__ == "__main__":
    main()
