"""MHEX CAM: class activation maps from the equivalent matrices of an MHEX model."""

from collections.abc import Mapping
from typing import Any

import torch
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from adapters import MHEX, MHEXSettings, mhex_maps
from adapters.wrappers.mhex_maps import Activation, has_maps

from ._checks import NOT_FINITE_MAP, Failures, OnError, checked_inputs, further_arguments
from ._token_attribution import Tensors


class MHEXCAM(Attribution):  # type: ignore[misc] # captum is untyped
    """What each place contributes to a class at the residual additions of an MHEX model, from one forward pass.

        CAM_l = sum_k e_k A_k,    CAM = sum_l alpha^(L - l) upsample(CAM_l)

    with A = x' + r, and e the positive minus `beta` times the negative part of the class's row of the equivalent
    matrix, where a channel's share of that part over all classes (its sharpness) reaches `gamma`. Source: Sun and Liò
    2025 (MHEX), sections 3.4 and 3.6. Differs from the paper: Vision Transformers have maps too, of their tokens. Of a
    model that segments, e is a convolution, and A by default what the head reads, so that the map with `beta=1` and no
    sharpness is the block's logits (appendix E). In a region R the map is `sum_k A_k (e_k transposed * R)`.

    Args:
        forward_func: An adapters.MHEX with its heads. It runs in evaluation mode and is restored afterwards.

    Raises:
        TypeError: if it is not one.

    Example:
        >>> import torch, torchvision
        >>> from adapters import MHEX
        >>> from captum_ext import MHEXCAM
        >>> model = MHEX(torchvision.models.resnet18(), num_classes=8, placement="downsample")
        >>> MHEXCAM(model).attribute(torch.randn(2, 3, 64, 64), target=[3, 7], beta=0.0).shape
        torch.Size([2, 1, 64, 64])
    """

    def __init__(self, forward_func: MHEX | DataParallel[Any] | DistributedDataParallel) -> None:
        if isinstance(forward_func, DataParallel | DistributedDataParallel):
            forward_func = forward_func.module
        if not isinstance(forward_func, MHEX):
            raise TypeError(f"Expected an adapters.MHEX, whose heads make the maps; got {type(forward_func)}.")
        super().__init__(forward_func)

    @log_usage()  # type: ignore[untyped-decorator] # captum is untyped
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        alpha: float = 0.9,
        beta: float = 1.0,
        gamma_pos: float | None = None,
        gamma_neg: float | None = None,
        activation: Activation | None = None,
        normalize: bool = False,
        per_layer: bool = False,
        on_error: OnError = "raise",
    ) -> Tensors:
        """Explain one class of each sample, of masks also inside a region.

        Args:
            inputs: Images (batch, channels, height, width), or token ids (batch, tokens); signals (batch, channels,
                length) and volumes (batch, channels, depth, height, width) for such networks; a tuple for models of
                several inputs. Of graphs the features of nodes (nodes, features).
            target: A class for all samples, or one for each; of graphs one for each graph, or, where nodes are
                classified, for each node. None: the predicted ones, which takes a second pass. Of masks also a tuple
                for all samples, `(class, region)` with booleans (height, width) or (batch, height, width), or
                `(class, row, column)`, or a list with one for each; None is not possible.
            additional_forward_args: Further arguments of the backbone, such as an attention mask; of graphs
                `(edge_index, batch)`, or a dictionary of these and what else the network takes.
            alpha: The weight of a block over that of the next one, above 0.
            beta: How much negative evidence counts, at least 0.
            gamma_pos: The sharpness, 0 to 1, that positive evidence of a channel must reach. None: 1/C + 0.1.
            gamma_neg: The same for negative evidence.
            activation: "all", A = x' + r, or "gated", A = x'. In transformers x + r, or sigmoid(s) (x + r); in graphs
                x + r, or x'. "head", A = z, what the head reads, for masks and nodes. None: "head" for masks, else
                "all".
            normalize: Scale each map from 0 to 1.
            per_layer: Return the map of each block, without alpha.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            For images (batch, 1, height, width), of the images' size, and so for signals and volumes; for tokens
            (batch, tokens), from the first three blocks, padding 0. With `per_layer` (batch, blocks, height, width) or
            (batch, blocks, tokens). For graphs (nodes,), or (nodes, blocks). Signed, in the unit of a logit. A tuple
            holding it if `inputs` is a tuple.

        Raises:
            TypeError: if targets are no classes.
            ValueError: if a setting or a target is out of its range, a region of another size or empty, or the model's
                heads were stripped.
        """
        settings = MHEXSettings(alpha, beta, gamma_pos, gamma_neg, activation, normalize, per_layer)
        failures = Failures(on_error)
        if on_error == "nan" and self.forward_func.task in ("graph", "node"):
            raise ValueError("Expected on_error='raise' for graphs, as the features of a node reach its neighbours.")
        given: tuple[Tensor, ...] = checked_inputs(inputs, failures)
        named: Mapping[str, Any] = {}
        if isinstance(additional_forward_args, Mapping) and self.forward_func.task in ("graph", "node"):
            named, additional_forward_args = additional_forward_args, None
        further: tuple[Any, ...] = further_arguments(self.forward_func.backbone, additional_forward_args)
        maps = mhex_maps(self.forward_func, (*given, *further), target, settings, named)
        failures.add(~torch.isfinite(maps).reshape(len(maps), -1).all(1), NOT_FINITE_MAP)
        maps = failures.as_nan(maps, stacklevel=4)
        maps = maps[:, None] if has_maps(self.forward_func, given[0]) and not per_layer else maps
        return (maps,) if isinstance(inputs, tuple) else maps
