"""One label in a region as a target: a mean over the pixels of the logits, by plain autograd at the named module."""

import pytest
import torch
import transformers as hf
from detectors import DETECTORS, IMAGES, LABELS, SIZE, Asked, Detector, asked
from zoo.cases import built

from captum_ext import CDAM, ContrastTarget, DetectionTarget, MaskTarget

pytestmark = pytest.mark.filterwarnings("ignore")  # of random models
_VIT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_VIT |= {"num_labels": LABELS, "image_size": 64, "patch_size": 16}
SEGMENTERS = {
    "SegFormer": Detector(
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(
                num_labels=LABELS,
                hidden_sizes=[16] * 4,
                depths=[1] * 4,
                num_attention_heads=[1, 2, 2, 2],
                decoder_hidden_size=16,
            )
        ),
        "segformer.stages.3.blocks.0.attention",
        0,
        (2, 3),
    ),
    "BEiT": Detector(
        lambda: hf.BeitForSemanticSegmentation(hf.BeitConfig(**_VIT, out_indices=[1, 2, 3, 4])),
        "beit.layers.2.attention",
        0,
        (4, 4),
        prefix=1,
    ),
    "DPT": Detector(
        lambda: hf.DPTForSemanticSegmentation(
            hf.DPTConfig(**_VIT, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8)
        ),
        "dpt.encoder.layer.3.attention.attention",
        0,
        (4, 4),
        prefix=1,
    ),
}
CASES = [
    "SegFormer",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("BEiT", "DPT", "MaskFormer", "Mask2Former", "EoMT")),
]


def found(name):
    if name in DETECTORS:
        return asked(name)
    kind = SEGMENTERS[name]
    return Asked(kind, built(kind.build), IMAGES[..., : SIZE[0]] if kind.grid[0] == kind.grid[1] else IMAGES)


def blocks(case):
    """A region of whole pixels of logits that are 1/16 of the image, and of smaller ones."""
    region = torch.zeros(case.images.shape[-2:], dtype=torch.bool)
    region[16:48, 32:64] = True
    return region


def pixel_scores(output):
    if "logits" in output:
        return output.logits
    probabilities = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", probabilities, output.masks_queries_logits.sigmoid())


@pytest.mark.parametrize("name", CASES)
def test_a_label_in_a_region_is_the_mean_of_its_scores_there(name):
    case, region = found(name), None
    region = blocks(case)

    def score():
        logits = pixel_scores(case.output())[:, 2]
        rows, columns = (size // own for size, own in zip(region.shape, logits.shape[1:], strict=True))
        return logits[:, region[rows // 2 :: rows, columns // 2 :: columns]].mean(1)

    expected = case.expected(score)
    explain = CDAM(case.forward).attribute
    tokens = explain(case.images, MaskTarget(2, region), return_tokens=True)
    torch.testing.assert_close(tokens, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    maps = explain(case.images, MaskTarget(2, region.numpy()))
    torch.testing.assert_close(maps, case.arranged(expected), rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_pixels_of_logits_count_by_their_share_in_the_region():
    region = torch.zeros(4, 4, dtype=torch.bool)
    region[0, 0] = region[:2, 2] = True  # a quarter of the first pixel, half of the second
    logits = torch.tensor([[[8.0, 2.0], [5.0, 7.0]]])
    assert MaskTarget(0, region)(logits).item() == pytest.approx((8 * 0.25 + 2 * 0.5) / 0.75)
    assert MaskTarget(0, region)({"logits": logits}).item() == pytest.approx(4.0)


def test_contrasts_and_a_list_with_one_for_each_image():
    case = found("SegFormer")
    region, explain = blocks(case), CDAM(case.model).attribute
    a, b = MaskTarget(2, region), MaskTarget(1, ~region)
    maps = [explain(case.images, one) for one in (a, b)]
    torch.testing.assert_close(explain(case.images, [a, b]), torch.cat([maps[0][:1], maps[1][1:]]))
    torch.testing.assert_close(explain(case.images, ContrastTarget(a, b)), maps[0] - maps[1])
    several = CDAM(case.model).attribute_targets(case.images, [a, b])
    torch.testing.assert_close(several, torch.cat(maps, 1))


@pytest.mark.parametrize(
    ("label", "region", "error", "words"),
    [
        (-1, torch.ones(4, 4, dtype=torch.bool), ValueError, "at least 0, got -1"),
        (0, torch.ones(4, 4), TypeError, "booleans, got torch.float32"),
        (0, torch.zeros(4, 4, dtype=torch.bool), ValueError, "at least one pixel"),
        (0, torch.ones(1, 4, 4, dtype=torch.bool), ValueError, "list with one target for each"),
    ],
)
def test_wrong_masks(label, region, error, words):
    with pytest.raises(error, match=words):
        MaskTarget(label, region)


def test_a_region_must_fit_the_image_and_a_label_the_logits():
    case = found("SegFormer")
    explain, region = CDAM(case.model).attribute, blocks(case)
    with pytest.raises(ValueError, match=r"to be \(64, 96\), as the images are; got .*of \(96, 64\)"):
        explain(case.images, MaskTarget(2, region.T))
    with pytest.raises(ValueError, match=r"out of range: .* have shape \(5, 16, 24\)"):
        explain(case.images, MaskTarget(5, region))
    with pytest.raises(ValueError, match="take a call for each"):
        CDAM(case.model).attribute_targets(case.images, [MaskTarget(2, region), DetectionTarget(1, 1)])
    with pytest.raises(ValueError, match="of a model that segments explain a MaskTarget"):
        explain(case.images, DetectionTarget(1, 1))
    with pytest.raises(ValueError, match="of a detector explain a DetectionTarget"):
        CDAM(asked("DETR").model).attribute(case.images, MaskTarget(2, region))
