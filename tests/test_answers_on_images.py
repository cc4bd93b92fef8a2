"""Answers about images: the numbers of plain autograd at the last attention, on each image's own grid."""

import pytest
import torch
from tiny_vlms import FAMILIES, IMAGE, picture

from adapters.prompts import image_tokens
from captum_ext import CDAM, RelevancePropagation

QUICK = ("LLaVA", "Qwen2-VL")
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)


def prompts_of(tiny):
    first, second = (picture(*size, seed=number) for number, size in enumerate(tiny.sizes))
    return [[1, 9, first, 10, second, 11], [1, second, 12]]


def by_hooks(model, inputs, answer):
    """Token times gradient of the logits of two tokens, each prompt alone, with the answer's first token behind it."""
    leaves = []

    def exchange(_, __, output):
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0]

    size = inputs["input_ids"].shape[1]
    more = {"input_ids": answer[0], "attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
    longer = {
        name: torch.cat([x, torch.full_like(x[:, :1], more[name])], 1) if name in more else x
        for name, x in inputs.items()
        if not name.startswith("_")
    }
    with model.get_decoder().layers[-1].input_layernorm.register_forward_hook(exchange):
        logits = model(**longer).logits[0]
    rows = [logits[size - 1, answer[0]], logits[size, answer[1]]]
    found = [torch.autograd.grad(row, leaves[0], retain_graph=True)[0] for row in rows]
    return torch.stack([(gradient * leaves[0]).sum(-1)[0, :size].detach() for gradient in found])


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_and_maps_are_those_of_each_prompt_alone(name, side):
    tiny = FAMILIES[name]()
    model, prompts = tiny.model(), prompts_of(tiny)
    inputs = tiny.inputs(prompts, side)
    maps = CDAM(model).attribute_answer(inputs, [21, 22])
    for row, prompt in enumerate(prompts):
        alone = tiny.inputs([prompt])
        expected = by_hooks(model, alone, [21, 22])
        real = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(maps.per_token[row][:, real], expected, rtol=1e-6, atol=1e-9)
        for image, tokens in enumerate(image_tokens(model, alone)[0]):
            torch.testing.assert_close(maps.images[image][row], tokens.map_of(expected.sum(0)), rtol=1e-6, atol=1e-9)
            heat = maps.images_per_token[image][row]
            torch.testing.assert_close(heat, tokens.map_of(expected), rtol=1e-6, atol=1e-9)
    assert maps.images[1][1] is None


@families
def test_generated_answers_about_images_come_from_the_passes_of_generation(name):
    tiny = FAMILIES[name]()
    model, inputs = tiny.model(), tiny.inputs(prompts_of(tiny))
    given = {key: x for key, x in inputs.items() if not key.startswith("_")}
    maps = CDAM(model).explain_generation(given, 3, generation={"eos_token_id": None, "suppress_tokens": [IMAGE, 8]})
    same = CDAM(model).attribute_answer(given, maps.answer_ids)
    assert maps.way == "the passes of generation"
    torch.testing.assert_close(maps.per_token, same.per_token, rtol=1e-6, atol=1e-9)


def test_images_of_one_size_come_as_one_tensor_and_other_methods_have_them_too():
    tiny = FAMILIES["LLaVA"]()
    model, inputs = tiny.model(), tiny.inputs([[1, picture(32, 32), 9], [picture(32, 32, 1), 10, 11]])
    assert CDAM(model).attribute_answer(inputs, 5).images[0].shape == (2, 4, 4)
    assert RelevancePropagation(model).attribute_answer(inputs, [5, 6]).images_per_token[0].shape == (2, 2, 4, 4)
    assert CDAM(model).attribute_answer(inputs, 5, images=False).images == []
