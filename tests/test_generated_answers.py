"""Answers explained from the passes that generation makes anyway: the same maps, hardly any further pass."""

from collections import Counter

import pytest
import torch
import transformers
import zoo
from tiny_decoders import DECODERS, batch, by_hooks, decoder
from torch import nn

from captum_ext import CDAM, AttentionMap, IntegratedCDAM, RelevancePropagation, TokenAblation

FROM_PASSES, FURTHER = "the passes of generation", "further passes"


def counted(model, run):
    """How often each module ran."""
    calls = Counter()
    hooks = [m.register_forward_hook(lambda m, _, __, n=n: calls.update([n])) for n, m in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def ends_early(model, inputs, steps):
    """What the first sample says at its second step as the end of a turn, so that it ends there."""
    found = model.generate(**inputs, max_new_tokens=steps, do_sample=False)
    return int(found[0, inputs["input_ids"].shape[1] + 1])


@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llama" else pytest.mark.slow) for name in DECODERS]
)
def test_what_is_generated_is_explained_as_the_same_answer_given(name, side):
    model, inputs = decoder(name), batch(side)
    end = ends_early(model, batch("left"), 4)
    maps = CDAM(model).explain_generation(inputs, 4, generation={"eos_token_id": end})
    assert maps.way == FROM_PASSES
    assert len(maps.answer_ids[0]) <= 2
    assert maps.answer_ids[0][-1] == end
    for row, answer in enumerate(maps.answer_ids):
        real = inputs["attention_mask"][row].bool()
        expected = by_hooks(model, inputs["input_ids"][row, real].tolist(), answer)
        torch.testing.assert_close(maps.per_token[row, : len(answer), real], expected, rtol=1e-8, atol=1e-10)
        assert not maps.per_token[row, len(answer) :].any()


def test_only_the_last_layer_runs_again():
    model, inputs = decoder("llama"), batch("left")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    plain = counted(model, lambda: model.generate(**inputs, **options))
    found = counted(model, lambda: CDAM(model).explain_generation(inputs, 5, generation={"eos_token_id": None}))
    more = {name: found[name] - plain[name] for name in found if found[name] != plain[name]}
    assert {name for name in more if name.startswith("model.layers.")} == {
        name for name in plain if name.startswith("model.layers.2")
    }
    assert set(more.values()) == {1}


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_what_lies_behind_the_last_attention_runs_again_for_the_rows_of_the_answer_alone(name):
    model, inputs = decoder(name), batch("left")
    mlp = next(part for part_name, part in reversed(list(model.named_modules())) if part_name.endswith(".mlp"))
    rows = []
    mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    CDAM(model).explain_generation(inputs, 5, generation={"eos_token_id": None})
    assert rows == [inputs["input_ids"].shape[1], *[1] * 4, 5]


def test_other_methods_and_scores_explain_what_is_generated():
    model, inputs = decoder("llama"), batch("left")
    for method, options, way in (
        (IntegratedCDAM, {"n_steps": 5, "score": "log_prob"}, FROM_PASSES),
        (AttentionMap, {}, FURTHER),
    ):
        maps = method(model).explain_generation(inputs, 3, generation={"eos_token_id": None}, **options)
        same = method(model).attribute_answer(inputs, maps.answer_ids, **options)
        assert maps.way == way
        torch.testing.assert_close(maps.per_token, same.per_token, rtol=1e-8, atol=1e-10)


def test_a_layer_that_is_chosen_is_explained_with_a_further_pass():
    model, inputs = decoder("llama"), batch("left")
    cdam = CDAM(model, attention=0)
    maps = cdam.explain_generation(inputs, 3, generation={"eos_token_id": None})
    assert maps.way == FURTHER
    torch.testing.assert_close(maps.scores, cdam.attribute_answer(inputs, maps.answer_ids).scores)


