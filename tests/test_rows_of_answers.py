"""Targets that read other rows of logits: one pass backwards, and the values of automatic differentiation."""

import pytest
import torch
from tiny_decoders import DECODERS, decoder
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from adapters.recording import LastAttention, TokenPass
from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM, without_closed_form
from xai_compare._cost import in_forwards

ROWS, LENGTH = 14, 60


def rows_of(model):
    return lambda ids: model(ids, use_cache=False).logits[:, -ROWS:]


def prompts():
    torch.manual_seed(1)
    return torch.randint(3, 60, (2, LENGTH))


def log_probability(row, token):
    return lambda logits: logits[row].log_softmax(-1)[token]


def two_rows(logits):
    return logits[3, 7] * logits[9, 8]


APART = [(row, 5 + row) for row in range(ROWS)]
TARGETS = {
    "logits": APART,
    "log_probabilities": [log_probability(row, 5 + row) for row in range(ROWS)],
    "of other rows in each sample": [[(row, 5), (ROWS - 1 - row, 6)] for row in range(ROWS)],
    "the same row twice": [*APART, (3, 9)],
    "one that reads two rows": [two_rows, *APART[4:9]],
    "two that read three rows": [two_rows, (3, 1)],
}


def explained(method, model, targets):
    if method is SmoothCDAM:
        return SmoothCDAM(model).attribute_targets(prompts(), targets, nt_samples=3)
    options = {"n_steps": 4} if method is IntegratedCDAM else {}
    return method(model).attribute_targets(prompts(), targets, **options)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", [CDAM, IntegratedCDAM, SmoothCDAM])
@pytest.mark.parametrize("name", [*DECODERS, "phi"])
def test_targets_of_many_rows_have_the_values_of_autograd(name, method, targets):
    model = rows_of(decoder(name))
    assert CDAM(model).path(prompts(), (0, 1)).way == "closed form"
    found = explained(method, model, targets)
    with without_closed_form():
        expected = explained(method, model, targets)
    assert found.shape == (2, len(targets), LENGTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_as_many_targets_as_rows_cost_hardly_more_than_one():
    model = rows_of(decoder("llama"))

    def cost(targets):
        return in_forwards(lambda: CDAM(model).attribute_targets(prompts(), targets), lambda: model(prompts()))

    cost(APART)
    assert cost(APART) < cost(APART[:1]) + 0.4


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "starcoder2"])
def test_keys_that_are_rotated_are_linear_in_the_tokens(name):
    model = decoder(name)
    last = LastAttention(TokenPass(rows_of(model), (prompts(),)))
    assert last.key.turn is not None
    assert last.key.turn_is_linear


def test_rows_that_the_layers_beside_the_attention_read_have_the_values_of_autograd():
    whole = decoder("phi")
    model = rows_of(whole)
    explainer = CDAM(model, layer=whole.model.layers[-1].input_layernorm)
    assert explainer.path(prompts(), (0, 1)).way == "closed form"
    found = explainer.attribute_targets(prompts(), APART)
    with without_closed_form():
        expected = explainer.attribute_targets(prompts(), APART)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "linear"), [(torch.float64, False), (torch.float32, True)])
def test_keys_that_are_rounded_on_the_way_are_not_linear(dtype, linear):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(vocab_size=60, **sizes, **special)
    model = ModernBertForSequenceClassification(config).to(dtype).eval()  # it rotates in float32
    last = LastAttention(TokenPass(lambda ids: model(ids).logits, (prompts(),)))
    assert last.key.turn_is_linear == linear
