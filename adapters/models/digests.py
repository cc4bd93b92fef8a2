"""Digests of tensors by their values."""

import hashlib
from typing import Any

import torch
from torch import Tensor


def digest_of(tensor: Tensor) -> bytes:
    """16 bytes that differ for tensors of different type, shape or values."""
    digest = hashlib.blake2b(digest_size=16)
    add_tensor(digest, tensor, f"{tensor.dtype}{tuple(tensor.shape)}")
    return digest.digest()


def add_tensor(digest: Any, tensor: Tensor, label: str = "") -> None:
    """Add a label and a tensor's bytes to a digest of hashlib."""
    digest.update(label.encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
