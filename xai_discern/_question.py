"""What the command was asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Method = Literal["cdam", "smooth-cdam", "integrated-cdam", "token-ablation", "attention", "relevance", "rollout"]
Score = Literal["logit", "log_prob"]
Excluded = Literal["first", "special"]


@dataclass(frozen=True)
class Question:
    """A question to a model, and how its answer is explained.

    Attributes:
        model: A name on the hub, or a local folder.
        ask: The question.
        image: The file of an image, or None.
        answer: The answer to explain; None: what the model generates.
        against: The answer that it is compared with, or None.
        max_new_tokens: The longest answer that is generated.
        method: The method.
        score: What is explained of each token of the answer.
        exclude: Which scores are set to 0.
        words_only: Make no map of the image.
        out: The folder to write to.
        device: Where the model runs; empty: on a GPU, if there is one.
        dtype: The type of the weights, "auto" as they were saved.
    """

    model: str
    ask: str
    image: Path | None
    answer: str | None
    against: str | None
    max_new_tokens: int
    method: Method
    score: Score
    exclude: tuple[Excluded, ...]
    words_only: bool
    out: Path
    device: str
    dtype: str
