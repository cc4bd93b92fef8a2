"""Maps of an answer whose numbers are known, and what their page must show."""

from dataclasses import replace

import torch

from captum_ext.answer_maps import AnswerMaps

TOKENS = ["[PAD]", "<s>", "Is", " the", "<image>", "<image>", "<image>", "<image>", " cat", "\n", "?"]
NUMBERS = [4, 5, 6, 7]
ANSWER = [" a", "cat"]
WORD_SCALE, PLACE_SCALE = 0.7, 0.8


def by_hand(**changes):
    """A sample with padding, a sink, an image of 2 x 2 tokens and an answer of two tokens; scales to 0.7 and 0.8."""
    per_token = torch.zeros(1, 2, len(TOKENS), dtype=torch.float64)
    per_token[0, 0] = torch.tensor([0, 40, 0.2, -0.4, 0.8, 0, -0.2, 0.1, 0, 0.05, 0])
    per_token[0, 1] = torch.tensor([0, -9, 0, 0.6, 0, -0.8, 0, 0.3, 0.7, -0.05, 0])
    scores = per_token.sum(1)
    special = torch.zeros(1, len(TOKENS), dtype=torch.bool)
    special[0, 1] = True
    real = torch.ones_like(special)
    real[0, 0] = False
    sizes = scores.abs() / scores.abs().sum()
    maps = AnswerMaps(
        scores,
        per_token,
        [scores[:, NUMBERS].unflatten(-1, (2, 2))],
        [per_token[..., NUMBERS].unflatten(-1, (2, 2))],
        [TOKENS],
        [ANSWER],
        [[5, 6]],
        sizes[:, 1],
        sizes[:, 1],
        torch.zeros_like(special),
        "further passes",
        real=real,
        special=special,
        image_numbers=[[NUMBERS]],
        method="CDAM",
    )
    return replace(maps, **changes)


def words_only(scores, tokens, **changes):
    """One answer token, whose scores these are, without images."""
    scores = torch.tensor([scores], dtype=torch.float64)
    none = torch.zeros_like(scores, dtype=torch.bool)
    share = torch.zeros(1)
    maps = AnswerMaps(scores, scores[:, None], [], [], [tokens], [["yes"]], [[3]], share, share, none, "further passes")
    return replace(maps, **changes)
