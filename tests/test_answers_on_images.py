"""Answers to prompts with images: scores against hooks and autograd, maps against the scores gathered by hand."""

import pytest
import torch
from tiny_vlms import FAMILIES, IDS, build, pictures, process, texts_of
from word_by_word import by_hand

from captum_ext import CDAM

ANSWERS = [[IDS["a"], IDS["dog"], IDS["here"]], [IDS["cat"]]]


def without_padding(name, inputs, sample):
    """One prompt of a batch as the family's processor makes it alone."""
    images = pictures(FAMILIES[name].sizes)
    alone = process(name, [images[:-1], [images[-1]]][sample], texts=[texts_of(name, len(images))[sample]])
    mask = inputs["attention_mask"][sample].bool()
    assert torch.equal(alone["input_ids"][0], inputs["input_ids"][sample, mask])
    return {key: value for key, value in alone.items() if key != "labels"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_each_prompt_alone_and_word_by_word(name, side):
    model, inputs = build(name, side)
    maps = CDAM(model).attribute_answer(inputs, answer=ANSWERS)
    for sample, answer in enumerate(ANSWERS):
        alone = without_padding(name, inputs, sample)
        expected = by_hand(model, alone, answer)
        mask = inputs["attention_mask"][sample].bool()
        found = maps.per_token[sample, : len(answer), mask]
        # angles of rotary positions are float32 in every model, and left padding moves PaliGemma's by one
        tolerance = 1e-7 if name == "paligemma" else 1e-9
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
        assert not maps.scores[sample, ~mask].any()
        assert torch.equal(maps.scores, maps.per_token.sum(1))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_generation_is_explained_from_its_own_passes(name):
    model, inputs = build(name)
    made = CDAM(model).explain_generation(inputs, max_new_tokens=3)
    assert made.way == "the passes of generation"
    given = CDAM(model).attribute_answer(inputs, answer=made.answer_ids)
    torch.testing.assert_close(made.per_token, given.per_token, rtol=1e-6, atol=1e-8)
    assert len(made.images) == len(given.images) == len(FAMILIES[name].sizes) - 1


def test_a_map_is_the_scores_of_the_images_tokens_row_by_row():
    model, inputs = build("qwen2_vl", "right")
    maps = CDAM(model).attribute_answer(inputs, answer=ANSWERS)
    first, second = maps.images
    tokens = (inputs["input_ids"] == model.config.image_token_id).nonzero()
    own = [maps.scores[sample, tokens[tokens[:, 0] == sample, 1]] for sample in (0, 1)]
    assert torch.equal(first[0].flatten(), own[0][:24])  # pictures of 48 x 32, 32 x 64 and 32 x 32, 8 pixels a token
    assert first[0].shape == (4, 6)
    assert torch.equal(second[0], own[0][24:].view(8, 4))
    assert torch.equal(first[1], own[1].view(4, 4))
    assert second[1] is None
    assert torch.equal(maps.images_per_token[0][0].sum(0), first[0])
