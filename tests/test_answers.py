"""Answers of language models: the numbers of plain autograd on each prompt alone, whatever batch and padding are."""

import functools

import pytest
import torch
import zoo
import zoo_truth
from tiny_decoders import DECODERS, PROMPTS, batch, by_hooks, decoder
from tiny_tokenizer import WORDS, word_tokenizer
from torch import nn
from transformers import (
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from zoo.cases import Case

from captum_ext import CDAM, AttentionMap, IntegratedCDAM, RelevancePropagation, SmoothCDAM

ANSWERS = [[11, 12, 13], [14], [15, 16]]
quick = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llama" else pytest.mark.slow) for name in DECODERS]
)


@quick
@pytest.mark.parametrize("score", ["logit", "log_prob"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_token_of_an_answer_is_explained_as_in_its_prompt_alone(name, side, score):
    model, inputs = decoder(name), batch(side)
    maps = CDAM(model).attribute_answer(inputs, ANSWERS, score=score)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        real = inputs["attention_mask"][row].bool()
        expected = by_hooks(model, prompt, answer, score)
        torch.testing.assert_close(maps.per_token[row, : len(answer), real], expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(maps.scores[row, real], expected.sum(0), rtol=1e-9, atol=1e-12)
        assert not maps.per_token[row, len(answer) :].any()
        assert not maps.scores[row, ~real].any()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", [IntegratedCDAM, SmoothCDAM, AttentionMap, RelevancePropagation])
def test_padding_changes_no_method(method):
    model = decoder("llama")
    options = {"stdevs": 1e-9, "nt_samples": 2} if method is SmoothCDAM else {}
    maps = method(model).attribute_answer(batch("left"), ANSWERS, **options)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        alone = method(model).attribute_answer({"input_ids": torch.tensor([prompt])}, answer, **options)
        found = maps.per_token[row, : len(answer), -len(prompt) :]
        torch.testing.assert_close(found, alone.per_token[0], rtol=1e-6, atol=1e-9)


def test_relevance_of_an_answer_is_that_of_the_layers_own_attentions():
    """Equations 5 and 6 of Chefer et al. with the matrices that the model returns, whose softmax is in float32."""
    model = decoder("llama")
    model.set_attn_implementation("eager")
    prompt, answer = PROMPTS[0], ANSWERS[0]
    maps = RelevancePropagation(model).attribute_answer({"input_ids": torch.tensor([prompt])}, answer)
    for number, token in enumerate(answer):
        read = torch.tensor([[*prompt, *answer[:number]]])
        out = model(read, output_attentions=True)
        gradients = torch.autograd.grad(out.logits[0, -1, token], out.attentions)
        relevance = torch.eye(read.shape[1], dtype=torch.float64)
        for weights, gradient in zip(out.attentions, gradients, strict=True):
            relevance = relevance + (gradient * weights)[0].clamp(min=0).mean(0) @ relevance
        expected = relevance[-1, : len(prompt)].detach()
        torch.testing.assert_close(maps.per_token[0, number], expected, rtol=1e-6, atol=0)


def test_an_image_as_the_whole_prompt_is_explained_as_the_message_says():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "hidden_size": 32}
    encoder = ViTConfig(**sizes, image_size=32, patch_size=8)
    decoder = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, add_cross_attention=True, is_decoder=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    torch.manual_seed(0)
    model, pixels = VisionEncoderDecoderModel(config).double().eval(), torch.randn(2, 3, 32, 32).double()
    with pytest.raises(TypeError, match="decoder_input_ids=ids"):
        CDAM(model).attribute_answer({"pixel_values": pixels}, 5)
    ids = torch.tensor([[1, 5]] * 2)
    found = CDAM(functools.partial(model, decoder_input_ids=ids)).attribute(pixels, (1, 6))
    leaves = []

    def exchange(_, args, kwargs):
        leaves.append(kwargs["encoder_hidden_states"].detach().clone().requires_grad_())
        return args, kwargs | {"encoder_hidden_states": leaves[0]}

    with model.decoder.transformer.h[-1].crossattention.register_forward_pre_hook(exchange, with_kwargs=True):
        logits = model(pixels, decoder_input_ids=ids).logits
    (gradient,) = torch.autograd.grad(logits[:, 1, 6].sum(), leaves[0])
    expected = (gradient * leaves[0]).sum(-1)[:, 1:].view(2, 1, 4, 4).detach()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_attention_of_an_answer_is_the_row_that_predicts_it():
    model = decoder("llama")
    model.set_attn_implementation("eager")
    prompt, answer = PROMPTS[0], ANSWERS[0]
    maps = AttentionMap(model).attribute_answer({"input_ids": torch.tensor([prompt])}, answer)
    rows = model(torch.tensor([[*prompt, *answer[:-1]]]), output_attentions=True).attentions[-1][0].mean(0)
    torch.testing.assert_close(maps.per_token[0], rows[len(prompt) - 1 :, : len(prompt)].detach())


def test_against_another_answer_is_the_difference_of_both_maps():
    model, inputs = decoder("llama"), batch("left")
    cdam = CDAM(model)
    why, why_not = cdam.attribute_answer(inputs, [11, 12]), cdam.attribute_answer(inputs, [13, 9])
    found = cdam.attribute_answer(inputs, [11, 12], against=[13, 9])
    torch.testing.assert_close(found.scores, why.scores - why_not.scores)
    torch.testing.assert_close(found.per_token, why.per_token - why_not.per_token)
    assert cdam.attribute_answer(inputs, [11, 12], against=13).per_token is None


GAPS = {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 0, 1]])}
IDS = batch("left")["input_ids"]
ODD = ("DoryForCausalLM", "DeepseekV3ForCausalLM", "AfmoeForCausalLM", "JetMoeForCausalLM", "GptOssForCausalLM")
SLOW = ("Gemma3ForCausalLM", "Qwen3NextForCausalLM", "FalconForCausalLM", "BloomForCausalLM", "Zamba2ForCausalLM")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [*ODD, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_decoders_with_gates_experts_and_latent_attention(name):
    (entry,) = [entry for entry in zoo.entries() if entry.name == name]
    made = entry.make()
    prompt = made.inputs[:, :-1]
    ids = torch.cat([prompt, torch.full((len(prompt), 1), 9)], 1)

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = made.model

        def forward(self, ids):
            return self.model(ids).logits[:, -2:]

    maps = CDAM(made.model).attribute_answer({"input_ids": prompt}, [9, 11])
    model = Rows()
    for number, target in enumerate([(0, 9), (1, 11)]):
        truth = zoo_truth.explain(Case(model, ids, None, target, model))
        expected = [one.scores[:, :-1] for one in (truth, truth.module) if one is not None and one.scores is not None]
        differences = [float((maps.per_token[:, number] - one).abs().max() / one.abs().max()) for one in expected]
        assert min(differences) < 2e-6  # some of them compute norms and gates in float32


def test_an_encoder_decoder_is_explained_by_the_words_that_its_encoder_reads():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).double().eval()
    inputs, answer = batch("right"), [11, 12]
    maps = CDAM(model).attribute_answer(inputs, answer)
    leaves = []

    def exchange(_, args, kwargs):
        leaves.append(kwargs["key_value_states"].detach().clone().requires_grad_())
        return args, kwargs | {"key_value_states": leaves[0]}

    attention = model.decoder.block[-1].layer[1].EncDecAttention
    with attention.register_forward_pre_hook(exchange, with_kwargs=True):
        logits = model(**inputs, decoder_input_ids=torch.tensor([[0, 11]] * 3)).logits
    (gradient,) = torch.autograd.grad((logits[:, 0, 11] + logits[:, 1, 12]).sum(), leaves[0])
    expected = (gradient * leaves[0]).sum(-1).detach() * inputs["attention_mask"]
    torch.testing.assert_close(maps.scores, expected, rtol=1e-9, atol=1e-12)


