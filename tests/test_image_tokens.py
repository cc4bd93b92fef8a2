"""Which pixels an image token reads, by gradients, against where `image_tokens` says that it lies.

The vision model's attentions write nothing, so each token reads the pixels of its own place. The processor is given
pictures whose red is each pixel's column, whose green its row and whose blue the picture's number: so what it makes of
them says which pixel of which picture each of its values comes from, wherever it puts it.
"""

import itertools
from dataclasses import dataclass

import pytest
import torch
from tiny_vlms import FAMILIES, model_of, pictures, process

from adapters.prompts import image_tokens

LOW, HIGH, STEP = 60, 240, 40
CROPPED = {"llava": [(1 / 6, 0, 5 / 6, 1), (0, 1 / 4, 1, 3 / 4), (0, 0, 1, 1)]}  # CLIP's processor cuts off edges
WHOLE = (0, 0, 1, 1)
OUTPUTS = ("out_proj", "o_proj", "proj", "projection_layer")


def coordinates(sizes):
    """Pictures of columns, rows and the picture's number."""
    made = []
    for number, (width, height) in enumerate(sizes):
        across = (torch.arange(width) + 0.5) / width
        down = (torch.arange(height) + 0.5) / height
        colours = [across.expand(height, width), down[:, None].expand(height, width)]
        colours = [LOW + (HIGH - LOW) * colour for colour in colours]
        made.append(torch.stack([*colours, torch.full((height, width), 100.0 + STEP * number)]).round().byte())
    return made


def by_channel(values):
    """(3, pixels) of pixel values, whichever way the family arranges them."""
    if values.dim() == 2:  # Qwen: (patches, channels * times * height * width)
        return values.unflatten(1, (3, -1)).transpose(0, 1).flatten(1)
    return values.movedim(-3, 0).flatten(1)


def calibrated(name, sizes):
    """(3, pixels): from which column and row, in fractions, and which picture each pixel value comes."""
    levels = [
        by_channel(process(name, [torch.full((3, h, w), level, dtype=torch.uint8) for w, h in sizes])["pixel_values"])
        for level in (100, 200)
    ]
    slope = (levels[1] - levels[0]) / 100
    usual = torch.stack([own[own > 1e-3].median() for own in slope])[:, None]
    real = slope > 0.4 * usual  # neither padding nor mostly padding
    slope = torch.where(real, slope, 1)
    values = by_channel(process(name, coordinates(sizes))["pixel_values"])
    values = (values - levels[0]) / slope + 100
    places = (values[:2] - LOW) / (HIGH - LOW)
    return torch.stack([*places, (values[2] - 100) / STEP]).masked_fill(~real.all(0), torch.nan)


def silence(model):
    """Lets the vision model's attentions write nothing."""
    tower = next(
        part
        for name, part in model.named_modules()
        if name.split(".")[-1] in ("vision_tower", "visual", "vision_model")
    )
    count = 0
    for name, part in tower.named_modules():
        parent, _, own = name.rpartition(".")
        if own in OUTPUTS and "att" in parent.split(".")[-1]:
            part.weight.data.zero_()
            count += 1
    assert count >= 2


def embeddings(model, inputs):
    """What enters the language model, (batch, tokens, channels)."""
    kept = []
    layer = model.get_decoder().layers[0]
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return kept[0]


CASES = [(name, FAMILIES[name].sizes) for name in FAMILIES]
CASES += [("llava_onevision", ((48, 30), (30, 40))), ("llava_next", ((64, 20), (20, 70), (17, 33)))]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_each_token_reads_the_pixels_of_its_place_and_no_others(name, sizes, side):
    model, inputs = model_of(name), process(name, pictures(sizes), side)
    silence(model)
    found = image_tokens(model, inputs)
    assert [len(images) for images in found] == [len(sizes) - 1, 1]
    *places, numbers = calibrated(name, sizes)
    leaf = inputs["pixel_values"].requires_grad_()
    read = embeddings(model, {**inputs, "pixel_values": leaf})
    derived = read @ torch.randn(read.shape[-1], dtype=torch.float64), leaf
    number = -1
    for sample, images in enumerate(found):
        for image in images:
            number += 1
            assert torch.equal(
                inputs["input_ids"][sample, image.numbers], torch.full_like(image.numbers, token_of(model))
            )
            for part in image.parts:
                blurred = name == "llava_onevision" and len(sizes) == 2 and part is image.parts[-1]
                check = Check(CROPPED.get(name, [WHOLE] * 3)[number], sizes[number], places, numbers - number, blurred)
                check.part(part, derived[0][sample], leaf)


def token_of(model):
    return model.config.image_token_id


@dataclass
class Check:
    """What is known of one picture: which part of it the processor keeps, its size, and where each pixel comes from."""

    crop: tuple
    size: tuple
    places: list
    others: torch.Tensor
    blurred: bool  # the family makes a grid smaller by interpolation, which mixes neighbours

    def part(self, part, read, leaf):
        height, width = part.positions.shape
        for row, column in itertools.product(range(height), range(width)):
            (gradient,) = torch.autograd.grad(read[part.positions[row, column]], leaf, retain_graph=True)
            weights = by_channel(gradient).abs().sum(0)
            reads = (weights > 0) & ~self.places[0].isnan()
            assert reads.any()
            assert self.others[reads].abs().max() < 0.2, "another picture"
            for axis, number, cells in ((0, column, width), (1, row, height)):
                start, end = part.box[axis], part.box[axis + 2]
                edges = [start + (end - start) * k / cells for k in (number, number + 1)]
                low, high = self.crop[axis], self.crop[axis + 2]
                cell = (edges[1] - edges[0]) * (high - low)
                edges = [low + (high - low) * min(max(edge, 0), 1) for edge in edges]
                self.interval(self.places[axis][reads], weights[reads], edges, 1 / self.size[axis], cell)

    def interval(self, read, weights, edges, pixel, cell):
        """The pixels read begin and end where the cell does, up to one of them and half of one of the model's."""
        if self.blurred:
            middle = float((read * weights).sum() / weights.sum())
            assert abs(middle - sum(edges) / 2) < 0.4 * cell
            assert edges[0] - cell < read.min()
            assert read.max() < edges[1] + cell
            return
        tolerance = pixel + cell / 8
        assert abs(float(read.min()) - edges[0]) < tolerance, (read.min(), edges)
        assert abs(float(read.max()) - edges[1]) < tolerance, (read.max(), edges)
