"""Targets of detectors: one label of one query, found by its number or its box, against plain autograd."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
from detectors import DETECTORS, IMAGES, LABELS, QUERIES, SIZE, Asked, asked, resnet
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection

from adapters import PerImage
from captum_ext import (
    CDAM,
    AttentionMap,
    BoxTarget,
    ContrastTarget,
    DetectionTarget,
    IntegratedCDAM,
    PartialLRP,
    SmoothCDAM,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of random models
FAST = ("DETR", "Deformable DETR", "RT-DETR", "YOLOS")
MASKED = ("DETR", "Conditional DETR", "DAB-DETR", "Table Transformer", "Deformable DETR, two stages")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in DETECTORS]
ASKED = ((3, 1), (5, 0))  # of the first image, and of the second
TARGETS = [DetectionTarget(*one) for one in ASKED]


def scores(case: Asked):
    logits = case.logits()
    return torch.stack([logits[sample][one] for sample, one in enumerate(ASKED)])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_a_label_of_a_query_is_explained_by_the_places_that_the_last_attention_reads(name):
    case = asked(name)
    expected = case.expected(lambda: scores(case))
    torch.testing.assert_close(
        CDAM(case.forward).attribute(case.images, TARGETS, return_tokens=True), expected, rtol=1e-9, atol=1e-12
    )
    maps = CDAM(case.forward).attribute(case.images, TARGETS)
    torch.testing.assert_close(maps, case.arranged(expected), rtol=1e-9, atol=1e-12)


def test_the_index_of_the_output_says_the_same():
    case = asked("DETR")
    assert torch.equal(
        CDAM(case.model).attribute(case.images, TARGETS), CDAM(case.model).attribute(case.images, list(ASKED))
    )


@pytest.mark.slow
def test_the_other_methods_of_the_family_take_them():
    case = asked("RT-DETR")
    halves = [case.expected(lambda: scores(case), scale) for scale in (0.5, 1)]
    found = IntegratedCDAM(case.model).attribute(case.images, TARGETS, n_steps=2, method="riemann_right", baselines=0)
    torch.testing.assert_close(found, case.arranged(sum(halves) / 2), rtol=1e-9, atol=1e-12)
    smooth = SmoothCDAM(case.model).attribute(case.images, TARGETS, nt_samples=2, stdevs=0.0)
    torch.testing.assert_close(smooth, case.arranged(halves[1]), rtol=1e-9, atol=1e-12)


def pixels(boxes):
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2, dtype=boxes.dtype)
    return torchvision.ops.box_convert(boxes * scale, "cxcywh", "xyxy")


def test_a_box_means_the_query_that_overlaps_most_in_each_image():
    case = asked("DETR")
    boxes = pixels(case.output().pred_boxes.detach())
    box = boxes[0, 4] + torch.tensor([-0.5, -0.25, 0.5, 0.5])
    overlaps = [torchvision.ops.box_iou(box[None], own)[0] for own in boxes]
    best = [int(one.argmax()) for one in overlaps]
    assert best[0] == 4
    target = BoxTarget(label=2, box=box, iou=float(min(one.max() for one in overlaps)) - 1e-9)
    expected = CDAM(case.model).attribute(case.images, [DetectionTarget(query, 2) for query in best])
    assert torch.equal(CDAM(case.model).attribute(case.images, target), expected)
    own = [DetectionTarget(2, 0), BoxTarget(3, boxes[1, 6].tolist(), 0.99)]
    assert torch.equal(
        CDAM(case.model).attribute(case.images, own), CDAM(case.model).attribute(case.images, [(2, 0), (6, 3)])
    )
    larger = BoxTarget(3, boxes[1, 6] * 2, 0.99, size=(2 * SIZE[0], 2 * SIZE[1]))
    assert torch.equal(
        CDAM(case.model).attribute(case.images[1:], larger), CDAM(case.model).attribute(case.images[1:], (6, 3))
    )


def test_contrasts_and_several_targets_in_one_pass():
    case = asked("DETR")
    box = BoxTarget(1, pixels(case.output().pred_boxes.detach())[0, 3], 0.2)
    a, b = (CDAM(case.model).attribute(case.images, one) for one in (box, DetectionTarget(6, 0)))
    contrast = ContrastTarget(box, DetectionTarget(6, 0))
    torch.testing.assert_close(CDAM(case.model).attribute(case.images, contrast), a - b)
    several = CDAM(case.model).attribute_targets(case.images, [box, DetectionTarget(6, 0), contrast])
    torch.testing.assert_close(several, torch.cat([a, b, a - b], 1))


def test_where_no_query_overlaps_it_is_an_error_or_nan_for_that_image_alone():
    case = asked("DETR")
    own = pixels(case.output().pred_boxes.detach())[0, 3]
    far = BoxTarget(1, (0, 0, 1, 1), 0.9)
    with pytest.raises(ValueError, match=r"No detection overlaps .* of 7 the most is 0\.\d\d, of \[.*lower `iou`"):
        CDAM(case.model).attribute(case.images, far)
    with pytest.warns(UserWarning, match=r"sample\(s\) \[1\] are NaN.*No detection overlaps"):
        maps = CDAM(case.model).attribute(case.images, [BoxTarget(1, own, 0.9), far], on_error="nan")
    assert torch.equal(maps[:1], CDAM(case.model).attribute(case.images, (3, 1))[:1])
    assert maps[1].isnan().all()


def test_the_model_is_left_as_it_was():
    case = asked("DETR")
    case.model.train()
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    own = BoxTarget(1, (8, 8, 88, 56), 0.01)
    CDAM(case.model).attribute(case.images, own)
    assert all(module.training for module in case.model.modules() if "BatchNorm" not in type(module).__name__)
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


def padded(case: Asked, height: int = 40, width: int = 56):
    """The images and a mask: of the second one only so many pixels are no padding."""
    shown = torch.ones(2, *SIZE, dtype=torch.long)
    shown[1, height:], shown[1, :, width:] = 0, 0
    return case.images * shown[:, None], shown


@pytest.mark.parametrize("name", ["DETR", *(pytest.param(x, marks=pytest.mark.slow) for x in MASKED if x != "DETR")])
def test_padding_that_a_mask_hides_is_hidden_from_the_map(name):
    case = asked(name)
    images, shown = padded(case)
    free = case.logits().detach()
    hidden = replace(case.kind, wrap=lambda model: lambda given: model(given, shown))
    expected = (by_hand := Asked(hidden, case.model, images)).expected(lambda: scores(by_hand))
    assert (by_hand.logits()[1] - free[1]).abs().max() > 1e-2
    found = CDAM(case.model).attribute(images, TARGETS, additional_forward_args=(shown,))
    torch.testing.assert_close(found, case.arranged(expected), rtol=1e-9, atol=1e-12)
    bound = CDAM(partial(case.model, pixel_mask=shown)).attribute(images, TARGETS)
    torch.testing.assert_close(bound, found, rtol=1e-9, atol=1e-12)


def test_of_padded_images_a_box_says_what_it_is_relative_to():
    case = asked("DETR")
    images, shown = padded(case)
    relative = case.model(images, shown).pred_boxes.detach()
    explain = partial(CDAM(case.model).attribute, images, additional_forward_args=(shown,))
    box = pixels(relative)[1, 4] * torch.tensor([56 / SIZE[1], 40 / SIZE[0]] * 2)
    with pytest.raises(ValueError, match=r"hidden by `pixel_mask`.*size=\(height, width\).*\(64, 96\), \(40, 56\)\]"):
        explain([BoxTarget(3, box), BoxTarget(3, box)])
    with pytest.raises(ValueError, match="hidden by `pixel_mask`"):
        CDAM(partial(case.model, pixel_mask=shown)).attribute(images, BoxTarget(3, box))
    own = [BoxTarget(0, pixels(relative)[0, 2], 0.99, size=SIZE), BoxTarget(3, box, 0.99, size=(40, 56))]
    assert torch.equal(explain(own), explain([(2, 0), (4, 3)]))
    full = torch.ones_like(shown)
    with_all = CDAM(case.model).attribute(images, BoxTarget(3, box, 0.01), additional_forward_args=(full,))
    assert torch.equal(with_all, CDAM(case.model).attribute(images, BoxTarget(3, box, 0.01)))


@pytest.mark.parametrize("name", ["DETR", "YOLOS", pytest.param("Mask2Former", marks=pytest.mark.slow)])
def test_maps_of_attention_weights_read_the_row_of_the_query(name):
    case = asked(name)
    case.model.set_attn_implementation("eager")
    if name == "Mask2Former":
        weights: list[torch.Tensor] = []
        site = case.model.get_submodule(case.kind.site)
        site.register_forward_hook(lambda *given: weights.append(given[-1][1]))
        case.logits()
        given = weights[-1].detach().mean(1, keepdim=True)  # of all rows, as queries look at one another behind it
        row = lambda _query: 0  # noqa: E731
    else:
        output = case.model(case.images, output_attentions=True)
        layers = output.cross_attentions if name == "DETR" else output.attentions
        given = layers[-1]
        row = (lambda query: query) if name == "DETR" else (lambda query: query - QUERIES)
        score = sum(output.logits[sample][one] for sample, one in enumerate(ASKED))
        (gradient,) = torch.autograd.grad(score, given)
        relevance = (given * gradient).clamp(min=0).mean(1).detach()
        expected = torch.stack([relevance[sample, row(query)] for sample, (query, _) in enumerate(ASKED)])
        found = PartialLRP(case.model).attribute(case.images, TARGETS, return_tokens=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    mean = (given if given.dim() == 3 else given.mean(1)).detach()
    expected = torch.stack([mean[sample, row(query)] for sample, (query, _) in enumerate(ASKED)])
    found = AttentionMap(case.model).attribute(case.images, TARGETS, return_tokens=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", [AttentionMap, PartialLRP])
def test_attention_at_points_has_no_matrix(method):
    case = asked("RT-DETR")
    with pytest.raises(ValueError, match=r"deformable attention.*Take CDAM"):
        method(case.model).attribute(case.images, TARGETS)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DetectionTarget(-1, 0), ValueError, "at least 0, got -1"),
        (lambda: DetectionTarget(1.5, 0), TypeError, "query"),
        (lambda: BoxTarget(-1, (0, 0, 1, 1)), ValueError, "label"),
        (lambda: BoxTarget(1, (5, 0, 1, 1)), ValueError, "right > left"),
        (lambda: BoxTarget(1, (0, 0, 1)), ValueError, "right > left"),
        (lambda: BoxTarget(1, (0, 0, 1, 1), iou=1.5), ValueError, "above 0 and at most 1"),
        (lambda: BoxTarget(1, (0, 0, 1, 1), size=(0, 3)), ValueError, "height and width"),
    ],
)
def test_wrong_targets(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_a_detector_does_not_return_is_an_error():
    case = asked("DETR")
    explain = CDAM(case.model).attribute
    for target in (DetectionTarget(QUERIES, 0), DetectionTarget(0, LABELS + 1)):
        with pytest.raises(ValueError, match=r"out of range: the logits of one image have shape \(7, 6\)"):
            explain(case.images, target)
    with pytest.raises(ValueError, match=r"Bind what comes before them"):
        CDAM(lambda ids, images: case.model(images)).attribute((torch.ones(2, 4).long(), case.images), TARGETS)
    with pytest.raises(ValueError, match="one `target` per sample, 2"):
        explain(case.images, [BoxTarget(1, (0, 0, 9, 9))] * 3)
    without = CDAM(lambda images: {"logits": case.model(images).logits})
    with pytest.raises(ValueError, match="DetectionTarget"):
        without.attribute(case.images, BoxTarget(1, (0, 0, 9, 9)))
    torch.testing.assert_close(without.attribute(case.images, TARGETS), explain(case.images, TARGETS))


@pytest.mark.slow
def test_queries_that_look_at_one_another_at_last_are_no_places_and_the_advice_works():
    case = asked("Mask2Former")
    with pytest.raises(ValueError, match=r"Are they the queries of a decoder\? Then explain a DetectionTarget"):
        CDAM(case.model, output="class_queries_logits").attribute(case.images, (3, 1))
    assert CDAM(case.model).attribute(case.images, DetectionTarget(3, 1)).shape == (2, 1, 8, 12)


class TinyRCNN(nn.Module):
    """Faster R-CNN of torchvision on a backbone of one layer, with detections of given parameters."""

    def __new__(cls):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU())
        backbone.out_channels = 8
        anchors = torchvision.models.detection.rpn.AnchorGenerator(((16, 32),), ((1.0,),))
        return torchvision.models.detection.FasterRCNN(
            backbone,
            num_classes=3,
            rpn_anchor_generator=anchors,
            box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 0),
            min_size=64,
            max_size=64,
            box_detections_per_img=8,
            box_score_thresh=0.0,
        ).eval()


def test_torchvisions_detectors_under_grad_cam_against_its_own_target():
    model, images = TinyRCNN(), IMAGES[..., :64].float()
    found = [{name: value.detach() for name, value in one.items()} for one in model(images)]
    targets = [BoxTarget(int(one["labels"][2]), one["boxes"][2], 0.9) for one in found]
    for own, one in zip(targets, found, strict=True):
        theirs = FasterRCNNBoxScoreTarget([own.label], one["boxes"][2:3].numpy(), 0.9)
        torch.testing.assert_close(theirs(one)[0], own(one) + 1)  # the overlap with itself
    layer = model.backbone[1]
    with GradCAM(model, [layer]) as cam:
        maps = torch.as_tensor(cam(images, targets=targets))
    kept = []
    handle = layer.register_forward_hook(lambda *given: kept.append(given[-1]))
    score = sum(one["scores"][2] for one in model(images))
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    plain = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).clamp(min=0).detach()
    plain = nn.functional.interpolate(plain[:, None], (64, 64), mode="bilinear")[:, 0]
    plain = plain - plain.amin((1, 2), keepdim=True)
    torch.testing.assert_close(maps, plain / (1e-7 + plain.amax((1, 2), keepdim=True)), rtol=0, atol=1e-3)
    assert maps.std() > 0
    with pytest.raises(ValueError, match="No detection overlaps"):
        BoxTarget(1, (0, 0, 1, 1), 0.9)(found[0])
    with pytest.raises(ValueError, match=r"method of pytorch-grad-cam: `GradCAM"):
        CDAM(model, layer=layer).attribute(images, targets)


def test_detectors_of_transformers_under_grad_cam():
    torch.manual_seed(0)
    config = DetrConfig(d_model=32, encoder_layers=1, decoder_layers=2, backbone_config=resnet(4), num_queries=QUERIES)
    model, images = DetrForObjectDetection(config).eval().double(), IMAGES
    boxes = pixels(model(images).pred_boxes.detach())
    targets = [BoxTarget(1, boxes[0, 2], 0.99, size=SIZE), DetectionTarget(4, 0)]
    layer = model.model.input_projection
    with GradCAM(PerImage(model), [layer]) as cam:
        cam(images, targets=targets)
        gradient = cam.activations_and_grads.gradients[0]
    kept = []
    layer.register_forward_hook(lambda *given: kept.append(given[-1]))
    logits = model(images).logits
    (expected,) = torch.autograd.grad(logits[0, 2, 1] + logits[1, 4, 0], kept[0])
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ValueError, match=r"size=\(height, width\)"):
        BoxTarget(1, boxes[0, 2])({name: value[0] for name, value in model(images).items()})
    with pytest.raises(TypeError, match="dictionary or a ModelOutput"):
        PerImage(nn.Flatten())(images)
