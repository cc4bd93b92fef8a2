"""The table of docs/video-and-sound.md: families of video and sound models against plain autograd in float64.

    python benchmarks/video_and_sound.py

The models are those of tests/video_and_sound.py: tiny, with random weights.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
import transformers

from captum_ext import CDAM, AttentionMap, AttentionRollout, IntegratedCDAM, RelevancePropagation

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import zoo_truth
from video_and_sound import SOUNDS, VIDEOS, gradients, made, target_of, tokens_read
from zoo.cases import case

HEADER = ("family", "inputs", "map", "way", "CDAM", "IntegratedCDAM", "attention map", "rollout", "relevance")


def main() -> None:
    """Print a row for each family."""
    argparse.ArgumentParser(description="Families of video and sound models.").parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print("|", " | ".join(HEADER), "|")
    print("|" + "---|" * len(HEADER))
    for name in (*VIDEOS, *SOUNDS):
        print("|", " | ".join(row_of(name)), "|", flush=True)


def row_of(name: str) -> list[str]:
    """What holds for a family: shapes, the way, the largest difference relative to the largest score."""
    model, inputs, readers = made(name)
    target = target_of(name)
    scores = CDAM(model).attribute(inputs, target, return_tokens=True).flatten()
    integrated = "-"
    if readers:
        tokens = tokens_read(model, inputs, readers)
        expected = (tokens * gradients(model, inputs, readers, tokens, target)).sum(-1)
        mean = sum(gradients(model, inputs, readers, k / 4 * tokens, target) for k in (1, 2, 3, 4)) / 4
        found = IntegratedCDAM(model).attribute(inputs, target, n_steps=4, baselines=0.0, return_tokens=True)
        integrated = difference(found.flatten(), (tokens * mean).sum(-1).flatten())
    else:
        expected = zoo_truth.explain(case(model, inputs, target)).scores
    shape = tuple(CDAM(model).attribute(inputs, target).shape)
    way = CDAM(model).path(inputs).way
    baselines = [
        said(method, model, inputs, target) for method in (AttentionMap, AttentionRollout, RelevancePropagation)
    ]
    return [
        name,
        str(tuple(inputs.shape)),
        str(shape),
        way,
        difference(scores, expected.flatten()),
        integrated,
        *baselines,
    ]


def difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """The largest, relative to the largest score."""
    return f"{float((found - expected).abs().max() / expected.abs().max()):.0e}"


def said(method: type, model: torch.nn.Module, inputs: torch.Tensor, target: object) -> str:
    """Is there a map?"""
    try:
        method(model).attribute(inputs, target)
    except ValueError:
        return "refused"
    return "yes"


if __name__ == "__main__":
    main()
