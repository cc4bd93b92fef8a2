"""MHEX: gates and classifiers at the residual additions of a network."""

from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from ..models.outputs import OutputChoice
from ..models.unwrapping import uncompiled
from .deep_supervision import deep_supervision_loss
from .hub import HubWrapper, output_setting
from .mhex_block import MHEXBlock
from .mhex_pass import MHEXPass
from .mhex_tasks import Task, anatomy_of, block_of, check_labels, checked_classes
from .residual import Placement, placed

Prediction = Literal["last", "original"]


class MHEX(HubWrapper, library_name="xai-discern", tags=["mhex"]):
    """A residual network or transformer with a gate and a classifier at its residual additions.

    In a convolutional network, at the addition of the identity branch x and the residual branch r:

        z = ReLU(mean x + mean r),    s = W z,    x' = sigmoid(s) x,    y = P s

    and the block continues with x' + r. In a transformer, at the addition of the feed-forward part, means are over real
    tokens, and the block continues with sigmoid(s) (x + r). For masks nothing is averaged, W and P are convolutions,
    and where a decoder concatenates, z = ReLU([x; r]) with its own part x. For graphs means are over their nodes, for
    nodes there are none. Source: Sun and Liò 2025 (MHEX), sections 3.2 and 3.6, and appendix E.

    The backbone's weights are kept and, unlike in CAStream, learn too. Its own code runs; only the additions are
    exchanged, so hooks on the backbone work, and its layers are target layers of any CAM. The last head reads what
    goes into the last addition: `target_layers` has it, while a layer behind it, as `backbone.layer4[-1]`, is one for
    the "original" prediction only.

    Args:
        model: A ResNet (ResNeXt, Wide-ResNet) or Vision Transformer of torchvision or timm, a ViT, BERT, RoBERTa or
            DistilBERT of transformers, or another network whose blocks end with the addition of two branches. It is
            run once on an empty input. Networks that segment, of torchvision, segmentation_models_pytorch, MONAI or
            transformers, and networks of graphs of torch_geometric, see `task`.
        num_classes: C. None: as many as the model has logits. At least 2 for masks.
        placement: "all" residual additions; "downsample", those with a projected identity branch; or names of blocks.
        gate: False: x' = x, the paper's ablation.
        prediction: Whose logits `forward` returns: those of the "last" block, or the model's "original" ones.
        output: Which tensor these are, where the model returns several: a name, an index, a tuple of them or a function
            of what it returns. None: by name, as `logits`.
        task: "classification" of images or texts, "segmentation", or classification of each "graph" or "node".
        kernel_size: Of masks, the size of W in each axis, odd.
        residual: Of graphs, is a layer without an addition given one, which changes nothing at first?
        example: Of graphs, arguments to run the model on, (x, edge_index, batch) or a dictionary, where it does not
            take two small graphs.

    Attributes:
        backbone: The model, the same object.
        blocks: For each residual addition `gate` (W), `head` (P) and `equivalent_matrix()`.
        names: The blocks' names in the backbone.
        nested: The names of the blocks inside each of them, as in HRNet's modules of several branches.
        target_layers: The last layer that the prediction depends on, for CAMs of pytorch-grad-cam.

    Raises:
        TypeError: if something is not of the right kind.
        ValueError: if the model has no residual additions or skips, the placement matches none, or a setting is out of
            its range or of another task.

    Example:
        >>> import torch, torchvision
        >>> from adapters import MHEX, deep_supervision_loss
        >>> model = MHEX(torchvision.models.resnet18(), num_classes=8, placement="downsample")  # or weights="DEFAULT"
        >>> images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
        >>> deep_supervision_loss(model.deep_forward(images), labels).backward()
        >>> model.names, model.strip()(images).shape
        (('layer2.0', 'layer3.0', 'layer4.0'), torch.Size([2, 8]))
    """

    saves_backbone = True
    accepts_loss_kwargs = False  # transformers.Trainer then averages accumulated losses itself

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int | None = None,
        placement: Placement = "all",
        gate: bool = True,
        prediction: Prediction = "last",
        output: OutputChoice = None,
        task: Task = "classification",
        kernel_size: int = 1,
        residual: bool = False,
        example: Any = None,
    ) -> None:
        super().__init__()
        model = cast(nn.Module, uncompiled(model))
        if prediction not in ("last", "original"):
            raise ValueError(f"Expected `prediction` to be 'last' or 'original', got {prediction!r}.")
        chunked = [name for name, m in model.named_modules() if getattr(m, "chunk_size_feed_forward", 0)]
        if chunked:
            raise ValueError(
                f"Expected feed-forward parts that see all tokens at once, as gates do, but {chunked[0]!r} works in "
                "chunks. Build the model with chunk_size_feed_forward=0."
            )
        anatomy = anatomy_of(model, task, output, residual=residual, example=example)
        classes = checked_classes(task, num_classes, anatomy.classes)
        self.residuals = placed(model, anatomy.blocks, placement)
        every = list(dict.fromkeys([*(one.name for one in anatomy.blocks), *anatomy.closed]))
        self.nested = {
            outer.name: [name for name in every if name and name.startswith(f"{outer.name}." if outer.name else "")]
            for outer in self.residuals
        }
        self.task = task
        self._num_classes = classes
        self._axes = anatomy.axes
        self.gated = bool(gate)
        self.prediction = prediction
        self.output = output
        like = next(p for p in model.parameters() if p.is_floating_point())
        axes = anatomy.axes - 2 if task == "segmentation" else 0
        self.blocks = nn.ModuleList(block_of(one, classes, axes, kernel_size) for one in self.residuals).to(like)
        self.backbone = model
        self._hub_mixin_config = {
            "num_classes": classes,
            "placement": list(self.names),
            "gate": self.gated,
            "prediction": prediction,
            "output": output_setting(output),
            "task": task,
            "kernel_size": kernel_size,
            "residual": bool(residual),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks' names in the backbone."""
        return tuple(one.label for one in self.residuals)

    @property
    def num_classes(self) -> int:
        """How many logits the heads have."""
        return self._num_classes

    @property
    def target_layers(self) -> list[nn.Module]:
        """The last layer that the prediction depends on, in a list as CAMs of pytorch-grad-cam take it.

        That is where both branches of the last block are added, in front of its gate; for the "original" prediction
        the last block itself.
        """
        if self.prediction == "original":
            return [self.backbone.get_submodule(next(one.name for one in reversed(self.residuals) if one.name))]
        return [self.mhex_blocks[-1].addition]

    @property
    def mhex_blocks(self) -> list[MHEXBlock]:
        """The blocks, in order."""
        return [cast(MHEXBlock, block) for block in self.blocks]

    def forward(
        self,
        *args: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The logits (batch, classes) of inputs as the backbone takes them, by position or name.

        Of masks (batch, classes, height, width), of the images' size where the last block predicts; of graphs and
        nodes, which come as `(x, edge_index, batch)`, (graphs, classes) and (nodes, classes). With `labels`, as
        transformers.Trainer gives them, (batch,) or masks, what the backbone returns, with these logits and with the
        loss of all heads as `loss`; a dictionary of both where the backbone returns a tensor.
        """
        named = {  # written out above as transformers.Trainer keeps what a model's signature names
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
        }
        kwargs |= {name: value for name, value in named.items() if value is not None}
        run = MHEXPass(self, *self._open(args), **kwargs)
        logits = run.logits()
        if labels is None:
            return logits
        ignored = getattr(getattr(self.backbone, "config", None), "semantic_loss_ignore_index", -100)
        if run.size:
            check_labels(run.size, labels)
        loss = deep_supervision_loss(run.deep(), labels, mode="finetune", ignore_index=ignored)
        if isinstance(run.output, Mapping):
            return type(run.output)(loss=loss, logits=logits)  # type: ignore[call-arg] # a ModelOutput
        return {"loss": loss, "logits": logits}

    def _open(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments; of a model that is frozen whole the images require gradients, so that CAM methods work."""
        frozen = not self.training and torch.is_grad_enabled() and not any(p.requires_grad for p in self.parameters())
        if not frozen or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return args
        images = args[0].clone() if args[0].is_inference() else args[0]
        return (images if images.requires_grad else images.detach().requires_grad_(), *args[1:])

    def deep_forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The logits (batch, classes) of every block, of masks (batch, classes, ...) of its own resolution.

        Raises:
            ValueError: if the heads were stripped.
        """
        return MHEXPass(self, *args, **kwargs).deep()

    def strip(self) -> Self:
        """The same prediction without the heads it does not need; weights are shared with this model.

        The gates stay, as they are part of the features, and so does the last head, if it predicts.
        """
        stripped = object.__new__(type(self))
        stripped.__dict__.update(self.__dict__, _modules=dict(self._modules), _parameters={}, _buffers={})
        blocks = []
        for index, block in enumerate(self.mhex_blocks):
            copy = object.__new__(MHEXBlock)
            predicts = self.prediction == "last" and index == len(self.blocks) - 1
            head = block.head if predicts else None
            copy.__dict__.update(block.__dict__, _modules={**dict(block.named_children()), "head": head}, _kept=None)
            blocks.append(copy)
        stripped.blocks = nn.ModuleList(blocks)
        return stripped
