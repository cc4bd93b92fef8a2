"""Raw attention: the map that a CA-Stream's prediction comes with."""

from typing import Any

import torch
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch.nn.parallel import DataParallel, DistributedDataParallel

from adapters import CAStream, raw_attention

from ._checks import NOT_FINITE_MAP, Failures, OnError, checked_inputs
from ._token_attribution import Tensors


class RawAttention(Attribution):  # type: ignore[misc] # captum is untyped
    """The attention of a CA-Stream over the positions of a stage, from the same pass as its prediction.

        a_l = softmax(F_l q_l / sqrt(d_l))

    It is the same for every class, unless the CA-Stream is class-specific, where it is that of the predicted one.
    Source: Torres et al. 2024 (CA-Stream), equation 4. Differs from the paper: every stage's map is available.

    Args:
        forward_func: An adapters.CAStream. It runs in evaluation mode and is restored afterwards.

    Raises:
        TypeError: if it is not one.

    Example:
        >>> import torch, torchvision
        >>> from adapters import CAStream
        >>> from captum_ext import RawAttention
        >>> model = CAStream(torchvision.models.resnet18())
        >>> RawAttention(model).attribute(torch.randn(2, 3, 64, 64), target=3).shape
        torch.Size([2, 1, 2, 2])
    """

    def __init__(self, forward_func: CAStream | DataParallel[Any] | DistributedDataParallel) -> None:
        if isinstance(forward_func, DataParallel | DistributedDataParallel):
            forward_func = forward_func.module
        if not isinstance(forward_func, CAStream):
            raise TypeError(f"Expected an adapters.CAStream, whose attention is a map; got {type(forward_func)}.")
        super().__init__(forward_func)

    @log_usage()  # type: ignore[untyped-decorator] # captum is untyped
    def attribute(
        self,
        inputs: Tensors,
        target: Any = None,
        additional_forward_args: Any = None,
        *,
        stage: int = -1,
        on_error: OnError = "raise",
    ) -> Tensors:
        """The attention of one stage.

        Args:
            inputs: (batch, channels, height, width), or a tuple holding it; signals (batch, channels, length) and
                volumes (batch, channels, depth, height, width) for such networks.
            target: Accepted as in all of Captum's classes; the attention does not depend on it.
            additional_forward_args: Accepted as in Captum; not used.
            stage: Which one, counted as in `forward_func.stages`.
            on_error: "raise", or "nan": a sample that cannot be explained costs its own map only, which is NaN, and
                one warning names it.

        Returns:
            (batch, 1, height, width) of the stage's features, at least 0, with sum 1 in each image. A tuple
            holding it if `inputs` is a tuple.

        Raises:
            TypeError: if the inputs are not images.
            ValueError: if there is no such stage, or more than one input.
        """
        failures = Failures(on_error)
        given = checked_inputs(inputs, failures)
        if len(given) > 1:
            raise ValueError(f"Expected one tensor of images, as a CAStream reads, got {len(given)}.")
        maps = raw_attention(self.forward_func, given[0], stage)
        failures.add(~torch.isfinite(maps).flatten(1).all(1), NOT_FINITE_MAP)
        maps = failures.as_nan(maps, stacklevel=4)[:, None]
        return (maps,) if isinstance(inputs, tuple) else maps
