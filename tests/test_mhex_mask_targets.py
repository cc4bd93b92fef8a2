"""What is explained of masks: classes everywhere, inside regions and at places; CAMs of pytorch-grad-cam beside it."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from mask_networks import CLASSES, images_of, plain_unet, seen_at_blocks, wrap
from mhex_networks import close
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget
from torch.nn import functional as F

from adapters import MHEX, MHEXEvidenceCAM
from captum_ext import MHEXCAM

NO_SHARPNESS = {"beta": 1.0, "gamma_pos": 0, "gamma_neg": 0}
CAMS = ("GradCAM", "HiResCAM", "GradCAMElementWise", "XGradCAM", "GradCAMPlusPlus", "LayerCAM", "EigenGradCAM")
CAMS += ("ScoreCAM", "EigenCAM", "KPCA_CAM", "RandomCAM", "FEM", "SegEigenCAM", "FullGrad", "ShapleyCAM", "AblationCAM")
CAMS += ("FinerCAM", "RefineCAM")  # SESS hands a whole batch to a target, which only those of classes can read


def small(kernel=1, **options):
    net = plain_unet()
    return MHEX(net, num_classes=3, task="segmentation", kernel_size=kernel, **options).eval()


def images(count=2):
    return torch.randn(count, 2, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


REGION = torch.zeros(12, 20, dtype=torch.bool)
REGION[2:7, 3:11] = True


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_map_of_a_region_is_activation_times_the_gradient_of_the_logits_in_it(kernel):
    wrapper, x = small(kernel), images()
    seen, _, _ = seen_at_blocks(wrapper, x)
    found = MHEXCAM(wrapper).attribute(x, (1, REGION), per_layer=True, **NO_SHARPNESS)
    for i, (block, (z, _, _)) in enumerate(zip(wrapper.mhex_blocks, seen, strict=True)):
        z = z.requires_grad_()
        _, y = block(z)
        (y[:, 1] * REGION).sum().backward()
        close(found[:, i], (z * z.grad).sum(1).detach(), 1e-11)
        close(found[:, i].sum((1, 2)), (y[:, 1] * REGION).sum((1, 2)).detach(), 1e-10)
    outside = found[:, :, ~REGION].abs().max()
    assert (outside > 1e-3) == (kernel > 1)  # the kernel reaches places around the region


@pytest.mark.slow
def test_regions_at_a_lower_resolution_are_shares_of_places():
    wrapper, x = wrap("smp.Unet", kernel_size=3, placement=["decoder.blocks.2"]), images_of("smp.Unet")
    region = torch.zeros(64, 96, dtype=torch.bool)
    region[10:33, 5:50] = True
    seen, _, _ = seen_at_blocks(wrapper, x)
    z = seen[0][0].requires_grad_()
    _, y = wrapper.mhex_blocks[0](z)
    assert y.shape[2:] == (16, 24)
    shares = region.double().reshape(16, 4, 24, 4).mean((1, 3))
    (y[:, 2] * shares).sum().backward()
    small = (z * z.grad).sum(1).detach()
    expected = F.interpolate(small[:, None], (64, 96), mode="bilinear")
    close(MHEXCAM(wrapper).attribute(x, (2, region), **NO_SHARPNESS), expected, 1e-10)


def test_without_a_kernel_a_region_cuts_the_map_out_and_a_place_is_a_region_of_one():
    wrapper, x = small(), images()
    explain = MHEXCAM(wrapper).attribute
    close(explain(x, (2, REGION)), explain(x, 2) * REGION, 1e-12)
    place = torch.zeros_like(REGION)
    place[4, 7] = True
    close(explain(x, (2, 4, 7)), explain(x, 2) * place, 1e-12)
    close(explain(x, (2, np.int64(4), 7)), explain(x, (2, place.numpy())), 1e-12)


def test_each_image_may_have_its_own_target():
    wrapper, x = small(3), images(3)
    explain = MHEXCAM(wrapper).attribute
    mixed = explain(x, [(1, REGION), 0, (2, 11, 19)])
    singles = [explain(x[:1], (1, REGION)), explain(x[1:2], 0), explain(x[2:], (2, 11, 19))]
    close(mixed, torch.cat(singles), 1e-12)
    regions = torch.stack([REGION, REGION.flip(0), REGION.flip(1)])
    close(explain(x, (1, regions)), explain(x, [(1, one) for one in regions]), 1e-12)
    close(explain(x, torch.tensor([1, 0, 2])), explain(x, [1, 0, 2]), 1e-12)


WRONG = [
    (None, ValueError, r"Expected a `target` for masks.*`\(class, region\)`"),
    ("cat", TypeError, "Expected classes as `target`"),
    (3, ValueError, "classes from 0 to 2, got"),
    ((3, REGION), ValueError, "classes from 0 to 2, got"),
    ((1, REGION[:5]), ValueError, r"region of the images' size \(12, 20\).*got shape \(5, 20\) with"),
    ((1, torch.zeros_like(REGION)), ValueError, r"at least one place in `target`, got shape \(12, 20\) with 0 places"),
    ((1, REGION.long()), TypeError, r"region of booleans in `target`, got torch.int64. Compare: `mask == 2`"),
    ((1, 2), TypeError, r"Expected a `target` of masks to be a class, `\(class, region\)`.*got \(1, 2\)"),
    ((1, 2.0, 3), TypeError, "Expected a `target` of masks"),
    ((1, 12, 3), ValueError, r"place in images of size \(12, 20\) in `target`, got \(12, 3\)"),
    ((1, -1, 3), ValueError, r"place in images of size \(12, 20\)"),
    ([(1, REGION)], ValueError, "one target for each of 2 samples, got 1"),
    ((1, torch.stack([REGION] * 3)), ValueError, "one target for each of 2 samples, got 3"),
    ([1, 2, 0], ValueError, "one target for each of 2 samples"),
]


@pytest.mark.parametrize(("target", "error", "words"), WRONG)
def test_targets_say_what_is_wrong(target, error, words):
    with pytest.raises(error, match=words):
        MHEXCAM(small()).attribute(images(), target)


@pytest.mark.slow
def test_volumes_have_places_too():
    name = "MONAI UNet, volumes"
    wrapper, x = wrap(name), images_of(name)
    region = torch.zeros(x.shape[2:], dtype=torch.bool)
    region[4, 5, 6] = True
    close(MHEXCAM(wrapper).attribute(x, (1, 4, 5, 6)), MHEXCAM(wrapper).attribute(x, (1, region)), 1e-12)
    with pytest.raises(TypeError, match="Expected a `target` of masks"):
        MHEXCAM(wrapper).attribute(x, (1, 4, 5))


def run_cam(name, model, layers, x, targets):
    kind = getattr(pytorch_grad_cam, name)
    cam = kind(model, layers)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with cam if hasattr(cam, "__enter__") else contextlib.nullcontext():
            return cam(x, targets)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("prediction", ["last", pytest.param("original", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CAMS)
def test_every_cam_takes_segmentation_targets(name, prediction):
    wrapper, x = small(prediction=prediction).float(), images().float()
    targets = [SemanticSegmentationTarget(2, REGION.float().numpy())] * 2
    for target in targets:  # it moves its mask to a GPU where there is one
        target.mask = torch.as_tensor(target.mask).cpu()
    before = [(key, module, len(module._forward_hooks)) for key, module in wrapper.named_modules()]
    layers = wrapper.target_layers if prediction == "last" else [wrapper.backbone.blocks[0]]
    if (name, prediction) == ("FullGrad", "last"):  # it reads all layers with a bias, and the decoder has some behind
        with pytest.raises(ValueError, match=r"target layer\(s\) \['merge', 'head'\].*prediction='original'"):
            run_cam(name, wrapper, layers, x, targets)
        return
    maps = run_cam(name, wrapper, layers, x, targets)
    assert maps.shape == (2, 12, 20)
    assert np.isfinite(maps).all()
    if name not in ("RandomCAM", "FullGrad", "FEM"):
        assert maps.max() > 0.9
    assert [(key, module, len(module._forward_hooks)) for key, module in wrapper.named_modules()] == before


def test_grad_cam_at_the_offered_layer_is_that_of_what_the_last_head_reads():
    wrapper, x = small(3), images()
    total = seen_at_blocks(MHEX(wrapper.backbone, num_classes=3, task="segmentation", gate=False).eval(), x)
    assert len(total[0]) == 2
    kept = []
    hook = wrapper.mhex_blocks[-1].addition.register_forward_hook(lambda *args: kept.append(args[2].detach()))
    wrapper(x)
    hook.remove()
    a = kept[0].requires_grad_()
    _, y = wrapper.mhex_blocks[-1](a.relu())
    (gradient,) = torch.autograd.grad((y[:, 1] * REGION).sum(), a)
    cam = (gradient.mean((2, 3), keepdim=True) * a).sum(1).relu().detach()
    cam = cam - cam.amin((1, 2), keepdim=True)
    targets = [SemanticSegmentationTarget(1, REGION.double().numpy())] * 2
    for target in targets:
        target.mask = torch.as_tensor(target.mask).cpu()
    found = run_cam("GradCAM", wrapper, wrapper.target_layers, x, targets)
    np.testing.assert_allclose(found, cam / cam.amax((1, 2), keepdim=True), atol=1e-5)


def test_our_cam_reads_the_masks_of_segmentation_targets():
    wrapper, x = small(), images()
    targets = [SemanticSegmentationTarget(1, REGION.float().numpy()), ClassifierOutputTarget(2)]
    maps = MHEXCAM(wrapper).attribute(x, [(1, REGION), 2])[:, 0].clamp(min=0)
    scaled = (maps - maps.amin((1, 2), keepdim=True)) / (
        maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    )
    np.testing.assert_allclose(MHEXEvidenceCAM(wrapper)(x, targets), scaled, atol=1e-5)
    with pytest.raises(ValueError, match="masks of zeros and ones"):
        MHEXEvidenceCAM(wrapper)(x, [SemanticSegmentationTarget(1, 0.5 * REGION.float().numpy())] * 2)
    from contracts import IMAGES
    from torchvision.models.resnet import BasicBlock, ResNet

    classes = MHEX(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)).eval()
    with pytest.raises(ValueError, match="predicts no masks"):
        MHEXEvidenceCAM(classes)(IMAGES, [SemanticSegmentationTarget(1, np.ones((32, 32)))] * 3)
    with pytest.raises(ValueError, match="'classification', whose heads read averages"):
        MHEXCAM(classes).attribute(IMAGES, 1, activation="head")
