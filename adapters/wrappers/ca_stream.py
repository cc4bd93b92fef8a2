"""CA-Stream: a learned query that attends to one stage of a network after the other, in place of average pooling."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ..checks import check_axes, integer
from ..models.evaluation_mode import evaluation_mode
from ..models.outputs import OutputChoice, output_tensor
from ..models.stand_in import run_stand_in
from ..models.unwrapping import Forward, uncompiled
from .average_pooling import AveragePooling, WatchAverages
from .cnn_anatomy import Stage, cnn_anatomy
from .cross_attention import Stream
from .hub import HubWrapper, output_setting
from .target_layers import read_by_cams

_TOO_SMALL = ("Output size is too small", "Kernel size can't be greater than actual input size")


class CAStream(HubWrapper, library_name="xai-discern", tags=["ca-stream", "image-classification"]):
    """A convolutional network that pools its last features by cross-attention instead of their average.

        a_l = softmax(F_l q_l / sqrt(d_l)),    CA_l = F_l^T a_l,    q_{l+1} = W_l CA_l

    along the stages l, and the classifier reads the last query in place of the average. Features, and what follows the
    pooling (norm, dropout, classifier), stay as they are. Source: Torres et al. 2024 (CA-Stream), equations 4 to 11.

    The backbone is frozen: its parameters do not require gradients, and it stays in evaluation mode in `train()`;
    `unwrap()` gives it back as it was. In evaluation mode, with gradients on, its activations have gradients
    nevertheless, as CAM methods need them.

    Args:
        model: A convolutional network that maps images (batch, channels, height, width) to logits (batch, classes),
            with a global average pooling (module or function) in front of its classifier. It is run once on an empty
            image.
        stages: Names of modules that return feature maps, in the order in which they run; the last one is what is
            averaged. None: the stem and the four stages of ResNets and ConvNeXts, timm's `feature_info`, or the last
            module at each resolution.
        start_stage: How many of them to leave out at the start.
        projections: Do keys and values have linear maps of their own (the paper's PROJ -> CA)?
        class_specific: Is there a query for each class? Then the labels choose it, and without labels the backbone's
            own prediction does, which costs the stem and the head a second time.
        output: Which tensor are the logits, where the model returns several: a name, an index, a tuple of them or a
            function of what it returns. None: by name, as `logits`.

    Attributes:
        backbone: The model, the same object.
        stream: All that is learned: `query`, `projections` (the W_l), `keys` and `values`.
        stages: The names of the stages in use.

    Raises:
        TypeError: if something is not of the right kind.
        ValueError: if a stage does not exist, is no feature map, appears twice or in another order than it runs, or if
            the model has no pooling that can be replaced.

    Example:
        >>> import torch, torchvision
        >>> from adapters import CAStream
        >>> model = CAStream(torchvision.models.resnet18()).eval()  # or weights="DEFAULT"
        >>> logits, maps = model.forward_with_attention(torch.randn(2, 3, 64, 64))
        >>> logits.shape, [tuple(m.shape[1:]) for m in maps]
        (torch.Size([2, 1000]), [(16, 16), (16, 16), (8, 8), (4, 4), (2, 2)])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stages: Sequence[str] | None = None,
        start_stage: int = 0,
        projections: bool = False,
        class_specific: bool = False,
        output: OutputChoice = None,
    ) -> None:
        super().__init__()
        if isinstance(stages, str) or not isinstance(stages, Sequence | None):
            raise TypeError(f"Expected a list of names as `stages`, got {stages!r}.")
        model = cast(nn.Module, uncompiled(model))
        anatomy = cnn_anatomy(model, stages, output)
        count = len(anatomy.stages)
        if not 0 <= integer("start_stage", start_stage) < count:
            raise ValueError(
                f"Expected `start_stage` from 0 to {count - 1}, as there are {count} stages; got {start_stage}."
            )
        self.class_specific = class_specific
        self.output = output
        self._axes = anatomy.image.dim()
        self._all_stages = anatomy.stages
        self._start = start_stage
        self._pooling, self._skip = anatomy.pooling, anatomy.skip
        like = next(model.parameters())
        widths = [stage.channels for stage in anatomy.stages[start_stage:]]
        self.stream = Stream(widths, projections, anatomy.classes if class_specific else None).to(like)
        self._hub_mixin_config = {
            "stages": [stage.name for stage in anatomy.stages],
            "start_stage": start_stage,
            "projections": projections,
            "class_specific": class_specific,
            "output": output_setting(output),
        }
        self._required_gradients = {name for name, p in model.named_parameters() if p.requires_grad}
        self._trained = {name for name, module in model.named_modules() if module.training}
        self.backbone = model
        with torch.no_grad(), evaluation_mode(model):
            _Pass(self, self.stream.start(1, torch.zeros(1, dtype=torch.long) if class_specific else None)).run(
                anatomy.image
            )
        model.requires_grad_(False)
        self.train(self.training)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages in use."""
        return tuple(stage.name for stage in self._all_stages[self._start :])

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The logits (batch, classes).

        Args:
            images: (batch, channels, height, width); for networks of signals and volumes (batch, channels, length) and
                (batch, channels, depth, height, width).
            labels: (batch,), with `class_specific` the classes whose queries are used; without it not used.
        """
        return self.forward_with_attention(images, labels)[0]

    def forward_with_attention(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The logits (batch, classes), and for each stage its attention (batch, height, width), which sums to 1.

        Raises:
            TypeError: if images or labels are not tensors.
            ValueError: if images have other axes than those of the network, or are so small that the feature map of a
                stage is empty, or if labels do not fit.
        """
        check_axes(images, self._axes)
        images = images.clone() if images.is_inference() and not torch.is_inference_mode_enabled() else images
        if not self.training and torch.is_grad_enabled() and not images.requires_grad and images.is_floating_point():
            images = images.detach().requires_grad_()  # the frozen backbone stays open to CAM methods
        if not self.class_specific:
            return _Pass(self, self.stream.start(len(images))).run(images)
        if labels is None and self.training and torch.is_grad_enabled():
            raise ValueError("Expected `labels` in training, as class-specific queries are chosen by them.")
        seen: dict[str, Any] = {}
        if labels is None:
            labels = _Pass(self, None, keep=seen).run(images)[0].argmax(1)
        return _Pass(self, self.stream.start(len(images), self._checked(labels, len(images))), given=seen).run(images)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the stream; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def unwrap(self) -> nn.Module:
        """The backbone, its parameters' `requires_grad` and its modules' train flags as they were before."""
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in self._required_gradients)
        for name, module in self.backbone.named_modules():
            module.training = name in self._trained
        return self.backbone

    @property
    def _layout(self) -> tuple[tuple[Stage, ...], int, str, int]:
        return self._all_stages, self._start, self._pooling, self._skip

    def _checked(self, labels: Tensor, count: int) -> Tensor:
        classes = len(self.stream.query)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels)
            raise TypeError(f"Expected `labels` as a tensor of integers, got {got}.")
        labels = labels.long()
        if labels.shape != (count,) or (count and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise ValueError(
                f"Expected {count} labels from 0 to {classes - 1}, got shape {tuple(labels.shape)}, values "
                f"{labels.flatten()[:8].tolist()}."
            )
        return labels


class _Pass:
    """One forward pass of a wrapper: a stand-in for its backbone runs, and the stream with it.

    Args:
        wrapper: The CAStream.
        query: The first one of each image (batch, d_0). None: only the backbone's own average.
        keep: Where to leave the features of all stages.
        given: Features that were kept before, used instead of computed.
    """

    def __init__(
        self,
        wrapper: CAStream,
        query: Tensor | None,
        *,
        keep: dict[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self._backbone, self._stream = wrapper.backbone, wrapper.stream
        self._stages, self._start, self._pooling, self._skip = wrapper._layout  # noqa: SLF001
        self._output = wrapper.output
        self._query, self._keep, self._given = query, keep, given or {}
        self._axes = wrapper._axes  # noqa: SLF001
        self._read_by_cams = torch.is_grad_enabled() and bool(read_by_cams(wrapper.backbone))
        self._maps: list[Tensor] = []
        self._pools_next = False
        self._reached = 0

    def run(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the attention of each stage."""
        forwards: dict[nn.Module, Forward] = {
            self._backbone.get_submodule(stage.name): partial(self._at_stage, index)
            for index, stage in enumerate(self._stages)
        }
        around: AbstractContextManager[Any] = nullcontext()
        if self._pooling:
            forwards[self._backbone.get_submodule(self._pooling)] = self._at_pooling
        else:
            around = WatchAverages(self._answer, images.dim())
        try:
            with around:
                logits = output_tensor(run_stand_in(self._backbone, forwards, images), self._output, images)
        except RuntimeError as error:
            if not any(words in str(error) for words in _TOO_SMALL):
                raise
            raise ValueError(
                f"Images of {' x '.join(map(str, images.shape[2:]))} pixels are too small: the feature map is empty at "
                f"stage {self._stages[self._reached].name!r}: {error}"
            ) from error
        if self._query is not None and len(self._maps) < len(self._stages) - self._start:
            names = [stage.name for stage in self._stages]
            raise ValueError(
                f"{type(self._backbone).__name__} ran without "
                + ("averaging its last stage" if self._pools_next else f"calling its stages {names} as its modules")
                + ". Was it changed after it was wrapped, are images of another size than its average covers, or does "
                "it call its modules by a list of its own or a forward that was put in place of its class's? Such "
                "networks cannot be wrapped."
            )
        return logits, self._maps

    def _at_stage(self, index: int, *args: Any, **kwargs: Any) -> Any:
        stage = self._stages[index]
        self._reached = index
        if stage.name in self._given:
            output = self._given[stage.name]
            output = output.clone() if stage.changed else output
        else:
            output = self._backbone.get_submodule(stage.name)(*args, **kwargs)
        if self._keep is not None:
            self._keep[stage.name] = output.clone() if stage.changed else output
        self._pools_next = index == len(self._stages) - 1
        self._reached = min(index + 1, len(self._stages) - 1)
        if not self._pools_next and index >= self._start:
            self._attend(index, output.clone() if stage.changed else output, stage.channels_last)
        return output

    def _at_pooling(self, *args: Any, **kwargs: Any) -> Any:
        with WatchAverages(self._answer, self._axes):
            return self._backbone.get_submodule(self._pooling)(*args, **kwargs)

    def _answer(self, pooling: AveragePooling) -> Tensor | None:
        if not self._pools_next or self._query is None:
            return None
        if self._skip:
            self._skip -= 1
            return None
        self._pools_next = False
        self._attend(len(self._stages) - 1, pooling.features, pooling.channels_last)
        return pooling.shaped(self._query)

    def _attend(self, index: int, features: Tensor, channels_last: bool) -> None:
        if self._query is None:
            return
        if self._read_by_cams:
            features = features * 1  # or its gradient is a view, which ShapleyCAM cannot release
        features = features.movedim(-1, 1) if channels_last else features
        tokens = features.flatten(2)
        self._query, attention = self._stream(index - self._start, tokens, self._query)
        self._maps.append(attention.unflatten(1, features.shape[2:]))
