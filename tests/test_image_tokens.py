"""Where image tokens lie: a part of a picture is changed, and exactly the tokens said to stand for it must change."""

import pytest
import torch
from tiny_vlms import FAMILIES, IMAGE, picture

from adapters.prompts import image_tokens

families = pytest.mark.parametrize("name", FAMILIES)


def entering(model, inputs):
    """What enters the language model, (batch, tokens, channels)."""
    kept = []
    layers = model.get_decoder().layers

    def keep(_, args, kwargs):
        kept.append((args[0] if args else kwargs["hidden_states"]).detach())

    with layers[0].register_forward_pre_hook(keep, with_kwargs=True), torch.no_grad():
        model(**{k: v for k, v in inputs.items() if not k.startswith("_")})
    return kept[0]


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_changed_part_of_a_picture_changes_its_tokens_and_no_others(name, side):
    tiny = FAMILIES[name]()
    model = tiny.model(local=True)
    (height, width), other = tiny.sizes
    first, second = picture(height, width), picture(*other, seed=1)
    prompts = [[1, 9, first, 10, second, 11], [1, picture(*other, seed=2), 12]]
    inputs = tiny.inputs(prompts, side)
    found = image_tokens(model, inputs)
    assert [len(one) for one in found] == [2, 1]
    before = entering(model, inputs)
    for image, shape, cells in ((0, tiny.sizes[0], tiny.cells[0]), (1, tiny.sizes[1], tiny.cells[1])):
        tokens = found[0][image]
        assert tuple(tokens.grids[0].shape) == cells
        boxes = tokens.boxes(*shape).int()
        for row, column in ((0, 0), (0, cells[1] - 1), (cells[0] - 1, 1)):
            left, top, right, bottom = boxes[row, column].tolist()
            changed = [one.copy() for one in (first, second)]
            changed[image][top:bottom, left:right] = 255 - changed[image][top:bottom, left:right]
            after = entering(model, tiny.inputs([[1, 9, changed[0], 10, changed[1], 11], prompts[1]], side))
            different = ((after - before).abs().amax(-1) > 1e-9).nonzero().tolist()
            ends = [grid[row * len(grid) // cells[0], column * len(grid[0]) // cells[1]] for grid in tokens.grids]
            fine = [token for token in different if token[1] in tokens.grids[0].flatten().tolist()]
            assert fine == [[0, int(ends[0])]]
            rough = [token[1] for token in different if token not in fine]
            assert {int(end) for end in ends[1:]} <= set(rough)  # an overview is made smaller, which mixes neighbours
            assert set(rough) <= {int(n) for grid in tokens.grids[1:] for n in grid.flatten()}


@families
def test_the_map_of_an_image_has_the_sum_of_its_tokens(name):
    tiny = FAMILIES[name]()
    inputs = tiny.inputs([[1, 9, picture(*tiny.sizes[0]), 10]])
    ((tokens,),) = image_tokens(tiny.model(), inputs)
    scores = torch.randn(3, inputs["input_ids"].shape[1], dtype=torch.float64)
    heat = tokens.map_of(scores)
    assert heat.shape == (3, *tiny.cells[0])
    on_grids = torch.cat([grid.flatten() for grid in tokens.grids])
    torch.testing.assert_close(heat.sum((1, 2)), scores[:, on_grids].sum(1))
    assert set(on_grids.tolist()) <= set(tokens.numbers.tolist())
    assert (inputs["input_ids"][0, tokens.numbers] == IMAGE).all()


def test_an_overview_is_spread_over_the_area_of_each_of_its_tokens():
    tiny = FAMILIES["Idefics3"]()
    inputs = tiny.inputs([[picture(64, 96)]])  # 2 x 3 tiles of 4 x 4 places, and 4 x 4 for the whole
    ((tokens,),) = image_tokens(tiny.model(), inputs)
    scores = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.float64)
    scores[tokens.grids[1][1, 0]] = 6.0
    expected = torch.zeros(8, 12, dtype=torch.float64)
    expected[2:4, 0:3] = 1.0
    torch.testing.assert_close(tokens.map_of(scores), expected)


def test_prompts_that_do_not_fit_their_images_are_refused_with_what_was_seen():
    tiny = FAMILIES["Qwen2-VL"]()
    model, inputs = tiny.model(), tiny.inputs([[1, picture(16, 24), 9]])
    assert image_tokens(model, {"input_ids": inputs["input_ids"]}) == [[]]
    without = inputs | {"input_ids": torch.where(inputs["input_ids"] == IMAGE, 9, inputs["input_ids"])}
    with pytest.raises(ValueError, match=r"no image token \(id 7\).*images=False"):
        image_tokens(model, without)
    short = inputs | {"input_ids": inputs["input_ids"].clone()}
    short["input_ids"][0, 3] = 9
    with pytest.raises(
        ValueError, match=r"Prompt 0 has 5 image tokens, but the images in order have \[6\].*images=False"
    ):
        image_tokens(model, short)
    model.config.num_query_tokens = 32
    with pytest.raises(ValueError, match=r"queries of their own \(`num_query_tokens` in its config\)"):
        image_tokens(model, inputs)
