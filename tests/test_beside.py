"""Models with several streams: a map of the last attention says that it does not show the others."""

import re
import warnings

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import nn
from toy_models import tiny_vit

from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    PartialMapWarning,
    RelevancePropagation,
    TokenAblation,
)

OTHERS = r"depends on 2 of this model's 4 attentions that do not lead to the last one"


class Members(nn.Module):
    """Two networks whose logits are added."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.second, self.share = tiny_vit(depth=2), tiny_vit(depth=2), share

    def forward(self, x):
        return self.first(x) + self.share * self.second(x)


class Views(nn.Module):
    """An image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_vit(depth=2)

    def forward(self, x):
        return self.net(x) + self.net(x.flip(-1))


def noted(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = call()
    return result, [one for one in found if issubclass(one.category, PartialMapWarning)]


@pytest.mark.parametrize("method", [CDAM, IntegratedCDAM, TokenAblation, AttentionMap])
@pytest.mark.parametrize("make", [lambda: Members(0.01), Views])
def test_a_map_says_that_it_does_not_show_the_other_members_or_views(method, make):
    x = torch.randn(1, 3, 32, 32)
    _, (note,) = noted(lambda: method(make().eval()).attribute(x, 1))
    assert re.search(OTHERS, str(note.message))
    assert note.filename == __file__


def test_what_the_message_advises_works():
    model, x = Members(0.5).eval(), torch.randn(2, 3, 32, 32)
    meant, notes = noted(lambda: CDAM(model, attention=-1).attribute(x, 1))
    assert not notes
    alone, notes = noted(lambda: CDAM(model.second).attribute(x, 1))
    assert not notes
    torch.testing.assert_close(meant, 0.5 * alone)  # of the other member nothing is in the map, as the warning says
    first, notes = noted(lambda: CDAM(model.first).attribute(x, 1))
    assert not notes
    assert (first - alone).abs().max() > 0.1 * alone.abs().max()


@pytest.mark.parametrize("method", [AttentionRollout, RelevancePropagation])
def test_weights_of_other_members_are_no_layers_of_one_network(method):
    with pytest.raises(ValueError, match="Not all attentions of this model lead to the last one, 2 do not"):
        method(Members(0.5).eval()).attribute(torch.randn(1, 3, 32, 32), 1)


def test_a_member_whose_prediction_is_read_by_the_other_one_leads_to_it():
    class Cascade(Members):
        def forward(self, x):
            return self.second(x * self.first(x).sigmoid()[:, :1, None, None])

    _, notes = noted(lambda: CDAM(Cascade(1.0).eval()).attribute(torch.randn(1, 3, 32, 32), 1))
    assert not notes


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"reg_tokens": 4}, {"block_fn": ParallelScalingBlock}])
def test_of_a_plain_transformer_nothing_is_said(options):
    _, notes = noted(lambda: CDAM(tiny_vit(**options)).attribute(torch.randn(1, 3, 32, 32), 1))
    assert not notes


def test_a_block_of_two_attentions_side_by_side_says_so():
    model = tiny_vit(block_fn=ParallelThingsBlock, depth=2)
    _, (note,) = noted(lambda: CDAM(model).attribute(torch.randn(1, 3, 32, 32), 1))
    assert "depends on 1 of this model's 4 attentions" in str(note.message)


class Beside(nn.Module):
    """A transformer and a part without attention that reads the image, too."""

    def __init__(self, join):
        super().__init__()
        self.net, self.join = tiny_vit(depth=2), join
        self.conv, self.head, self.pixels = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(3, 5)
        self.pairs, self.wide = nn.Bilinear(3, 3, 5), nn.ConvTranspose2d(3, 5, 3)
        self.rows = nn.LSTM(3, 5, batch_first=True)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

    def forward(self, x):
        return self.join(self, (x - self.mean) / 0.2)

    def cnn(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


PARTS = {
    "logits are added": (lambda m, x: m.net(x) + 0.01 * m.cnn(x), "`conv2d`"),
    "logits are weighted": (lambda m, x: m.net(x) * m.cnn(x).sigmoid(), "`conv2d`"),
    "the CNN comes last": (lambda m, x: (y := m.net(x)) + m.cnn(x) + 0 * y, "`conv2d`"),
    "a linear layer of pixels": (lambda m, x: m.net(x) + m.pixels(x.mean((2, 3))), "`linear`"),
    "a product with pixels": (lambda m, x: m.net(x) + x.mean((2, 3)) @ m.pixels.weight.T, "`matmul`"),
    "a bilinear layer": (lambda m, x: m.net(x) + m.pairs(x.mean((2, 3)), x.amax((2, 3))), "`bilinear`"),
    "a transposed convolution": (lambda m, x: m.net(x) + m.wide(x).mean((2, 3)), "`conv_transpose2d`"),
    "a recurrent layer": (lambda m, x: m.net(x) + m.rows(x.mean(3).transpose(1, 2))[0][:, -1], "`lstm`"),
    "both": (lambda m, x: m.net(x) + m.cnn(x) + m.pixels(x.mean((2, 3))), "`conv2d`, `linear`"),
}


@pytest.mark.parametrize("method", [CDAM, AttentionMap])
@pytest.mark.parametrize("name", PARTS)
def test_a_map_says_that_it_does_not_show_a_part_without_attention(method, name):
    join, said = PARTS[name]
    x = torch.randn(2, 3, 32, 32)
    _, (note,) = noted(lambda: method(Beside(join).eval()).attribute(x, 1))
    assert f"reads the inputs by {said} and does not lead to the last attention" in str(note.message)
    assert note.filename == __file__


def test_the_advice_on_a_part_without_attention_works():
    model, x = Beside(lambda m, x: m.net(x) + m.cnn(x)).eval(), torch.randn(2, 3, 32, 32)
    meant, notes = noted(lambda: CDAM(model, attention=-1).attribute(x, 1))
    assert not notes
    alone, notes = noted(lambda: CDAM(model.net).attribute((x - model.mean) / 0.2, 1))
    assert not notes
    torch.testing.assert_close(meant, alone)


WHOLE = {
    "a stem": lambda m, x: m.net(nn.functional.pad(m.conv(x)[:, :3], (1, 1, 1, 1))),
    "a gate on the image": lambda m, x: m.net(x * m.cnn(x).sigmoid()[:, :1, None, None]),
    "the image's size": lambda m, x: m.net(x) / x.shape[-1],
    "a mean of pixels": lambda m, x: m.net(x - x.mean((2, 3), keepdim=True)),
    "a mask of the image": lambda m, x: m.net(x) + ((x > 9).float().mean((2, 3)) @ m.pixels.weight.T),
    "a part that is not used": lambda m, x: (m.cnn(x), m.net(x))[1],
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_leads_to_the_tokens_or_to_nothing_is_no_such_part(name):
    _, notes = noted(lambda: CDAM(Beside(WHOLE[name]).eval()).attribute(torch.randn(2, 3, 32, 32), 1))
    assert not notes


def test_words_that_are_read_once_more_are_a_part_without_attention():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.more, self.head = nn.Embedding(9, 16), nn.Embedding(9, 3), nn.Linear(16, 3)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, ids):
            return self.head(self.layer(self.words(ids))[:, 0]) + self.more(ids).mean(1)

    _, (note,) = noted(lambda: CDAM(Bag().eval()).attribute(torch.randint(9, (2, 6)), 1))
    assert "reads the inputs by `embedding`" in str(note.message)
