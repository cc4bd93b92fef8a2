"""A vision transformer with weights made by hand, whose answer is known on paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .measures import cells, largest_is
from .task import Conditions, Problem, Score, Task

SIDE, PATCH = 32, 8
PATCHES = (SIDE // PATCH) ** 2
_FOUND, _SINK = 50.0, 25.0  # scores of a marked patch and of the class token, before the softmax; others have 0


class ReadingViT(nn.Module):
    """A transformer of one block whose class token reads the marked patches, and nothing else.

    Channel 0 of the image holds values, channels 1 and 2 mark a patch each. Patch tokens are the means of the channels.
    Head 1 of the class token attends to the patch marked in channel 1 and adds the mean of its values to the logit;
    head 2 does so for channel 2, with the sign `second`. All else gets a share of e^-25 of the attention. Where the
    marked patch is taken away, the class token attends to itself, and reads 0.

    Args:
        second: What the second head's value counts: -1 for a difference, 0 for the first alone.
    """

    def __init__(self, second: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, PATCH, PATCH, bias=False)  # tokens: value, first mark, second mark, class token
        self.class_token = nn.Parameter(torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]))
        self.query, self.key, self.value = (nn.Linear(4, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 4, bias=False)
        self.head = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.dim() != 3:
                    weight.zero_()
            for channel in range(3):
                self.patches.weight[channel, channel] = 1 / PATCH**2
            for head in range(2):
                self.query.weight[4 * head, 3] = 2.0  # which the root of the heads' width divides
                self.key.weight[4 * head, 1 + head] = _FOUND
                self.key.weight[4 * head, 3] = _SINK
                self.value.weight[4 * head, 0] = 1.0
            self.out.weight[0, 0], self.out.weight[0, 4] = 1.0, second
            self.head.weight[0, 0], self.head.weight[1, 0] = 1.0, -1.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, 2) of images (batch, 3, 32, 32): what is read, and its opposite."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        q, k, v = (layer(tokens).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        logits: Tensor = self.head((tokens + self.out(read))[:, 0])
        return logits


def _problem(conditions: Conditions, second: float) -> Problem:
    count, generator = conditions.samples, torch.Generator().manual_seed(conditions.seed)
    images = torch.zeros(count, 3, SIDE, SIDE)
    images[:, 0] = 0.5 + torch.rand(count, SIDE, SIDE, generator=generator)
    places = torch.rand(count, PATCHES, generator=generator).argsort(1)[:, :2]
    for channel in range(2 if second else 1):
        marks = F.one_hot(places[:, channel], PATCHES).float().view(count, 1, SIDE // PATCH, -1)
        images[:, 1 + channel] = F.interpolate(marks, scale_factor=PATCH)[:, 0]
    model = ReadingViT(second).eval()
    return Problem(model, images, torch.zeros(count, dtype=torch.long), {"first": places[:, 0], "second": places[:, 1]})


def one_patch(conditions: Conditions) -> Problem:
    """The class token reads the marked patch; no second one is marked."""
    return _problem(conditions, 0.0)


def two_patches(conditions: Conditions) -> Problem:
    """The class token reads the first marked patch less the second."""
    return _problem(conditions, -1.0)


def found(maps: Tensor, problem: Problem) -> Tensor:
    """Whether the patch with the largest mean is the one that is read."""
    return largest_is(cells(maps, PATCH).flatten(1), problem.truth["first"])


def signs(maps: Tensor, problem: Problem) -> Tensor:
    """Whether the first patch is positive and the second one negative."""
    means = cells(maps, PATCH).flatten(1)
    first, second = (means.gather(1, problem.truth[name][:, None])[:, 0] for name in ("first", "second"))
    return ((first > 0) & (second < 0)).float()


def both_found(maps: Tensor, problem: Problem) -> Tensor:
    """Whether the largest patch is the first one and the smallest the second: 0, a half or 1."""
    means = cells(maps, PATCH).flatten(1)
    return (largest_is(means, problem.truth["first"]) + largest_is(-means, problem.truth["second"])) / 2


TASKS = [
    Task(
        "one-patch",
        "One patch",
        "analytic",
        "A ViT with weights made by hand whose class token reads one marked patch. It must be the largest of a map.",
        one_patch,
        {"found": Score("largest patch is the one read", found, 0.95, 1 / PATCHES)},
    ),
    Task(
        "difference",
        "Difference of two patches",
        "analytic",
        "The same ViT reads one patch less another. A map must be positive on the first and negative on the second.",
        two_patches,
        {
            "signs": Score("both signs right", signs, 0.95, 1 / 4),
            "both-found": Score("largest and smallest patch are those read", both_found, 0.95, 1 / PATCHES),
        },
    ),
]
