"""What messages advise is done on the case that raises them, and gives the right result: wrappers, CAMs, scores."""

import contextlib
import io

import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
import transformers
from advising import IMAGES, VIT, Case, Returning, check, small_resnet
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from adapters import (
    MHEX,
    CAStream,
    MHEXEvidenceCAM,
    RawAttentionCAM,
    collaboration,
)
from captum_ext import MHEXCAM, RawAttention

LARGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
BOTH = [MHEX, CAStream]


def wrapped(kind, model=None, **options):
    model = small_resnet() if model is None else model
    torch.manual_seed(1)
    return kind(model, **options).eval()


class Fixed(nn.Module):
    """Takes images of one size only."""

    def __init__(self):
        super().__init__()
        self.net = small_resnet()

    def forward(self, x):
        if x.shape[-1] != 96:
            raise ValueError("96 pixels only")
        return self.net(x)


def sized(model):
    model.image_size = (96, 96)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
def test_a_size_is_told_to_a_network_that_does_not_say_its_own(kind):
    with pytest.raises(ValueError, match=r"224\): 96 pixels only;.*tell it: `model.image_size = \(height, width\)`"):
        kind(Fixed())
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(wrapped(kind, sized(Fixed()))(images), wrapped(kind)(images))


def test_a_size_that_a_part_says_is_found():
    images = torch.randn(2, 3, 32, 32)
    inside = wrapped(MHEX, Returning(VIT, lambda y: (2 * y, y)), output=1)  # its size is 32, not the usual 224
    torch.testing.assert_close(inside(images), wrapped(MHEX, VIT)(images))
    torch.testing.assert_close(MHEXCAM(inside).attribute(images, 1), MHEXCAM(wrapped(MHEX, VIT)).attribute(images, 1))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "ask",
    [lambda m, x: m(x), lambda m, x: (MHEXCAM if isinstance(m, MHEX) else RawAttention)(m).attribute(x, 1)],
    ids=["model", "maps"],
)
@pytest.mark.parametrize("kind", BOTH)
def test_images_have_a_batch_axis_and_are_tensors(kind, ask):
    model = wrapped(kind)
    with pytest.raises(
        ValueError, match=r"Expected images \(batch, .*got shape \(3, 64, 64\).*`inputs.unsqueeze\(0\)`"
    ):
        ask(model, LARGE[0])
    torch.testing.assert_close(ask(model, LARGE[0].unsqueeze(0)), ask(model, LARGE)[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"Expected images .*got shape \(1, 2, 3, 64, 64\)\.$"):
        model(LARGE[None])
    with pytest.raises(TypeError, match=r"a tensor, got <class 'numpy.ndarray'>. Use torch.as_tensor"):
        model(LARGE.numpy())
    torch.testing.assert_close(model(torch.as_tensor(LARGE.numpy())), model(LARGE))


def second(found):
    return found["a"]["b"][1]


OUTPUTS = ["f", "a.b.1", ("a", "b", 1), second, lambda found: found["f"]]


def made(y):
    return {"f": 2 * y, "g": y, "a": {"b": [y, y + 1]}}


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS, ids=["name", "path", "tuple", "function", "lambda"])
@pytest.mark.parametrize(("kind", "options"), [(CAStream, {}), (MHEX, {}), (MHEX, {"prediction": "original"})])
def test_a_wrapper_with_an_output_is_saved_and_loaded(kind, options, output, tmp_path):
    with pytest.raises(ValueError, match="Choose one, as `output='f'`"):
        kind(Returning(small_resnet(), made))
    model = wrapped(kind, Returning(small_resnet(), made), output=output, **options)
    plain = wrapped(kind, **options)(LARGE)
    factor, added = (2, 0) if "f" in str(output)[:1] or output is OUTPUTS[-1] else (1, 1)
    if not (kind is MHEX and not options):  # whose logits are those of its own head
        torch.testing.assert_close(model(LARGE), factor * plain + added)
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=rf"as {kind.__name__}.from_pretrained\(.*, model=resnet50\(\)\)"):
        kind.from_pretrained(tmp_path)
    again = {}
    if callable(output):
        name = output.__name__
        with pytest.raises(
            ValueError, match=rf"{name} as its `output`.*pass it again, as .*output=your_function"
        ) as told:
            kind.from_pretrained(tmp_path, model=Returning(small_resnet(), made))
        assert f"{kind.__name__}.from_pretrained('{tmp_path}', model=..., output=" in str(told.value)
        again = {"output": output}
    loaded = kind.from_pretrained(str(tmp_path), model=Returning(small_resnet(), made), **again)
    assert loaded.output == output
    assert torch.equal(loaded(LARGE), model(LARGE))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (1.5, TypeError, "a name, an index, a tuple of them or a function, got 1.5"),
        (True, TypeError, "got True"),
        ("x", ValueError, r"`output='x'` is not in what the model returned. There are 'f' \(1, 4\)"),
        (9, ValueError, r"`output=9` is not in"),
        (lambda found: 3, ValueError, r"`output` \(<lambda>\) is no tensor but <class 'int'>"),
    ],
)
def test_an_output_that_is_not_there_is_named(kind, output, error, words):
    with pytest.raises(error, match=words):
        kind(Returning(small_resnet(), made), output=output)