def test_shares_of_the_first_and_of_special_tokens_and_leaving_them_out():
    model, inputs = decoder("llama"), batch("left", [[1, 9, 31, 2], [1, 5, 7, 2]])
    maps = CDAM(model).attribute_answer(inputs, 11)
    sizes = maps.scores.abs() / maps.scores.abs().sum(-1, keepdim=True)
    torch.testing.assert_close(maps.first_share, sizes[:, 0])
    torch.testing.assert_close(maps.special_share, sizes[:, 0] + sizes[:, 3])
    assert not maps.excluded.any()
    without = CDAM(model).attribute_answer(inputs, 11, exclude=["special"])
    torch.testing.assert_close(without.scores, maps.scores * torch.tensor([0, 1, 1, 0]))
    assert without.excluded.tolist() == [[True, False, False, True]] * 2
    torch.testing.assert_close(without.first_share, maps.first_share)


def test_strings_are_read_by_the_tokenizer_and_their_tokens_are_shown():
    model, tokenizer = decoder("llama"), word_tokenizer()
    inputs = tokenizer(["the cat sat", "a dog"], return_tensors="pt", padding=True)
    maps = CDAM(model).attribute_answer(inputs, "dog sat", against="cat", tokenizer=tokenizer)
    assert maps.answer_ids == [[WORDS.index("dog"), WORDS.index("sat")]] * 2
    assert maps.answer_tokens == [["dog", "sat"]] * 2
    assert maps.tokens[0] == ["the", "cat", "sat"]
    same = CDAM(model).attribute_answer(inputs, maps.answer_ids[0], against=WORDS.index("cat"))
    torch.testing.assert_close(maps.scores, same.scores)
    each = CDAM(model).attribute_answer(inputs, ["dog sat", "cat"], tokenizer=tokenizer)
    assert list(map(len, each.answer_ids)) == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"answer": "dog"}, TypeError, "Expected `tokenizer`"),
        ({"answer": "dog", "tokenizer": 3}, TypeError, "a tokenizer or processor of transformers"),
        ({"answer": "zebra", "tokenizer": word_tokenizer()}, ValueError, r"'zebra'.*is read as \['\[UNK\]'\]"),
        ({"answer": []}, ValueError, "at least one token in `answer`"),
        ({"answer": 60}, ValueError, r"token ids from 0 to 59 in `answer`, got \[60\]"),
        ({"answer": 5, "against": -1}, ValueError, "in `against`"),
        ({"answer": [[5], [6]]}, ValueError, "one `answer` for all prompts, or 3, one for each, got 2"),
        ({"answer": 5.0}, TypeError, "a string, a token id or a list"),
        ({"answer": [5, "dog", 6]}, TypeError, r"token ids alone, or one answer for each prompt, got \[5, 'dog', 6\]"),
        ({"answer": 5, "score": "probability"}, ValueError, "Expected `score` to be one of"),
        ({"answer": 5, "exclude": "first"}, ValueError, "a list of some of"),
        ({"answer": 5, "inputs": torch.ones(1, 3)}, TypeError, "with `input_ids`"),
        ({"answer": 5, "inputs": GAPS}, ValueError, "padding on one side"),
        ({"answer": 5, "inputs": {"input_ids": torch.ones(1, 0).long()}}, ValueError, "at least one token in each"),
        ({"answer": 5, "inputs": batch("left") | {"past_key_values": 3}}, ValueError, "leave it out"),
        ({"answer": [5, 6], "inputs": batch("left") | {"position_ids": IDS}}, ValueError, "Leave it out, if the model"),
        ({"answer": 5, "n_steps": 3}, TypeError, r"CDAM takes no `n_steps` for answers, only \['on_error'\]"),
        ({"answer": 5, "target": 3}, TypeError, "CDAM takes no `target` for answers"),
    ],
)
def test_bad_questions_say_what_was_expected(arguments, error, words):
    arguments = {"inputs": batch("left")} | arguments
    with pytest.raises(error, match=words):
        CDAM(decoder("llama")).attribute_answer(**arguments)


def test_a_model_that_answers_nothing_is_refused():
    with pytest.raises(TypeError, match="Expected a language model of transformers"):
        CDAM(lambda ids: ids).attribute_answer(batch("left"), 5)
