"""The options that training scripts share."""

import argparse
from dataclasses import fields
from pathlib import Path

from image_data import load_data
from torch.utils.data import Dataset
from training import Settings


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of images and of a convolutional network."""
    parser.add_argument("--data", default="digits", help="see image_data.py (%(default)s)")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--model", default="small", help="small, timm:NAME or torchvision:NAME (%(default)s)")
    parser.add_argument("--pretrained", action="store_true", help="begin with the library's weights")


def splits_of(args: argparse.Namespace) -> tuple[Dataset, Dataset, Dataset]:
    """The images that options stand for, to train, validate and test."""
    train, validation, test = (
        load_data(args.data, split, args.image_size, args.limit) for split in ("train", "validation", "test")
    )
    return train, validation, test


def add_options(parser: argparse.ArgumentParser, out: Path, epochs: int, learning_rate: float) -> None:
    """Add options with these defaults to a parser."""
    add = parser.add_argument
    add("--epochs", type=int, default=epochs)
    add("--batch-size", type=int, default=256, help="images for a step, on all processes together (%(default)s)")
    add("--learning-rate", type=float, default=learning_rate, help="divided by 10 each third (%(default)s)")
    add("--accumulate", type=int, default=1, help="in how many parts a batch is computed, to save memory")
    add("--mixed-precision", choices=("no", "fp16", "bf16"), default="no")
    add("--clip", type=float, help="largest norm of the gradients")
    add("--patience", type=int, help="stop after so many epochs without a smaller validation loss, and use the best")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0, help="processes that load images, for each process that trains")
    add("--fast", dest="deterministic", action="store_false", help="GPUs sum in any order: --resume is not to the bit")
    add("--limit", type=int, help="only so many images of each split, to try it out")
    add("--out", type=Path, default=out, help="the folder of the run (%(default)s)")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    begin.add_argument("--overwrite", action="store_true", help="remove an earlier run in --out")


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that options stand for."""
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