def bert(chunks):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes, intermediate_size=32, chunk_size_feed_forward=chunks)
    return transformers.BertForSequenceClassification(config).eval()


class Joining(nn.Module):
    """What is averaged is made of two maps, and returned by a module or by none."""

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc, self.join = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 4, 3, 2), nn.Linear(8, 5), join

    def forward(self, x):
        y = self.b(self.a(x))
        return self.fc(self.join(torch.cat([y, y.relu()], 1)).mean((2, 3)))


class Gated(nn.Module):
    """A gate stands between the last map and the average."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.g, self.fc = (
            nn.Conv2d(3, 6, 3, 2),
            nn.Conv2d(6, 8, 3, 2),
            nn.Conv2d(8, 1, 1),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        y = self.b(self.a(x))
        return self.fc((y * self.g(y).sigmoid()).mean((2, 3)))


def stream_by_hand(model, maps, head):
    """The logits of a CAStream from its features."""
    query = model.stream.query.expand(2, -1)
    for number, one in enumerate(maps):
        tokens = one.flatten(2).mT
        weights = (tokens @ query[:, :, None] / query.shape[1] ** 0.5).softmax(1)
        query = model.stream.projections[number]((weights * tokens).sum(1))
    return head(query).detach()


def gated_maps(model):
    y = model.b(model.a(IMAGES))
    return [model.a(IMAGES), y * model.g(y).sigmoid()]


def joined_maps(model):
    y = model.b(model.a(IMAGES))
    return [model.a(IMAGES), torch.cat([y, y.relu()], 1)]


GATED, JOINED = wrapped(CAStream, Gated(), stages=["a", "b"]), wrapped(CAStream, Joining(nn.Identity()))
STRIPPED, FROZEN = wrapped(MHEX).strip(), wrapped(MHEX).requires_grad_(False)
IDS = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(0))
TARGETS = [ClassifierOutputTarget(1), ClassifierOutputTarget(2)]
BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


def replaced():
    model = wrapped(MHEX)
    model.backbone.layer2[0] = nn.Conv2d(64, 128, 1, 2)
    return model


def raised(model):
    return collaboration(model, LARGE, torch.tensor([0, 1]))


def opened(model):
    model.blocks.requires_grad_()
    return model


WRAPPERS = {
    "chunks": Case(
        lambda: MHEX(bert(3)),
        "Build the model with chunk_size_feed_forward=0",
        lambda: wrapped(MHEX, bert(0), prediction="original", gate=False)(IDS),
        lambda: bert(3)(IDS).logits,
    ),
    "down-sampling, names": Case(
        lambda: MHEX(VIT, placement="downsample"),
        r"Its blocks are \['blocks.0', 'blocks.1', 'blocks.2'\]: pass their names",
        lambda: wrapped(MHEX, VIT, placement=BLOCKS)(IMAGES),
        lambda: wrapped(MHEX, VIT)(IMAGES),
    ),
    "down-sampling, all": Case(
        lambda: MHEX(VIT, placement="downsample"),
        "or placement='all'",
        lambda: wrapped(MHEX, VIT, placement="all", prediction="original", gate=False)(IMAGES),
        lambda: VIT(IMAGES),
    ),
    "a block that was replaced": Case(
        lambda: replaced()(LARGE),
        r"without its residual additions \['layer2.0'\].*Wrap it again",
        lambda: wrapped(MHEX, replaced().backbone, prediction="original", gate=False)(LARGE),
        lambda: replaced().backbone(LARGE),
    ),
    "stripped": Case(
        lambda: STRIPPED.mhex_blocks[0].equivalent_matrix(),
        r"use the model from before `strip\(\)`",
        lambda: wrapped(MHEX).mhex_blocks[0].equivalent_matrix(),
        lambda: (b := wrapped(MHEX).mhex_blocks[0]).head.weight @ b.gate.weight,
    ),
    "gates that are frozen": Case(
        lambda: raised(FROZEN.requires_grad_(False)),
        r"call `model.blocks.requires_grad_\(\)` first",
        lambda: raised(opened(FROZEN)),
        lambda: raised(wrapped(MHEX)),
    ),
    "the last stage, none named": Case(
        lambda: CAStream(Gated()),
        "Pass the names of its `stages`, the last one 'b'",
        lambda: GATED(IMAGES),
        lambda: stream_by_hand(GATED, gated_maps(GATED.backbone), GATED.backbone.fc),
    ),
    "the last stage, another": Case(
        lambda: CAStream(Gated(), stages=["a", "g"]),
        "'g' returns shape .*Pass 'b' as the last one",
        lambda: GATED(IMAGES),
        lambda: stream_by_hand(GATED, gated_maps(GATED.backbone), GATED.backbone.fc),
    ),
    **{
        f"a map that no module returns, {stages}": Case(
            lambda stages=stages: CAStream(Joining(lambda y: y), stages=stages),
            "have the network pass it through an nn.Identity, which is then the last stage",
            lambda: JOINED(IMAGES),
            lambda: stream_by_hand(JOINED, joined_maps(JOINED.backbone), JOINED.backbone.fc),
        )
        for stages in (None, ("a", "b"))
    },
    "two inputs": Case(
        lambda: RawAttention(wrapped(CAStream)).attribute((LARGE, LARGE)),
        "Expected one tensor of images.*got 2",
        lambda: RawAttention(wrapped(CAStream)).attribute((LARGE,))[0],
        lambda: RawAttention(wrapped(CAStream)).attribute(LARGE),
    ),
    "maps of blocks": Case(
        lambda: MHEXEvidenceCAM(wrapped(MHEX), per_layer=True),
        "use captum_ext.MHEXCAM, which returns a map of each block",
        lambda: (
            MHEXCAM(wrapped(MHEX)).attribute(LARGE, 1, per_layer=True) * 0.9 ** torch.arange(3, -1, -1.0).view(4, 1, 1)
        ).sum(1, keepdim=True),
        lambda: MHEXCAM(wrapped(MHEX)).attribute(LARGE, 1),
    ),
    "smoothing": Case(
        lambda: RawAttentionCAM(wrapped(CAStream))(LARGE, None, True),
        "leave both False",
        lambda: RawAttentionCAM(wrapped(CAStream))(LARGE, None, False, False),
        lambda: scaled(resized(RawAttention(wrapped(CAStream)).attribute(LARGE))[:, 0]),
    ),
    "targets without a list": Case(
        lambda: MHEXEvidenceCAM(wrapped(MHEX))(LARGE[:1], 3),
        r"as \[ClassifierOutputTarget\(3\)\] for one image, got 3",
        lambda: MHEXEvidenceCAM(wrapped(MHEX))(LARGE[:1], [ClassifierOutputTarget(3)]),
        lambda: scaled(MHEXCAM(wrapped(MHEX)).attribute(LARGE[:1], 3)[:, 0].clamp(min=0)),
        TypeError,
    ),
    "FinerCAM": Case(
        lambda: pytorch_grad_cam.FinerCAM(M, [], base_method=MHEXEvidenceCAM)(LARGE, TARGETS),
        "Use FinerCAM with base_method=GradCAM, or this class alone",
        lambda: run_cam(pytorch_grad_cam.FinerCAM(M, M.target_layers, base_method=pytorch_grad_cam.GradCAM)),
        lambda: run_cam(pytorch_grad_cam.FinerCAM(M, M.target_layers)),
        TypeError,
    ),
}
M = wrapped(MHEX)


def resized(maps):
    return F.interpolate(maps, (64, 64), mode="bilinear")


def run_cam(cam):
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        return cam(LARGE)


def scaled(maps):
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", WRAPPERS.values(), ids=WRAPPERS)
def test_advice_of_wrappers_and_their_cams(case):
    check(case)


def test_labels_choose_the_queries_in_training():
    model = wrapped(CAStream, class_specific=True).train()
    with pytest.raises(ValueError, match="Expected `labels` in training"):
        model(LARGE)
    labels = torch.tensor([0, 3])
    torch.testing.assert_close(model(LARGE, labels), model.eval()(LARGE, labels))