class Doubled(nn.Module):
    """A layer whose result depends on what earlier layers left behind."""

    def __init__(self, layer, earlier):
        super().__init__()
        self.layer, self.earlier, self.self_attn = layer, earlier, layer.self_attn
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden, *args, **kwargs):
        return self.layer(hidden + self.earlier[0].seen, *args, **kwargs)


class Leaving(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        self.seen = self.layer(hidden, *args, **kwargs)
        return self.seen


def test_a_last_layer_that_reads_more_than_what_enters_it_is_noticed():
    model, inputs = decoder("llama"), batch("left")
    layers = model.model.layers
    layers[0] = Leaving(layers[0])
    layers[2] = Doubled(layers[2], [layers[0]])
    maps = CDAM(model).explain_generation(inputs, 3, generation={"eos_token_id": None})
    assert maps.way == FURTHER
    torch.testing.assert_close(maps.scores, CDAM(model).attribute_answer(inputs, maps.answer_ids).scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertLMHeadModel", "BambaForCausalLM", "MiniMaxForCausalLM"])
def test_models_of_another_build_are_explained_with_a_further_pass(name):
    (entry,) = [entry for entry in zoo.entries() if entry.name == name]
    made = entry.make()
    inputs = {"input_ids": made.inputs[:, :-1]}
    maps = CDAM(made.model).explain_generation(inputs, 3, generation={"eos_token_id": None, "pad_token_id": 0})
    assert maps.way == FURTHER
    torch.testing.assert_close(maps.scores, CDAM(made.model).attribute_answer(inputs, maps.answer_ids).scores)


def test_the_model_is_left_as_it_was_and_sampling_as_without():
    model, inputs = decoder("llama").train(), batch("left")
    torch.manual_seed(3)
    plain = model.eval().generate(**inputs, max_new_tokens=4, do_sample=True, eos_token_id=None)
    model.train()
    model.model.layers[0].eval()
    torch.manual_seed(3)
    maps = CDAM(model).explain_generation(inputs, 4, generation={"do_sample": True, "eos_token_id": None})
    assert maps.answer_ids == plain[:, -4:].tolist()
    assert [m.training for m in (model, model.model.layers[0], model.model.layers[1])] == [True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="not today"), FailingLayer(model.model.layers[2]):
        CDAM(model).explain_generation(inputs, 4)
    assert [m.training for m in (model, model.model.layers[0], model.model.layers[1])] == [True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class FailingLayer:
    def __init__(self, layer):
        self.layer = layer

    def __enter__(self):
        def forward(*_, **__):
            raise RuntimeError("not today")

        self.layer.forward = forward

    def __exit__(self, *_):
        del self.layer.forward


def test_beams_and_models_that_do_not_generate_are_refused():
    model, inputs = decoder("llama"), batch("left")
    with pytest.raises(ValueError, match="num_beams=1"):
        CDAM(model).explain_generation(inputs, 3, generation={"num_beams": 2})
    with pytest.raises(ValueError, match="repeat the prompt in the batch"):
        CDAM(model).explain_generation(inputs, 3, generation={"num_return_sequences": 2})
    for name in ("max_length", "attention_mask", "output_logits"):
        with pytest.raises(TypeError, match=f"Expected no `{name}` for generation"):
            CDAM(model).explain_generation(inputs, 3, generation={name: 9})
    with pytest.raises(TypeError, match="a `generate` method, got LlamaModel"):
        CDAM(transformers.LlamaModel(model.config)).explain_generation(inputs, 3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", [CDAM, IntegratedCDAM, TokenAblation, RelevancePropagation])
def test_in_bfloat16_maps_are_those_of_float64_as_far_as_it_counts(method):
    model, inputs = decoder("llama"), batch("left")
    exact = method(model).attribute_answer(inputs, [11, 12]).per_token
    model.bfloat16()
    rounded = method(model).attribute_answer(inputs, [11, 12]).per_token
    assert (rounded - exact).abs().max() < 0.04 * exact.abs().max()
    way = FURTHER if method is RelevancePropagation else FROM_PASSES
    assert method(model).explain_generation(inputs, 3).way == way
