"""Networks of the tables for `xai-compare`, trained on demand, or loaded if they were trained before.

    xai-compare --config examples/ca_stream_table.toml --out out/table-gap \
      --model python:examples/trained_models.py:average_pooling
    xai-compare --config examples/ca_stream_table.toml --out out/table-ca \
      --model python:examples/trained_models.py:ca_stream

are table 1 of CA-Stream on scenes of one digit; MHEX's table 3 on blood cells is in `mhex_table.toml`.
"""

from argparse import Namespace
from pathlib import Path

import torch
from ca_stream_table import trained
from image_data import load_data, load_splits
from mhex_table import plain, with_mhex
from small_resnet import small_resnet
from torch import nn
from torch.utils.data import Dataset

from adapters import MHEX, CAStream

OUT = Path("out")


def images(name: str = "digits") -> Dataset:
    """The test images that the tables explain."""
    return load_data(name, "test")


def average_pooling(data: str = "digits", seed: int = 0, epochs: int = 10) -> nn.Module:
    """A small ResNet that pools by the average."""
    splits = load_splits(data)
    torch.manual_seed(seed)
    model = small_resnet(len(splits["test"].classes), len(splits["test"][0][0]))
    folder = OUT / "training" / f"{Path(data).name.lower()}-{seed}" / "average"
    trained(model, splits["train"], splits["validation"], folder, epochs=epochs, seed=seed)
    return model


def ca_stream(data: str = "digits", seed: int = 0, epochs: int = 10, stream_epochs: int = 10) -> CAStream:
    """The same network with a stream that pools by attention."""
    model = CAStream(average_pooling(data, seed, epochs))
    splits = load_splits(data)
    folder = OUT / "training" / f"{Path(data).name.lower()}-{seed}" / "stream"
    trained(model, splits["train"], splits["validation"], folder, epochs=stream_epochs, seed=seed)
    return model


def without_mhex(data: str, seed: int = 0, epochs: int = 30) -> nn.Module:
    """A small ResNet of MHEX's table."""
    return plain(load_splits(data), Namespace(epochs=epochs), _mhex_folder(data) / f"plain-{seed}", seed)


def mhex(data: str, seed: int = 0, epochs: int = 30) -> MHEX:
    """The same with MHEX."""
    return with_mhex(load_splits(data), Namespace(epochs=epochs), _mhex_folder(data) / f"mhex-{seed}", seed)


def _mhex_folder(data: str) -> Path:
    return OUT / "training" / f"{Path(data).name.lower()}-mhex"
