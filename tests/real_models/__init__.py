"""Tiny models of the real libraries with random weights, and where the specification says their tokens are."""

from collections.abc import Iterable

import pytest
import torch

from .cases import AUTOGRAD, CLOSED_FORM, PATCH, WIDTH, Case, Entry, hooked, images, randomised
from .hub_models import HUB_CASES, HubAttention, VisionTransformer, hub_case, with_linear
from .timm_models import TIMM_CASES, LowRankLinear, set_fused, small, timm_case, vit
from .torchvision_models import TORCHVISION_CASES
from .transformers_models import TEXT_CASES, TRANSFORMERS_CASES, hf_roberta

__all__ = [
    "AUTOGRAD",
    "CASES",
    "CLOSED_FORM",
    "PATCH",
    "TEXT_CASES",
    "WIDTH",
    "Case",
    "HubAttention",
    "LowRankLinear",
    "VisionTransformer",
    "build",
    "hf_roberta",
    "hooked",
    "hub_case",
    "images",
    "parameters",
    "randomised",
    "set_fused",
    "small",
    "timm_case",
    "vit",
    "with_linear",
]

CASES: dict[str, Entry] = TIMM_CASES | TRANSFORMERS_CASES | TEXT_CASES | HUB_CASES | TORCHVISION_CASES


def build(name: str) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CASES[name].make()


def parameters(names: Iterable[str]) -> list:
    """The names as parameters of a test, slow but for a few."""
    return [pytest.param(name, marks=() if CASES[name].quick else pytest.mark.slow) for name in names]
