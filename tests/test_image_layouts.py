"""Layouts of image tokens by numbers: against the processors' counts, sums of maps, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_vlms import FAMILIES, IDS, PINPOINTS, build, model_of, pictures, process, texts_of

from adapters.prompts import ImagePart, ImageTokens, image_tokens
from adapters.prompts.image_layouts import any_resolution, arrangement_by_overview, arrangement_of, tiles
from captum_ext import CDAM


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_tokens_of_any_resolution_are_as_many_as_the_processor_writes(name):
    processor, generator = FAMILIES[name].processor(), torch.Generator().manual_seed(0)
    more = {"llava_next": 1, "llava_onevision": 0}[name]  # a class token, which the prompt does not have
    for height, width in torch.randint(5, 200, (400, 2), generator=generator).tolist():
        expected = processor._get_number_of_features(height, width, 16, 16) - more
        found = any_resolution((height, width), PINPOINTS, 16, 4, None if name == "llava_next" else 2)
        assert found.count == expected, (height, width)


def test_the_sum_of_a_map_is_the_sum_of_the_tokens_on_grids():
    layout = tiles(2, 3, 2, 2, overview=True)
    image = ImageTokens(torch.arange(28), tuple(ImagePart(grid + 3, box) for grid, box in layout.grids))
    scores = torch.randn(2, 5, 40, dtype=torch.float64)
    found = image.map_of(scores)
    assert found.shape == (2, 5, 4, 6)
    torch.testing.assert_close(found.sum((-2, -1)), scores[..., 3:31].sum(-1))
    overview = scores[..., 27:31].view(2, 5, 2, 2).repeat_interleave(2, -2).repeat_interleave(3, -1) / 6
    own = scores[..., 3:27].view(2, 5, 2, 3, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(2, 5, 4, 6)
    torch.testing.assert_close(found, own + overview)


def test_a_grid_beyond_the_image_lies_on_it_where_it_overlaps():
    part = ImagePart(torch.arange(4).view(2, 2), (0.0, -0.25, 1.0, 0.75))  # two rows of 1/2, the first half outside
    found = ImageTokens(torch.arange(4), (part,)).map_of(torch.tensor([3.0, 5.0, 4.0, 8.0], dtype=torch.float64))
    expected = [[3 + 4 * 0.5, 5 + 8 * 0.5], [4 * 0.5, 8 * 0.5]]  # the second row's lower half lies in 1/2 to 3/4
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_arrangements_of_tiles():
    assert arrangement_of(6, 48 / 32) == (2, 3)
    assert arrangement_of(6, 1 / 5) == (6, 1)
    assert arrangement_of(2, 1.25) is None  # 1/2 and 2 are as far
    picture = torch.randn(3, 16, 24)
    pieces = torch.stack([row[..., 8 * k : 8 * k + 8] for row in picture.split(8, 1) for k in range(3)])
    overview = torch.nn.functional.interpolate(picture[None], (8, 8), mode="bicubic", antialias=True)[0]
    assert arrangement_by_overview(pieces, overview) == (2, 3)
    assert arrangement_by_overview(torch.ones_like(pieces), torch.ones(3, 8, 8)) is None


def test_a_prompt_without_image_token_is_refused():
    model, inputs = build("llava")
    ids = torch.where(inputs["input_ids"] == IDS["<image>"], IDS["dog"], inputs["input_ids"])
    with pytest.raises(ValueError, match=f"no image token .* is {IDS['<image>']}.* Give the processor the prompt"):
        image_tokens(model, {**inputs, "input_ids": ids})
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert image_tokens(model, texts) == [[], []]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_image_token_is_refused_with_the_numbers(name):
    model, inputs = build(name, "right")
    token = model.config.image_token_id
    last = int((inputs["input_ids"][1] == token).nonzero()[-1])
    number = int((inputs["input_ids"][1] == token).sum())
    inputs["input_ids"][1, last] = IDS["dog"]
    with pytest.raises(ValueError, match=rf"{number - 1}\] image tokens.*images=False"):
        image_tokens(model, inputs)


@pytest.mark.parametrize("name", ["mistral3", "gemma3"])
def test_other_tokens_within_a_grid_are_refused(name):
    model, inputs = build(name, "right")
    ids = inputs["input_ids"]
    first = int((ids[1] == model.config.image_token_id).nonzero()[0])
    ids[1, [first - 1, first + 1]] = ids[1, [first + 1, first - 1]]
    with pytest.raises(ValueError, match="images=False"):
        image_tokens(model, inputs)


def test_tiles_whose_arrangement_cannot_be_told_are_refused_and_sizes_tell_it():
    model = model_of("internvl")
    plain = [torch.full((3, 32, 48), 90, dtype=torch.uint8), torch.full((3, 48, 32), 90, dtype=torch.uint8)]
    inputs = process("internvl", plain)
    with pytest.raises(ValueError, match=r"image 0 has 6 tiles and an overview.*add `image_sizes`"):
        CDAM(model).attribute_answer(inputs, answer=5)
    assert CDAM(model).attribute_answer(inputs, answer=5, images=False).images == []
    told = {**inputs, "image_sizes": torch.tensor([[32, 48], [48, 32]])}
    maps = CDAM(model).attribute_answer(told, answer=5)
    assert [one.shape for one in maps.images[0]] == [(4, 6), (6, 4)]
    made = CDAM(model).explain_generation(told, max_new_tokens=2)
    assert [one.shape for one in made.images[0]] == [(4, 6), (6, 4)]


@pytest.mark.parametrize(
    ("which", "said"), [([0, 1, 2, 3, 4, 5], r"\[6\] tiles, 2 tokens"), ([2], r"rows of \[6, 3\] tiles")]
)
def test_tiles_without_breaks_between_their_rows_are_refused(which, said):
    model, inputs = build("idefics3", "right")
    ids = inputs["input_ids"]
    breaks = torch.isin(ids[0], torch.tensor([IDS["\n"], IDS["\n\n"]])).nonzero().flatten()
    kept = torch.ones_like(ids[0], dtype=torch.bool)
    kept[breaks[[number for number in which if number < len(breaks)]]] = False
    ids[0] = torch.cat([ids[0, kept], ids.new_zeros(int((~kept).sum()))])
    with pytest.raises(ValueError, match=said):
        image_tokens(model, inputs)


@pytest.mark.parametrize("attribute", ["num_query_tokens", "qformer_config", "perceiver_config"])
def test_models_whose_image_tokens_are_queries_are_refused(attribute):
    model, inputs = build("llava")
    other = SimpleNamespace(config=SimpleNamespace(**{**vars(model.config), attribute: 16}))
    with pytest.raises(ValueError, match=f"query that reads the whole image .`{attribute}`"):
        image_tokens(other, inputs)


def test_images_may_be_left_out():
    model, inputs = build("llava")
    with_images = CDAM(model).attribute_answer(inputs, answer=[5, 6])
    without = CDAM(model).attribute_answer(inputs, answer=[5, 6], images=False)
    assert torch.equal(with_images.scores, without.scores)
    assert without.images == without.images_per_token == []
    assert math.isclose(float(with_images.special_share.sum()), float(without.special_share.sum()))


def test_a_class_token_lies_nowhere():
    model = model_of("llava")
    model.config.vision_feature_select_strategy = "full"
    inputs = process("llava", pictures([(16, 16)]), texts=texts_of("llava", 2)[1:])
    ids, token = inputs["input_ids"], IDS["<image>"]
    first = int((ids[0] == token).nonzero()[0])
    ids = torch.cat([ids[:, :first], ids.new_full((1, 1), token), ids[:, first:]], 1)
    inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ((image,),) = image_tokens(model, inputs)
    assert len(image.numbers) == 17
    assert torch.equal(image.parts[0].positions.flatten(), image.numbers[1:])
