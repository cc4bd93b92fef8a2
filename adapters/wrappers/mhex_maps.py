"""MHEX CAM: maps from what each channel contributes to a class, at every residual addition, in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import check_batch, number
from ..models.evaluation_mode import evaluated
from ..recording import TokenPass
from .mhex import MHEX
from .mhex_pass import MHEXPass

Activation = Literal["all", "gated"]
_TOKEN_LAYERS = 3  # deeper ones smooth over the tokens


@dataclass(frozen=True)
class MHEXSettings:
    """How maps are made; see `mhex_maps`.

    Raises:
        ValueError: if a value is out of its range.
    """

    alpha: float = 0.9
    beta: float = 1.0
    gamma_pos: float | None = None
    gamma_neg: float | None = None
    activation: Activation = "all"
    normalize: bool = False
    per_layer: bool = False

    def __post_init__(self) -> None:
        number("alpha", self.alpha)
        number("beta", self.beta)
        for name in ("gamma_pos", "gamma_neg"):
            gamma = getattr(self, name)
            if gamma is not None and not 0 <= number(name, gamma) <= 1:
                raise ValueError(f"Expected `{name}` from 0 to 1, as sharpness is a share, or None; got {gamma}.")
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"Expected a finite `beta` of at least 0, a share of negative evidence; got {self.beta}.")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(
                f"Expected a finite `alpha` above 0, the weight of a block over the next one; got {self.alpha}."
            )
        if self.activation not in ("all", "gated"):
            raise ValueError(f"Expected `activation` to be 'all' or 'gated', got {self.activation!r}.")


def mhex_maps(
    model: MHEX, inputs: tuple[Any, ...], target: int | Sequence[int] | Tensor | None, settings: MHEXSettings
) -> Tensor:
    """The maps of a class, from one forward pass in evaluation mode.

        CAM_l = sum_k e_k A_k,    CAM = sum_l alpha^(L - l) upsample(CAM_l)

    with the evidence e of `MHEXBlock.evidence` and A = x' + r, in front of the block's activation. In transformers
    A = x + r, in the first three blocks. Source: Sun and Liò 2025 (MHEX), sections 3.4 and 3.6.

    Args:
        model: The wrapped model, with all its heads.
        inputs: The backbone's arguments: images (batch, channels, height, width), or token ids (batch, tokens) and what
            follows them.
        target: Classes. None: the predicted ones, which takes a second pass.
        settings: alpha; beta; gamma_pos and gamma_neg, None for 1/C + 0.1; activation, "gated" for A = x', in
            transformers sigmoid(s) (x + r); normalize, each map from 0 to 1; per_layer, blocks not summed.

    Returns:
        (batch, height, width) of the images, of signals (batch, length) and of volumes (batch, depth, height, width);
        of words (batch, tokens), padding 0; with `per_layer` (batch, blocks, ...),
        without alpha. Signed, in the unit of a logit, in at least float32.

    Raises:
        TypeError: if the model is not an MHEX, or targets are no classes.
        ValueError: if inputs are not finite, targets out of range or of another length, or heads were stripped.

    Example:
        >>> import torch, torchvision
        >>> from adapters import MHEX, MHEXSettings, mhex_maps
        >>> model = MHEX(torchvision.models.resnet18(), num_classes=8)
        >>> mhex_maps(model, (torch.randn(2, 3, 64, 64),), [3, 7], MHEXSettings(beta=0.0)).shape
        torch.Size([2, 64, 64])
    """
    if not isinstance(model, MHEX):
        raise TypeError(f"Expected an adapters.MHEX, whose heads make the maps; got {type(model)}.")
    check_batch(inputs)
    gamma = min(0.99, 1 / model.num_classes + 0.1)  # the sharpness of a single class is a little below 1
    thresholds = [gamma if given is None else given for given in (settings.gamma_pos, settings.gamma_neg)]
    maps: list[Tensor] = []
    with evaluated(model, inputs) as given, torch.no_grad():
        classes = MHEXPass(model, *given).logits().argmax(1) if target is None else classes_of(model, target, given[0])

        def see(index: int, gated: Tensor, total: Tensor) -> None:
            residual = model.residuals[index]
            on_tokens = residual.on_tokens
            if on_tokens and index >= _TOKEN_LAYERS:
                return
            chosen = total if settings.activation == "all" else gated
            chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
            chosen = chosen.movedim(-1, 1) if residual.channels_last and not on_tokens else chosen
            weights = model.mhex_blocks[index].evidence(classes, settings.beta, *thresholds).to(chosen.dtype)
            with torch.autocast(chosen.device.type, enabled=False):
                if not on_tokens:
                    maps.append(torch.bmm(weights[:, None], chosen.flatten(2)).unflatten(2, chosen.shape[2:])[:, 0])
                else:
                    maps.append(torch.bmm(chosen, weights[:, :, None])[:, :, 0])

        mask = MHEXPass(model, *given, see=see).mask
    if model.residuals[0].on_tokens:
        maps = _arranged(model, maps, given[0], mask)
    return _combined(maps, settings, given[0].shape[2:] if has_maps(model, given[0]) else None)


def has_maps(model: MHEX, inputs: Tensor) -> bool:
    """Do the maps of a model have the places of its inputs, and are not scores of words?"""
    return inputs.dim() == 4 or not model.residuals[0].on_tokens


def _arranged(model: MHEX, scores: list[Tensor], images: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Scores of tokens (batch, tokens): those of patches as maps, those of padding 0."""
    if images.dim() == 4:
        one = images[:1]  # which shows where the tokens of all lie
        grid = TokenPass(model.backbone, (one,), output=model.output).grid()
        if grid is None:
            raise ValueError(f"The tokens of this {type(model.backbone).__name__} lie on no image grid.")
        return [grid.arranged(score) for score in scores]
    return scores if mask is None else [one * mask.to(one) for one in scores]


