"""MHEX CAM: maps from what each channel contributes to a class, at every residual addition, in one forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from ..checks import check_batch, number
from ..models.evaluation_mode import evaluated
from ..recording import TokenPass
from .evidence_maps import evidence_for_region, evidence_map
from .graph_inputs import GraphInputs, graph_inputs
from .mhex import MHEX
from .mhex_pass import End, MHEXPass, Seen
from .mhex_targets import Explained, explained
from .resizing import shares, upsampled

Activation = Literal["all", "gated", "head"]
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
    activation: Activation | None = None
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
        if self.activation is not None and self.activation not in get_args(Activation):
            raise ValueError(f"Expected `activation` to be one of {get_args(Activation)}, got {self.activation!r}.")


def mhex_maps(
    model: MHEX,
    inputs: tuple[Any, ...],
    target: Any,
    settings: MHEXSettings,
    named: Mapping[str, Any] | None = None,
) -> Tensor:
    """The maps of a class, from one forward pass in evaluation mode, which ends at the last block with a map.

        CAM_l = sum_k e_k A_k,    CAM = sum_l alpha^(L - l) upsample(CAM_l)

    with the evidence e of `MHEXBlock.evidence` and A = x' + r, in front of the block's activation. In transformers
    A = x + r, in the first three blocks; in graphs, too, in all. Of masks e is a convolution, and A = z, what the head
    reads, unless `activation` says otherwise. Source: Sun and Liò 2025 (MHEX), sections 3.4 and 3.6, and appendix E.

    Args:
        model: The wrapped model, with all its heads.
        inputs: The backbone's arguments: images (batch, channels, height, width), or token ids (batch, tokens) and what
            follows them, or nodes (nodes, features), edges, and the graph of each node.
        target: As for `captum_ext.MHEXCAM`.
        settings: alpha; beta; gamma_pos and gamma_neg, None for 1/C + 0.1; activation, "gated" for A = x', in
            transformers sigmoid(s) (x + r); normalize, each map from 0 to 1; per_layer, blocks not summed.
        named: The backbone's arguments by name.

    Returns:
        (batch, height, width) of the images, of signals (batch, length) and of volumes (batch, depth, height, width);
        of words (batch, tokens), padding 0; of graphs (nodes,); with `per_layer` (batch, blocks, ...), without alpha.
        Signed, in the unit of a logit, in at least float32.

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
    settings, named = _of_task(model, settings), named or {}
    found: dict[int, Tensor] = {}
    end = _end(model, settings)
    with evaluated(model, inputs) as given, torch.no_grad():
        graphs = graph_inputs(model.backbone, model.task == "graph", given, named) if _on_graphs(model) else None
        if target is None and model.task != "segmentation":
            target = MHEXPass(model, *given, **named).logits().argmax(1)
        count = len(given[0]) if graphs is None or model.task == "node" else graphs.count
        what = explained(model, target, given[0], count)

        def see(seen: Seen) -> None:
            if seen.index < end.blocks:
                found[seen.index] = _map(model, seen, what, settings, graphs)

        mask = MHEXPass(model, *given, see=see, end=end, **named).mask
    maps = [found[i] for i in sorted(found)]
    if graphs is not None:
        return _combined(maps, settings, None, graphs.batch)
    if model.task == "classification" and model.residuals[0].on_tokens:
        maps = _arranged(model, maps, given[0], mask)
    return _combined(maps, settings, given[0].shape[2:] if has_maps(model, given[0]) else None)


def _on_graphs(model: MHEX) -> bool:
    return model.task in ("graph", "node")


def _of_task(model: MHEX, settings: MHEXSettings) -> MHEXSettings:
    """The settings with their defaults for a task; of masks the map is of what the head reads.

    Raises:
        ValueError: if what the head reads has no places.
    """
    masks = model.task == "segmentation"
    activation = settings.activation or ("head" if masks else "all")
    if activation == "head" and model.task in ("classification", "graph"):
        raise ValueError(
            f"Expected `activation` 'all' or 'gated' for task={model.task!r}, whose heads read averages without "
            "places; got 'head'."
        )
    gamma = min(0.99, 1 / model.num_classes + 0.1)  # the sharpness of a single class is a little below 1
    positive, negative = (gamma if one is None else one for one in (settings.gamma_pos, settings.gamma_neg))
    return replace(settings, activation=activation, gamma_pos=positive, gamma_neg=negative)


