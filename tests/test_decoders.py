"""Decoders with a classification head, which read their last real token: right, and in closed form."""

import pytest
import torch
import transformers
from transformers import (
    GemmaConfig,
    GemmaForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM, without_closed_form

SETTINGS = {
    "vocab_size": 60,
    "num_labels": 3,
    "pad_token_id": 0,
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}
GPT2 = {
    **{"vocab_size": 60, "num_labels": 3, "pad_token_id": 0},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
MODELS = {
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SETTINGS)),
    "qwen2": lambda: Qwen2ForSequenceClassification(Qwen2Config(**SETTINGS)),
    "qwen3": lambda: Qwen3ForSequenceClassification(Qwen3Config(**SETTINGS)),
    "gemma": lambda: GemmaForSequenceClassification(GemmaConfig(**SETTINGS)),
    "mistral": lambda: MistralForSequenceClassification(MistralConfig(**SETTINGS, sliding_window=4)),
}
WORDS = torch.randint(1, 60, (3, 10), generator=torch.Generator().manual_seed(0))


def decoder(name, *, cache):
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = MODELS[name]().double().eval()
    model.config.use_cache = cache
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def padded(side):
    words, mask = WORDS.clone(), torch.ones_like(WORDS)
    place = {"none": slice(0), "left": slice(4), "right": slice(-4, None)}[side]
    words[0, place], mask[0, place] = 0, 0
    return words, mask


def by_hooks(model, words, mask):
    """Token times gradient at the norm in front of the last attention."""
    layer = model.transformer.h[-1].ln_1 if hasattr(model, "transformer") else model.model.layers[-1].input_layernorm
    leaves = []

    def exchange(_, __, output):
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0]

    with layer.register_forward_hook(exchange):
        logits = model(words, attention_mask=mask).logits
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaves[0])
    return (gradient * leaves[0]).sum(-1).detach()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["cache", "no cache"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llama" else pytest.mark.slow) for name in MODELS]
)
def test_a_decoder_is_explained_at_its_last_real_token(name, side, cache):
    model = decoder(name, cache=cache)
    words, mask = padded(side)

    def forward(words, mask):
        return model(words, attention_mask=mask)

    assert CDAM(forward).path(words, 1, mask).way == "closed form"
    found = CDAM(forward).attribute(words, 1, mask)
    torch.testing.assert_close(found, by_hooks(model, words, mask), rtol=1e-9, atol=1e-12)
    for method, options in ((IntegratedCDAM, {"n_steps": 4}), (SmoothCDAM, {"nt_samples": 3, "stdevs": 0.1})):
        closed = attributed(method(forward), words, mask, options)
        with without_closed_form():
            by_autograd = attributed(method(forward), words, mask, options)
        # Qwen3 normalises queries and keys in float32
        torch.testing.assert_close(closed, by_autograd, rtol=1e-9, atol=1e-6 if name == "qwen3" else 1e-12)


def attributed(method, words, mask, options):
    more = {"generator": torch.Generator().manual_seed(5)} if "stdevs" in options else {}
    return method.attribute(words, 1, mask, **options, **more)
