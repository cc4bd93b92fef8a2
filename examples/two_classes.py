"""Two classes in one photograph, explained by the installed command: the picture of the README.

    python examples/two_classes.py --weights facebook/dinov2-small      # or a folder with them; a minute on two cores

A linear head on the class token of a frozen DINOv2 learns to tell four of scikit-image's photographs apart (a cat, a
cup of coffee, a rocket, an astronaut), from crops of them; the model is saved as transformers does, so that
`xai-discern explain` takes it. A scene of two of the photographs side by side, which it has not seen, is then explained
for both. This shows what maps look like, and no more: such a head has to tell four pictures apart, not cats from dogs.
The photographs are in the public domain: Chelsea by Stefan van der Walt, coffee by Rachel Michetti, the rocket by
SpaceX, Eileen Collins by NASA.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import BitImageProcessor, Dinov2ForImageClassification

from xai_discern.cli import main as command

CLASSES = {"cat": data.chelsea, "coffee": data.coffee, "rocket": data.rocket, "astronaut": data.astronaut}
SIDE = 224
CROPS = 48  # of each photograph
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Train the head, save the model and the scene, explain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="facebook/dinov2-small", help="a name on the hub, or a folder")
    parser.add_argument("--out", type=Path, default=Path("out/two-classes"))
    args = parser.parse_args()
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    model = classifier(args.weights)
    accuracy = train(model)
    print(f"The head tells new crops of the photographs apart in {accuracy:.0%}.")
    model.save_pretrained(args.out / "model")
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": 2 * SIDE}}
    BitImageProcessor(**sizes, image_mean=MEAN, image_std=STD).save_pretrained(args.out / "model")
    scene().save(args.out / "scene.png")
    chosen = [part for name in ("cat", "coffee") for part in ("--class", name)]
    scene_and_model = [str(args.out / "scene.png"), "--model", str(args.out / "model")]
    command(["explain", *scene_and_model, *chosen, "--out", str(args.out)])


def classifier(weights: str) -> Dinov2ForImageClassification:
    """DINOv2 with a head whose weights for the mean of the patches are zero: it reads the class token alone."""
    names = dict(enumerate(CLASSES))
    model = Dinov2ForImageClassification.from_pretrained(weights, id2label=names, num_labels=len(names)).eval()
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    return model


def crops(count: int) -> tuple[Tensor, Tensor]:
    """Random crops of all photographs, normalised, and their classes."""
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(SIDE, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    photos = [torch.from_numpy(np.ascontiguousarray(photo())).permute(2, 0, 1) for photo in CLASSES.values()]
    images = torch.stack([crop(photo) for photo in photos for _ in range(count)])
    return images, torch.arange(len(photos)).repeat_interleave(count)


def train(model: Dinov2ForImageClassification) -> float:
    """Fit the head on the class tokens of crops; the share of new crops that it names rightly."""
    tokens, classes = class_tokens(model, CROPS)
    head = nn.Linear(tokens.shape[1], len(CLASSES))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(head(tokens), classes) + 1e-3 * head.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    with torch.no_grad():
        model.classifier.weight[:, : tokens.shape[1]] = head.weight
        model.classifier.bias.copy_(head.bias)
        tokens, classes = class_tokens(model, CROPS // 4)
        return float((head(tokens).argmax(1) == classes).float().mean())


@torch.no_grad()
def class_tokens(model: Dinov2ForImageClassification, count: int) -> tuple[Tensor, Tensor]:
    """What the head reads of crops, and their classes."""
    images, classes = crops(count)
    return torch.cat([model.dinov2(part).last_hidden_state[:, 0] for part in images.split(16)]), classes


def scene() -> Image.Image:
    """The cat and the coffee, 300 x 300 pixels each, side by side."""
    left = Image.fromarray(data.chelsea()).crop((90, 0, 390, 300))
    right = Image.fromarray(data.coffee()).crop((150, 0, 550, 400)).resize((300, 300), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (600, 300))
    both.paste(left, (0, 0))
    both.paste(right, (300, 0))
    return both


if __name__ == "__main__":
    main()