def _end(model: MHEX, settings: MHEXSettings) -> End:
    """When all blocks that have a map were seen: of tokens of classes three, as those of further ones are smooth."""
    smooth = model.task == "classification" and model.residuals[0].on_tokens
    count = len(model.residuals)
    return End(min(count, _TOKEN_LAYERS) if smooth else count, settings.activation == "head")


def _map(model: MHEX, seen: Seen, what: Explained, settings: MHEXSettings, graphs: GraphInputs | None) -> Tensor:
    """The map of one block: (batch, ...), of tokens (batch, tokens), of graphs (nodes,)."""
    residual, block = model.residuals[seen.index], model.mhex_blocks[seen.index]
    chosen = {"all": seen.total, "gated": seen.gated, "head": seen.z}[settings.activation or "all"]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    gammas = cast(tuple[float, float], (settings.gamma_pos, settings.gamma_neg))
    weights = block.evidence(what.classes, settings.beta, *gammas).to(chosen.dtype)
    with torch.autocast(chosen.device.type, enabled=False):
        if graphs is not None:
            each = weights if model.task == "node" or graphs.batch is None else weights[graphs.batch]
            return (chosen * each).sum(1)
        if model.task == "segmentation":
            weights = weights[:, : chosen.shape[1]]  # of x alone, if r is concatenated and not shown
            return _mask_map(weights, chosen, what)
        if residual.on_tokens:
            return torch.bmm(chosen, weights[:, :, None])[:, :, 0]
        return evidence_map(weights, chosen.movedim(-1, 1) if residual.channels_last else chosen)


def _mask_map(weights: Tensor, activation: Tensor, what: Explained) -> Tensor:
    """The map of a class everywhere, or what each place contributes to a region, as each sample's target asks."""
    if what.regions is None or what.everywhere is None:
        return evidence_map(weights, activation)
    found = evidence_for_region(weights, activation, shares(what.regions.to(activation), activation.shape[2:]))
    if not bool(what.everywhere.any()):
        return found
    return evidence_map(weights, activation).where(what.everywhere.view(-1, *[1] * (found.dim() - 1)), found)


def has_maps(model: MHEX, inputs: Tensor) -> bool:
    """Do the maps of a model have the places of its inputs, and are not scores of words?"""
    if model.task != "classification":
        return model.task == "segmentation"
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


def _combined(
    maps: list[Tensor], settings: MHEXSettings, size: torch.Size | None, batch: Tensor | None = None
) -> Tensor:
    last = len(maps) - 1
    if settings.per_layer:
        result = torch.stack([_upsampled(one, size) for one in maps], 1)
    else:
        sums: dict[torch.Size, Tensor] = {}
        for i, one in enumerate(maps):
            sums[one.shape] = sums.get(one.shape, 0) + settings.alpha ** (last - i) * one
        result = torch.stack([_upsampled(one, size) for one in sums.values()]).sum(0)
    if not settings.normalize:
        return result
    if size is None and maps[0].dim() == 1:
        return _scaled_graphs(result, batch)
    axes = tuple(range(2 if settings.per_layer else 1, result.dim()))
    return _scaled(result, result.amin(axes, keepdim=True), result.amax(axes, keepdim=True))


def _scaled(scores: Tensor, low: Tensor, high: Tensor) -> Tensor:
    extent = high - low
    return (scores - low) / torch.where(extent > 0, extent, 1)


def _scaled_graphs(scores: Tensor, batch: Tensor | None) -> Tensor:
    """Scores (nodes, ...) from 0 to 1 in each graph."""
    graph = torch.zeros(len(scores), dtype=torch.long, device=scores.device) if batch is None else batch
    low, high = (
        torch.stack([limit(scores[graph == one], 0) for one in graph.unique()]) for limit in (torch.amin, torch.amax)
    )
    return _scaled(scores, low[graph], high[graph])


def _upsampled(one: Tensor, size: torch.Size | None) -> Tensor:
    return one if size is None else upsampled(one, size)