def _combined(maps: list[Tensor], settings: MHEXSettings, size: torch.Size | None) -> Tensor:
    last = len(maps) - 1
    if settings.per_layer:
        result = torch.stack([_upsampled(one, size) for one in maps], 1)
    else:
        sums: dict[torch.Size, Tensor] = {}
        for i, one in enumerate(maps):
            sums[one.shape] = sums.get(one.shape, 0) + settings.alpha ** (last - i) * one
        result = torch.stack([_upsampled(one, size) for one in sums.values()]).sum(0)
    if settings.normalize:
        axes = tuple(range(2 if settings.per_layer else 1, result.dim()))
        result = result - result.amin(axes, keepdim=True)
        highest = result.amax(axes, keepdim=True)
        result = result / torch.where(highest > 0, highest, 1)
    return result


def _upsampled(one: Tensor, size: torch.Size | None) -> Tensor:
    return one if size is None else upsampled(one, size)


def upsampled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (batch, ...) of one to three axes in another size, linearly."""
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(maps[:, None], tuple(size), mode=mode)[:, 0]


def classes_of(model: MHEX, target: int | Sequence[int] | Tensor, inputs: Tensor) -> Tensor:
    """The classes (batch,) that a target asks for.

    Raises:
        TypeError: if they are no integers.
        ValueError: if they are out of range or do not fit the batch.
    """
    listed: Any = target.tolist() if isinstance(target, Tensor | np.ndarray | np.generic) else target
    each: list[Any] = list(listed) if isinstance(listed, list | tuple) else [listed]
    if not all(isinstance(one, Integral) and not isinstance(one, bool) for one in each):
        raise TypeError(f"Expected classes as `target`, an int or one for each sample; got {target!r}.")
    if any(not 0 <= one < model.num_classes for one in each):
        raise ValueError(f"Expected classes from 0 to {model.num_classes - 1}, got {sorted(set(each))}.")
    given = torch.as_tensor(int(listed) if isinstance(listed, Integral) else [int(one) for one in each])
    classes = (
        given.expand(len(inputs)) if given.dim() == 0 or (isinstance(target, Tensor) and len(given) == 1) else given
    )
    if classes.shape != (len(inputs),):
        raise ValueError(f"Expected one target for each of {len(inputs)} samples, got shape {tuple(given.shape)}.")
    return classes.to(inputs.device)
