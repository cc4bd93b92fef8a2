"""Tiny models of transformers, for images and for texts."""

from dataclasses import replace
from functools import partial

import torch
import transformers
from torch import nn

from .cases import AUTOGRAD, CLASSES, PATCH, WIDTH, Case, Entry, class_token_of, images, input_of, output_of, randomised


def vision_config(kind, attention="sdpa", **options):
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {"image_size": 32, "patch_size": PATCH, "num_labels": CLASSES, "attn_implementation": attention}
    return kind(**(settings | options))


def transformers_case(model, backbone, last_layer, norm, prefix=1, size=(32, 32)):
    model = randomised(model)
    base = getattr(model, backbone)
    inputs = images(*size)
    final = base.post_layernorm if hasattr(base, "post_layernorm") else base.layernorm
    site = getattr(last_layer(base), norm)

    def latents():
        if hasattr(model, "cls_classifier"):  # of two heads, no one reads what is explained
            return model(inputs)[0] if isinstance(model(inputs), tuple) else model(inputs).logits
        if hasattr(model, "classifier"):
            return input_of(model.classifier, lambda: model(inputs))
        rows = output_of(final, lambda: model(inputs))
        return rows if rows.ndim == 2 else rows[:, 0]

    grid = (size[0] // PATCH, size[1] // PATCH)
    return Case(model, inputs, site, prefix, grid, latents)


def last_of_layers(base):
    return base.layers[-1]


def last_of_encoder(base):
    return base.encoder.layer[-1]


def hf_vit(attention="sdpa", size=(32, 32), **options):
    model = transformers.ViTForImageClassification(vision_config(transformers.ViTConfig, attention, **options))
    return transformers_case(model, "vit", last_of_layers, "layernorm_before", size=size)


def hf_deit(kind=transformers.DeiTForImageClassification, **options):
    model = kind(vision_config(transformers.DeiTConfig, **options))
    return transformers_case(model, "deit", last_of_layers, "layernorm_before", prefix=2)


def hf_dinov2(size=(32, 32), **options):
    config = vision_config(transformers.Dinov2Config, mlp_ratio=2, **options)
    model = transformers.Dinov2ForImageClassification(config)
    return transformers_case(model, "dinov2", last_of_encoder, "norm1", size=size)


def hf_dinov2_registers(**options):
    config = vision_config(transformers.Dinov2WithRegistersConfig, mlp_ratio=2, num_register_tokens=3, **options)
    model = transformers.Dinov2WithRegistersForImageClassification(config)
    return transformers_case(model, "dinov2_with_registers", last_of_encoder, "norm1", prefix=4)


def clip_vision_config(**options):
    return vision_config(transformers.CLIPVisionConfig, projection_dim=7, **options)


def clip_classifier():
    config = transformers.CLIPConfig(
        vision_config=clip_vision_config().to_dict(), num_labels=CLASSES, attn_implementation="sdpa"
    )
    model = transformers.CLIPForImageClassification(config)
    return transformers_case(model, "vision_model", lambda base: base.encoder.layers[-1], "layer_norm1")


def clip_projection():
    model = transformers.CLIPVisionModelWithProjection(clip_vision_config())
    return transformers_case(model, "vision_model", lambda base: base.encoder.layers[-1], "layer_norm1")


class TupleOutput(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, return_dict=False)


class Interpolating(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, interpolate_pos_encoding=True)


def nonsquare_hf_vit():
    case = hf_vit(size=(48, 32))
    model = Interpolating(case.model)
    latents = partial(class_token_of, case.model.vit.layernorm, partial(model, case.inputs))
    return replace(case, model=model, latents=latents)


def returning_tuples(case):
    return replace(case, model=TupleOutput(case.model))


TRANSFORMERS_CASES = {
    "hf-vit": Entry(hf_vit),
    "hf-vit-eager": Entry(lambda: hf_vit("eager"), way=AUTOGRAD, no_matrices="what it computes"),
    "hf-vit-tuple": Entry(lambda: returning_tuples(hf_vit())),
    "hf-vit-no-qkv-bias": Entry(lambda: hf_vit(qkv_bias=False)),
    "hf-vit-nonsquare-interpolated": Entry(nonsquare_hf_vit),
    "hf-deit": Entry(hf_deit),
    "hf-deit-teacher": Entry(lambda: hf_deit(transformers.DeiTForImageClassificationWithTeacher)),
    "hf-dinov2": Entry(hf_dinov2, way=AUTOGRAD),
    "hf-dinov2-nonsquare": Entry(lambda: hf_dinov2(size=(32, 48)), way=AUTOGRAD),
    "hf-dinov2-swiglu": Entry(lambda: hf_dinov2(use_swiglu_ffn=True), way=AUTOGRAD),
    "hf-dinov2-registers": Entry(hf_dinov2_registers, way=AUTOGRAD),
    "hf-clip-classifier": Entry(clip_classifier, way=AUTOGRAD, average=True),
    "hf-clip-projection": Entry(clip_projection),
}

PAD = 1


def text_inputs():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 50, (3, 9), generator=generator)
    lengths = torch.tensor([9, 6, 4])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return torch.where(mask.bool(), ids, PAD), mask


def text_case(model, find_site, find_latents):
    model = randomised(model)
    ids, mask = text_inputs()
    latents = partial(find_latents, model, lambda: model(ids, mask))
    return Case(model, ids, find_site(model), 0, None, latents, enters=True, extra=(mask,))


def text_config(kind, attention="sdpa", **options):
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {"vocab_size": 50, "max_position_embeddings": 16, "num_labels": CLASSES, "pad_token_id": PAD}
    return kind(**settings, attn_implementation=attention, **options)


def hf_bert(attention="sdpa", **options):
    model = transformers.BertForSequenceClassification(text_config(transformers.BertConfig, attention, **options))
    return text_case(
        model,
        lambda model: model.bert.encoder.layer[-1].attention.self,
        lambda model, run: output_of(model.bert.pooler, run),
    )


def hf_roberta(family="Roberta"):
    kind = getattr(transformers, f"{family}ForSequenceClassification")
    model = kind(text_config(getattr(transformers, f"{family}Config")))
    return text_case(
        model,
        lambda model: model.roberta.encoder.layer[-1].attention.self,
        lambda model, run: class_token_of(model.roberta.encoder.layer[-1], run),
    )


def hf_distilbert():
    config = transformers.DistilBertConfig(
        dim=WIDTH,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        vocab_size=50,
        max_position_embeddings=16,
        num_labels=CLASSES,
        pad_token_id=PAD,
        attn_implementation="sdpa",
    )
    return text_case(
        transformers.DistilBertForSequenceClassification(config),
        lambda model: model.distilbert.transformer.layer[-1].attention,
        lambda model, run: input_of(model.classifier, run),
    )


TEXT_CASES = {
    "hf-bert": Entry(hf_bert, quick=True),
    "hf-bert-tuple": Entry(lambda: hf_bert(return_dict=False)),
    "hf-bert-chunked": Entry(lambda: hf_bert(chunk_size_feed_forward=3), way=AUTOGRAD),
    "hf-bert-eager": Entry(lambda: hf_bert("eager"), no_matrices="what it computes"),
    "hf-roberta": Entry(hf_roberta),
    "hf-distilbert": Entry(hf_distilbert),
}
