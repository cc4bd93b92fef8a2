"""Tiny random models of videos and sounds, one of each family, and their scores by hooks and autograd alone."""

from contextlib import ExitStack

import torch
import transformers
from torchvision.models.video import mvit, swin_transformer
from zoo.cases import built, noise

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "num_labels": 3}
VIDEO = {"image_size": 16, "num_frames": 4}
WAVE = {
    "conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "tdnn_dim": (8, 8),
    "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1),
}  # fmt: skip


def hf(name, **options):
    """A class of transformers, by its name."""

    def build():
        made = getattr(transformers, name)
        return made(made.config_class(**SIZES | options))

    return build


def mvit_of(second):
    """torchvision's MViT, whose queries, keys and values are pooled: of version 1 or 2."""
    shared = {"num_heads": 2, "kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3]}
    blocks = [
        mvit.MSBlockConfig(input_channels=i, output_channels=o, **shared, stride_q=[1, q, q], stride_kv=[1, kv, kv])
        for i, o, q, kv in ((16, 16, 1, 2), (16, 32, 2, 1), (32, 32, 1, 1))
    ]
    return lambda: mvit.MViT(
        (32, 32), 4, blocks, residual_pool=second, residual_with_cls_embed=not second, rel_pos_embed=second,
        proj_after_attn=second, num_classes=3, patch_embed_kernel=(3, 7, 7), patch_embed_stride=(2, 4, 4),
        patch_embed_padding=(1, 3, 3),
    )  # fmt: skip


def swin3d():
    return swin_transformer.SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 2], [2, 2, 2], num_classes=3)


