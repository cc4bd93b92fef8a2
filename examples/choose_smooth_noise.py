"""Choose Smooth CDAM's default noise by fidelity on validation scenes: about two minutes on two cores.

    python examples/choose_smooth_noise.py

For each noise, pixels are blurred in most-important-first (MIF) and least-important-first (LIF) order, and the logit's
area over the percentage blurred is measured. The larger LIF - MIF, the better the order that the map gives (Brocki et
al. 2024, section 3.4; the blur is scaled from their 14 pixels at 224 to the size of these scenes).
"""

import torch
from captum.attr import LayerAttribution
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from tqdm import tqdm

from captum_ext import CDAM, SmoothCDAM
from xai_compare import digit_vit
from xai_compare.digit_scenes import CANVAS, make_scenes

FRACTIONS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)
PERCENTAGES = range(0, 101, 10)


@torch.no_grad()
def fidelity(model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor) -> Tensor:
    """Area of the logit under LIF less that under MIF, one a sample, in logits times percent."""
    sigma = (0, 0, 14 / 224 * CANVAS, 14 / 224 * CANVAS)
    blurred = torch.from_numpy(gaussian_filter(images.numpy(), sigma))
    ranks = maps.flatten(1).argsort(1, descending=True).argsort(1).view_as(images)
    logits = {"MIF": [], "LIF": []}
    for percentage in PERCENTAGES:
        count = percentage / 100 * ranks[0].numel()
        for order, removed in (("MIF", ranks < count), ("LIF", ranks >= ranks[0].numel() - count)):
            output = model(torch.where(removed, blurred, images))
            logits[order].append(output.gather(1, targets[:, None])[:, 0])
    areas = {
        order: torch.trapezoid(torch.stack(values), torch.tensor(PERCENTAGES), dim=0)
        for order, values in logits.items()
    }
    return areas["LIF"] - areas["MIF"]


def main() -> None:
    """Print the fidelity of each noise, next to plain CDAM's."""
    model = digit_vit.load()
    scenes = make_scenes(60, "validation", digits=2, seed=7)
    images, targets = scenes.images.repeat_interleave(2, 0), scenes.labels.flatten()
    candidates = [("plain CDAM", CDAM(model).attribute(images, targets))]
    # Token deviations differ little between scenes; the mean over all turns a fraction into Captum's `stdevs`.
    deviation = token_deviation(model, images)
    smooth = SmoothCDAM(model)
    for fraction in tqdm(FRACTIONS, desc="noise", unit="level"):
        candidates.append(
            (f"{fraction:.2f} x deviation", smooth.attribute(images, targets, stdevs=fraction * deviation))
        )
    print(f"standard deviation of the tokens: {deviation:.3f}")
    for name, maps in candidates:
        pixels = LayerAttribution.interpolate(maps, (CANVAS, CANVAS), "bilinear")
        score = fidelity(model, images, targets, pixels)
        print(f"{name:16} LIF - MIF {score.mean():7.1f} +- {score.std() / len(score) ** 0.5:.1f}")


@torch.no_grad()
def token_deviation(model: nn.Module, images: Tensor) -> float:
    """Mean over images of the standard deviation of the tokens that enter the last attention."""
    kept: list[Tensor] = []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda _, __, tokens: kept.append(tokens))
    model(images)
    hook.remove()
    return kept[0].flatten(1).std(1).mean().item()


if __name__ == "__main__":
    main()
