"""Captum's explanation methods, with defaults for images."""

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from captum import attr
from captum._utils.models.linear_model import SkLearnRidge
from torch import Tensor, nn
from tqdm.auto import tqdm

from ._method import Row, Table
from ._rules import DECONVOLUTION, DEEP_LIFT, GUIDED_BACKPROP
from ._seeding import seeded_for

_PATCHES = 64  # at most, about


def _smooth_grad(model: nn.Module) -> Any:
    return attr.NoiseTunnel(attr.Saliency(model))


def _patch(x: Tensor) -> tuple[int, ...]:
    """A square (of signals a stretch, of volumes a cube) of an eighth of the shortest side, in all channels."""
    side = max(1, min(x.shape[2:]) // 8)
    return x.shape[1], *[side] * (x.dim() - 2)


class _Occlusion:
    """Occlusion by squares; single pixels would take a forward pass each."""

    def __init__(self, model: nn.Module) -> None:
        self._method = attr.Occlusion(model)

    def attribute(self, inputs: Tensor, target: Tensor, **options: Any) -> Any:
        window = options.pop("sliding_window_shapes", _patch(inputs))
        strides = options.pop("strides", window)
        return self._method.attribute(inputs, window, strides=strides, target=target, **options)


def patches(x: Tensor) -> Tensor:
    """The number of each pixel's patch, (1, 1, height, width), for Captum's `feature_mask`.

    Squares, of signals stretches, of volumes cubes: about 64 at most, none smaller than an eighth of the shortest side.

    Raises:
        ValueError: if it is no image, signal or volume.
    """
    if x.dim() not in (3, 4, 5):
        raise ValueError(
            f"Expected signals, images or volumes (batch, channels, ...), which have patches, got {tuple(x.shape)}. "
            "Pass the features as `feature_mask`."
        )
    sides = x.shape[2:]
    least = (math.prod(sides) / _PATCHES) ** (1 / len(sides))
    side = max(1, min(sides) // 8, math.ceil(least - 1e-9))
    counts = [math.ceil(one / side) for one in sides]
    places = torch.meshgrid(*[torch.arange(one, device=x.device) // side for one in sides], indexing="ij")
    numbers = reduce(lambda before, axis: before * axis[0] + axis[1], zip(counts, places, strict=True), torch.tensor(0))
    return numbers[None, None]


class _OneByOne(ABC):
    """A method of Captum that explains one sample after the other.

    All samples meet the same random numbers. So a map depends on the sample and the seed, not on the batch around it.
    """

    def __init__(self, method: Any) -> None:
        self._method = method

    @abstractmethod
    def one(self, x: Tensor, **options: Any) -> Tensor:
        """The map (1, channels, ...) of a single sample."""

    def attribute(self, inputs: Tensor, target: Tensor, **options: Any) -> Tensor:
        seed = int(torch.randint(2**31, ()))
        rows = zip(inputs.detach().split(1), target.split(1), strict=True)
        quiet = True if len(inputs) == 1 else None  # None: where no terminal shows it
        bar = tqdm(rows, self._method.get_name(), len(inputs), leave=False, unit="sample", disable=quiet)
        maps = []
        for x, y in bar:
            with seeded_for(seed, "sample", 0):
                maps.append(self.one(x, target=y, **options))
        return torch.cat(maps)


class _ByPatches(_OneByOne):
    """A perturbation method whose features are patches; 16 perturbed images in a forward pass."""

    def one(self, x: Tensor, **options: Any) -> Tensor:
        if "feature_mask" not in options:
            options["feature_mask"] = patches(x)
        maps: Tensor = self._method.attribute(x, **({"perturbations_per_eval": 16} | options))
        channels = int(options["feature_mask"].shape[1])
        return maps[:, :channels]  # one, where channels share their patch's value


class _ByBaselines(_OneByOne):
    """A gradient method that averages over baselines: copies of the image whose pixels are shuffled."""

    def one(self, x: Tensor, **options: Any) -> Tensor:
        count = options.pop("n_baselines", 8)
        baselines = options.pop("baselines") if "baselines" in options else shuffled(x, count)
        maps: Tensor = self._method.attribute(x.requires_grad_(), baselines=baselines, **options)
        return maps.detach()


def shuffled(x: Tensor, count: int) -> Tensor:
    """Copies of an image (1, channels, ...) with its pixels in random places: its colours without its shapes."""
    pixels = x[0].flatten(1)
    orders = [torch.randperm(pixels.shape[1]).to(x.device) for _ in range(count)]
    return torch.stack([pixels[:, order] for order in orders]).reshape(count, *x.shape[1:])


def _lime(model: nn.Module, kernel_width: float = 0.25, alpha: float = 1.0) -> Any:
    """As LIME's own package explains images: ridge regression, weighted by the cosine distance of what is shown."""

    def similarity(_: Tensor, __: Tensor, shown: Tensor, **___: Any) -> float:
        distance = 1 - math.sqrt(float(shown.float().mean()))
        return math.exp(-(distance**2) / (2 * kernel_width**2))

    return _ByPatches(attr.Lime(model, SkLearnRidge(alpha=alpha), similarity_func=similarity))


def _deep_lift_shap(model: nn.Module) -> Any:
    return _ByBaselines(attr.DeepLiftShap(model))


def _made(kind: type[_OneByOne], cls: Any, model: nn.Module) -> Any:
    return kind(cls(model))


CAPTUM: Table = {
    "Captum: gradients": {
        "saliency": Row(attr.Saliency, "Saliency", "absolute gradient of the pixels", "2"),
        "ixg": Row(attr.InputXGradient, "Input x Gradient", "gradient times pixels", "2"),
        "ig": Row(
            attr.IntegratedGradients,
            "Integrated Gradients",
            "gradients from zero to the image, integrated, times pixels",
            "2 x n_steps (50): 100",
            {"internal_batch_size": 64},
        ),
        "smoothgrad": Row(
            _smooth_grad,
            "SmoothGrad",
            "gradients of noisy images, averaged",
            "2 x nt_samples (50): 100",
            {"nt_samples": 50, "nt_samples_batch_size": 4, "stdevs": 0.1, "abs": False},
        ),
        "gradient-shap": Row(
            partial(_made, _ByBaselines, attr.GradientShap),
            "GradientSHAP",
            "gradients between shuffled copies of the image and it, averaged",
            "2 x n_samples (50): 100",
            {"n_samples": 50},
        ),
    },
    "Captum: rules of backpropagation": {
        "guided-backprop": Row(
            GUIDED_BACKPROP, "Guided Backprop", "gradient in which ReLUs pass only what is positive twice", "2"
        ),
        "deconvolution": Row(DECONVOLUTION, "Deconvolution", "gradient in which ReLUs pass positive gradients", "2"),
        "deep-lift": Row(DEEP_LIFT, "DeepLIFT", "differences from zero, by the rescale rule", "4"),
        "deep-lift-shap": Row(
            replace(DEEP_LIFT, make=_deep_lift_shap),
            "DeepLIFT SHAP",
            "DeepLIFT from shuffled copies of the image, averaged",
            "4 x n_baselines (8): 32",
        ),
    },
    "Captum: perturbation, of about 64 patches": {
        "occlusion": Row(_Occlusion, "Occlusion", "change of the output as a window is set to 0", "1 + windows: 65"),
        "feature-ablation": Row(
            partial(_made, _ByPatches, attr.FeatureAblation),
            "Feature ablation",
            "change of the output as a patch is set to 0",
            "1 + patches: 65",
        ),
        "shapley-sampling": Row(
            partial(_made, _ByPatches, attr.ShapleyValueSampling),
            "Shapley sampling",
            "Shapley values of patches, by random orders",
            "1 + patches x n_samples (10): 641",
            {"n_samples": 10},
        ),
        "kernel-shap": Row(
            partial(_made, _ByPatches, attr.KernelShap),
            "KernelSHAP",
            "Shapley values of patches, by regression on random sets",
            "n_samples (512): 512",
            {"n_samples": 512},
        ),
        "lime": Row(
            _lime,
            "LIME",
            "ridge regression of the output on which patches are shown",
            "n_samples (512): 512",
            {"n_samples": 512},
        ),
    },
}