def vjepa2(layers=1):
    predictor = {"pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    sizes = {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2, "mlp_ratio": 2}
    return hf("VJEPA2ForVideoClassification", **sizes, **predictor, num_pooler_layers=layers)


def videoprism():
    depth = {"num_spatial_layers": 1, "num_temporal_layers": 1, "num_auxiliary_layers": 0}
    return hf("VideoPrismForVideoClassification", **VIDEO | depth, tubelet_size=[1, 8, 8])


def whisper():
    words = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    sizes = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_layers": 1}
    return hf("WhisperForAudioClassification", num_mel_bins=8, d_model=16, max_source_positions=20, **sizes, **words)


AST = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8, "max_length": 32, "num_mel_bins": 16}
VIDEOS = {  # the model, the inputs, the grid, the modules that read the last attention's tokens, a target
    "VideoMAE": (
        hf("VideoMAEForVideoClassification", patch_size=8, tubelet_size=2, **VIDEO),
        (2, 4, 3, 16, 16), (2, 2, 2), ["videomae.encoder.layer.1.attention.attention"],
    ),
    "VideoMAE, first token": (
        hf("VideoMAEForVideoClassification", patch_size=8, tubelet_size=2, use_mean_pooling=False, **VIDEO),
        (2, 4, 3, 16, 16), (2, 2, 2), ["videomae.encoder.layer.1.attention.attention"],
    ),
    "ViViT": (
        hf("VivitForVideoClassification", tubelet_size=[2, 8, 8], **VIDEO),
        (2, 4, 3, 16, 16), (2, 2, 2), ["vivit.layers.1.attention"],
    ),
    "TimeSformer": (
        hf("TimesformerForVideoClassification", patch_size=8, **VIDEO),
        (2, 4, 3, 16, 16), (4, 2, 2), ["timesformer.encoder.layer.1.attention.attention"],
    ),
    "TimeSformer, joint": (
        hf("TimesformerForVideoClassification", patch_size=8, attention_type="joint_space_time", **VIDEO),
        (2, 4, 3, 16, 16), (4, 2, 2), ["timesformer.encoder.layer.1.attention.attention"],
    ),
    "V-JEPA 2": (
        vjepa2(), (2, 4, 3, 32, 32), (2, 4, 4),
        [f"pooler.cross_attention_layer.cross_attn.{x}_proj" for x in "kv"],
    ),
    "V-JEPA 2, pooler of two layers": (
        vjepa2(2), (2, 4, 3, 32, 32), (2, 4, 4),
        [f"pooler.cross_attention_layer.cross_attn.{x}_proj" for x in "kv"],
    ),
    "VideoPrism": (videoprism(), (2, 4, 3, 16, 16), (4, 2, 2), ["head.k_proj", "head.v_proj"]),
    "MViT v1": (mvit_of(False), (2, 3, 4, 32, 32), (2, 4, 4), ["blocks.2.attn.qkv"]),
    "MViT v2": (mvit_of(True), (2, 3, 4, 32, 32), (2, 4, 4), ["blocks.2.attn.qkv"]),
    "Swin3D": (swin3d, (2, 3, 8, 64, 64), (4, 8, 8), []),
}  # fmt: skip
SOUNDS = {
    "AST": (
        hf("ASTForAudioClassification", **AST),
        (2, 32, 16), (2, 4), ["audio_spectrogram_transformer.layers.1.attention"],
    ),
    "AST, overlapping patches": (
        hf("ASTForAudioClassification", **AST | {"frequency_stride": 5, "time_stride": 6, "num_mel_bins": 24}),
        (2, 32, 24), (4, 5), ["audio_spectrogram_transformer.layers.1.attention"],
    ),
    "Whisper": (whisper(), (2, 8, 40), (20,), [f"encoder.layers.1.self_attn.{x}_proj" for x in "qkv"]),
    "Wav2Vec2-BERT": (
        hf("Wav2Vec2BertForSequenceClassification", feature_projection_input_dim=12, conv_depthwise_kernel_size=3,
           classifier_proj_size=8),
        (2, 20, 12), (20,), ["wav2vec2_bert.encoder.layers.1.self_attn"],
    ),
    "Wav2Vec2-Conformer": (
        hf("Wav2Vec2ConformerForSequenceClassification", **WAVE, conv_depthwise_kernel_size=3),
        (2, 400), (39,), ["wav2vec2_conformer.encoder.layers.1.self_attn"],
    ),
    "SEW": (
        hf("SEWForSequenceClassification", **WAVE, squeeze_factor=2),
        (2, 400), (19,), ["sew.encoder.layers.1.attention"],
    ),
    **{
        name: (hf(f"{name}ForSequenceClassification", **WAVE), (2, 400), (39,), [f"{part}.encoder.layers.1.attention"])
        for name, part in (
            ("Wav2Vec2", "wav2vec2"), ("Hubert", "hubert"), ("WavLM", "wavlm"), ("UniSpeech", "unispeech"),
            ("UniSpeechSat", "unispeech_sat"), ("Data2VecAudio", "data2vec_audio"),
        )
    },
    "Wav2Vec2, sum of layers": (
        hf("Wav2Vec2ForSequenceClassification", **WAVE, use_weighted_layer_sum=True),
        (2, 400), (39,), ["wav2vec2.encoder.layers.1.attention"],
    ),
}  # fmt: skip
NAMED = ("VideoMAE", "ViViT", "TimeSformer", "V-JEPA 2", "AST", "Wav2Vec2")


def made(name):
    """Model, inputs and the modules that read the tokens."""
    build, shape, _, readers = (VIDEOS | SOUNDS)[name]
    model = built(build)
    return model, noise(*shape), [model.get_submodule(reader) for reader in readers]


def target_of(name):
    return (0, 1) if name == "VideoPrism" else 1  # which returns (batch, 1, classes)


def tokens_read(model, inputs, readers, *further):
    """What the readers read, which must be one tensor."""
    seen = []

    def keep(_module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    with torch.no_grad():
        with_hooks(readers, keep, lambda: model(inputs, *further))
    assert all(one is seen[0] or torch.equal(one, seen[0]) for one in seen)
    return seen[0]


def gradients(model, inputs, readers, tokens, target, *further):
    """Of one output of each sample, for tokens that the readers get in place of their own."""
    leaf = tokens.clone().requires_grad_()

    def exchange(_module, args, kwargs):
        return ((leaf, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": leaf})

    def score():
        out = model(inputs, *further)
        out = getattr(out, "logits", out)
        return out[(slice(None), *(target if isinstance(target, tuple) else (target,)))].sum()

    return torch.autograd.grad(with_hooks(readers, exchange, score), leaf)[0]


def with_hooks(modules, hook, run):
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        return run()
