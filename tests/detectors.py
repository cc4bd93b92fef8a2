"""Tiny random detectors and models that segment, and what plain autograd says at a named module of theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as hf
from real_models import hooked
from torch import Tensor, nn
from zoo.cases import built, noise

LABELS, QUERIES = 5, 7
SIZE = (64, 96)
IMAGES = noise(2, 3, *SIZE)
TEXTS = torch.randint(3, 60, (2 * 3, 6), generator=torch.Generator().manual_seed(0))
TEXTS[:, -1] = 2  # the end of a text
PROMPT = torch.tensor([[10, 20, 21, 12, 30, 11]] * 2)
TASK = noise(2, 8).abs()

_LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": QUERIES}
_DETR = {"d_model": 32, **_LAYERS, **_HEADS}
_POINTS = {"encoder_n_points": 2, "decoder_n_points": 2, "num_feature_levels": 3}
_VIT = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
_SCALES = ((8, 12), (4, 6), (2, 3))


@dataclass(frozen=True)
class Detector:
    """A model and where its tokens are.

    Attributes:
        build: Makes the model.
        site: The module that reads the tokens.
        argument: By which argument, a name or a position.
        grid: Rows and columns of the map.
        prefix: How many tokens lie in front of the patches.
        scales: Rows and columns of the tokens' feature maps, if several.
        further: What follows the patches, in tokens.
        wrap: From the model to a function of images.
        logits: What of the output is explained.
        transposed: Are the tokens (tokens, batch, channels), with positions added to keys?
    """

    build: Callable[[], nn.Module]
    site: str
    argument: str | int
    grid: tuple[int, int]
    prefix: int = 0
    scales: tuple[tuple[int, int], ...] = ()
    further: int = 0
    wrap: Callable[[nn.Module], Callable[[Tensor], Any]] = lambda model: model
    logits: str = "logits"
    transposed: bool = False


def resnet(*stages: int) -> hf.ResNetConfig:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    return hf.ResNetConfig(**sizes, out_features=[f"stage{stage}" for stage in stages])


def swin() -> hf.SwinConfig:
    sizes = {"patch_size": 4, "embed_dim": 8, "depths": [1] * 4, "num_heads": [2] * 4, "window_size": 2}
    return hf.SwinConfig(image_size=SIZE, **sizes, out_features=[f"stage{stage}" for stage in range(1, 5)])


def _rt_detr(model: Any, config: Any, **settings: Any) -> Callable[[], nn.Module]:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    own = {"encoder_hidden_dim": 32, "encoder_in_channels": [8, 16, 16], "decoder_in_channels": [32] * 3}
    given = _DETR | {"encoder_layers": 1, "decoder_n_points": 2} | own | settings
    backbone = partial(hf.RTDetrResNetConfig, **sizes, out_indices=[2, 3, 4])
    return lambda: model(config(num_labels=LABELS, **given, backbone_config=backbone()))


def _of(model: Any, config: Any, backbone: Callable[[], Any], **settings: Any) -> Callable[[], nn.Module]:
    return lambda: model(config(num_labels=LABELS, **settings, backbone_config=backbone()))


def _small_decoder(model: Any, config: Any, backbone: Any) -> Callable[[], nn.Module]:
    heads = {"decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "decoder_n_points": 2}
    settings = heads | {"d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": QUERIES}
    return _of(model, config, backbone, **settings, group_detr=1, c2f_num_blocks=1)


def _fine() -> nn.Module:
    stem = {"embedding_size": 8, "stem_channels": [3, 4, 8], "stage_in_channels": [8, 8, 8, 16]}
    stages = {"stage_mid_channels": [8] * 4, "stage_out_channels": [8, 8, 16, 16], "stage_num_blocks": [1] * 4}
    layers = {"stage_light_block": [False] * 4, "stage_kernel_size": [3] * 4, "stage_numb_of_layers": [1] * 4}
    backbone = hf.HGNetV2Config(
        **stem, **stages, **layers, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, out_indices=[2, 3, 4]
    )
    own = {"encoder_hidden_dim": 32, "encoder_in_channels": [8, 16, 16], "decoder_in_channels": [32] * 3}
    given = _DETR | {"encoder_layers": 1, "decoder_n_points": [2, 3, 2], "num_labels": LABELS} | own
    return hf.DFineForObjectDetection(hf.DFineConfig(**given, backbone_config=backbone))


def _dab() -> nn.Module:
    """DAB-DETR, which makes positions in float32, with linear layers that take these in other types, too."""
    given = {"hidden_size" if name == "d_model" else name: value for name, value in _DETR.items()}
    model = _of(hf.DabDetrForObjectDetection, hf.DabDetrConfig, partial(resnet, 4), **given)()
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda layer, args: (args[0].to(layer.weight.dtype),))
    return model


def _owl(model: Any, config: Any) -> Callable[[], nn.Module]:
    sizes = _VIT | {"num_hidden_layers": 2}
    ids = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 16} | ids
    vision = sizes | {"image_size": 64, "patch_size": 8}
    return lambda: model(config(text_config=text, vision_config=vision, projection_dim=32))


def _grounding(model: Any, config: Any) -> Callable[[], nn.Module]:
    text = {**_VIT, "num_hidden_layers": 1, "vocab_size": 60, "max_position_embeddings": 32}
    settings = _DETR | _POINTS | {"max_text_len": 8}
    return lambda: model(config(**settings, backbone_config=resnet(2, 3, 4), text_config=hf.BertConfig(**text)))


def _mask_decoder(model: Any, config: Any, **settings: Any) -> Callable[[], nn.Module]:
    sizes = {"hidden_dim": 32, "encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 4}
    sizes |= {"num_attention_heads": 4, "dim_feedforward": 32, "num_queries": QUERIES}
    return _of(model, config, swin, **sizes, **settings)


_ENCODER = "encoder_hidden_states"
_CROSS = "model.decoder.layers.1.encoder_attn"
_CLASSES, _MASKS = "class_queries_logits", "model.transformer_module.decoder.layers"


def _dino(model: nn.Module) -> Callable[[Tensor], Any]:
    return lambda images: model(images, PROMPT[: len(images)])


def _with_texts(model: nn.Module) -> Callable[[Tensor], Any]:
    return lambda images: model(TEXTS[: 3 * len(images)], images)


DETECTORS = {
    "DETR": Detector(
        _of(hf.DetrForObjectDetection, hf.DetrConfig, partial(resnet, 4), **_DETR), _CROSS, "key_value_states", (2, 3)
    ),
    "Conditional DETR": Detector(
        _of(hf.ConditionalDetrForObjectDetection, hf.ConditionalDetrConfig, partial(resnet, 4), **_DETR),
        _CROSS,
        _ENCODER,
        (2, 3),
    ),
    "Table Transformer": Detector(
        _of(hf.TableTransformerForObjectDetection, hf.TableTransformerConfig, partial(resnet, 4), **_DETR),
        _CROSS,
        "key_value_states",
        (2, 3),
    ),
    "Deformable DETR": Detector(
        _of(hf.DeformableDetrForObjectDetection, hf.DeformableDetrConfig, partial(resnet, 2, 3, 4), **_DETR, **_POINTS),
        _CROSS,
        _ENCODER,
        (8, 12),
        scales=_SCALES,
    ),
    "Deformable DETR, two stages": Detector(
        _of(
            hf.DeformableDetrForObjectDetection,
            hf.DeformableDetrConfig,
            partial(resnet, 2, 3, 4),
            **_DETR,
            **_POINTS,
            two_stage=True,
            with_box_refine=True,
            two_stage_num_proposals=QUERIES,
        ),
        _CROSS,
        _ENCODER,
        (8, 12),
        scales=_SCALES,
    ),
    "RT-DETR": Detector(
        _rt_detr(hf.RTDetrForObjectDetection, hf.RTDetrConfig), _CROSS, _ENCODER, (8, 12), scales=_SCALES
    ),
    "RT-DETR v2": Detector(
        _rt_detr(hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config), _CROSS, _ENCODER, (8, 12), scales=_SCALES
    ),
    "RT-DETR v2, whole pixels": Detector(
        _rt_detr(hf.RTDetrV2ForObjectDetection, hf.RTDetrV2Config, decoder_method="discrete"),
        _CROSS,
        _ENCODER,
        (8, 12),
        scales=_SCALES,
    ),
    "D-FINE": Detector(_fine, _CROSS, _ENCODER, (8, 12), scales=_SCALES),
    "DAB-DETR": Detector(_dab, "model.decoder.layers.1.cross_attn", _ENCODER, (2, 3)),
    "LW-DETR": Detector(
        _small_decoder(
            hf.LwDetrForObjectDetection,
            partial(hf.LwDetrConfig, projector_scale_factors=[1.0]),
            lambda: hf.LwDetrViTConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=64,
                pretrain_image_size=64,
                patch_size=8,
                num_windows=4,
                window_block_indices=[0],
                out_indices=[1, 2],
            ),
        ),
        "model.decoder.layers.1.cross_attn",
        _ENCODER,
        (8, 8),
    ),
    "RF-DETR": Detector(
        _small_decoder(
            hf.RfDetrForObjectDetection,
            hf.RfDetrConfig,
            lambda: hf.RfDetrDinov2Config(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=64,
                patch_size=8,
                num_windows=2,
                out_indices=[1, 2],
            ),
        ),
        "model.decoder.layers.1.cross_attn",
        _ENCODER,
        (8, 8),
    ),
    "YOLOS": Detector(
        lambda: hf.YolosForObjectDetection(
            hf.YolosConfig(
                **_VIT,
                num_labels=LABELS,
                num_hidden_layers=2,
                image_size=SIZE,
                patch_size=8,
                num_detection_tokens=QUERIES,
            )
        ),
        "vit.encoder.layer.1.attention",
        0,
        (8, 12),
        prefix=1,
        further=QUERIES,
    ),
    "OWL-ViT": Detector(
        _owl(hf.OwlViTForObjectDetection, hf.OwlViTConfig),
        "owlvit.vision_model.encoder.layers.1.self_attn",
        "hidden_states",
        (8, 8),
        prefix=1,
        wrap=_with_texts,
    ),
    "OWL-ViT v2": Detector(
        _owl(hf.Owlv2ForObjectDetection, hf.Owlv2Config),
        "owlv2.vision_model.encoder.layers.1.self_attn",
        "hidden_states",
        (8, 8),
        prefix=1,
        wrap=_with_texts,
    ),
    "Grounding DINO": Detector(
        _grounding(hf.GroundingDinoForObjectDetection, hf.GroundingDinoConfig),
        _CROSS,
        _ENCODER,
        (8, 12),
        scales=_SCALES,
        wrap=_dino,
    ),
    "MM Grounding DINO": Detector(
        _grounding(hf.MMGroundingDinoForObjectDetection, hf.MMGroundingDinoConfig),
        _CROSS,
        _ENCODER,
        (8, 12),
        scales=_SCALES,
        wrap=_dino,
    ),
    "MaskFormer": Detector(
        _of(
            hf.MaskFormerForInstanceSegmentation,
            partial(hf.MaskFormerConfig, decoder_config=hf.DetrConfig(**_DETR)),
            swin,
            fpn_feature_size=32,
            mask_feature_size=32,
        ),
        f"{_MASKS}.1.encoder_attn",
        "key_value_states",
        (2, 3),
        logits=_CLASSES,
    ),
    "Mask2Former": Detector(
        _mask_decoder(
            hf.Mask2FormerForUniversalSegmentation, hf.Mask2FormerConfig, feature_size=32, mask_feature_size=32
        ),
        f"{_MASKS}.2.cross_attn",
        "value",
        (8, 12),
        logits=_CLASSES,
        transposed=True,
    ),
    "OneFormer": Detector(
        _mask_decoder(
            hf.OneFormerForUniversalSegmentation,
            partial(hf.OneFormerConfig, conv_dim=32, mask_dim=32, query_dec_layers=1, task_seq_len=8),
            text_encoder_width=32,
        ),
        f"{_MASKS}.2.cross_attn.multihead_attn",
        "value",
        (8, 12),
        logits=_CLASSES,
        transposed=True,
        wrap=lambda model: lambda images: model(images, TASK[: len(images)]),
    ),
    "EoMT": Detector(
        lambda: hf.EomtForUniversalSegmentation(
            hf.EomtConfig(
                **_VIT,
                num_labels=LABELS,
                num_hidden_layers=3,
                image_size=64,
                patch_size=8,
                num_blocks=1,
                num_queries=QUERIES,
                mlp_ratio=1,
                num_upscale_blocks=1,
                attn_implementation="eager",  # torch's fused one is wrong with this model's masks in float64
            )
        ),
        "layers.2.attention",
        0,
        (8, 8),
        prefix=QUERIES + 5,
        logits=_CLASSES,
    ),
}


@dataclass
class Asked:
    """A detector with images, and what plain autograd says of it."""

    kind: Detector
    model: nn.Module
    images: Tensor

    @property
    def forward(self) -> Callable[[Tensor], Any]:
        return self.kind.wrap(self.model)

    def output(self) -> Any:
        return self.forward(self.images)

    def logits(self) -> Tensor:
        return self.output()[self.kind.logits]

    def expected(self, score: Callable[[], Tensor], scale: float = 1) -> Tensor:
        """`sum_channels T * df/dT` at the tokens times a scale, (batch, tokens): a leaf takes their place."""
        leaf: list[Tensor] = []

        def exchange(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name, args, kwargs = self.kind.argument, list(args), dict(kwargs)
            own = args[name] if isinstance(name, int) else kwargs[name]
            leaf[:] = leaf or [(own.detach() * scale).requires_grad_()]
            if self.kind.transposed:
                kwargs["key"] = kwargs["key"] - own + leaf[0]  # positions are added to keys
            if isinstance(name, int):
                args[name] = leaf[0]
            else:
                kwargs[name] = leaf[0]
            return tuple(args), kwargs

        handle = self.model.get_submodule(self.kind.site).register_forward_pre_hook(exchange, with_kwargs=True)
        with hooked(handle):
            (gradient,) = torch.autograd.grad(score().sum(), leaf)
        found = (leaf[0] / scale * gradient).sum(-1).detach()
        return found.T if self.kind.transposed else found

    def arranged(self, tokens: Tensor) -> Tensor:
        """Scores of tokens as maps: what lies on a coarser place is spread evenly over the finer ones in it."""
        kind = self.kind
        patches = tokens[:, kind.prefix : tokens.shape[1] - kind.further]
        total = torch.zeros(len(tokens), *kind.grid, dtype=tokens.dtype)
        for part, (height, width) in zip(
            patches.split([h * w for h, w in kind.scales or (kind.grid,)], 1), kind.scales or (kind.grid,), strict=True
        ):
            rows, columns = kind.grid[0] // height, kind.grid[1] // width
            spread = part.unflatten(1, (height, width)) / (rows * columns)
            total += spread.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        return total[:, None]


def asked(name: str) -> Asked:
    kind = DETECTORS[name]
    square = kind.grid[0] == kind.grid[1]
    return Asked(kind, built(kind.build), IMAGES[..., : SIZE[0]] if square else IMAGES)
