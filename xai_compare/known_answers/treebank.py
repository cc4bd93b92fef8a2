"""Sentences of the Stanford Sentiment Treebank, in which people labelled every phrase down to the single word.

Socher et al. 2013, "Recursive deep models for semantic compositionality over a sentiment treebank". A small model
learns from the phrases; then a word's own label says whether it speaks for the sentence's sentiment or against it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._text_file import lines_of, text_of
from .measures import ranked_above
from .task import Conditions, Problem, Score, Task
from .texts import Reader
from .training import right_first, trained

LENGTH = 40  # words of a sentence; longer ones are left out
_NEUTRAL = 2  # of 0, very negative, to 4, very positive
_PHRASES, _STEPS = 2**17, 1200
_TOKENS = re.compile(r"\((\d)|([^\s()]+)\)|(\))")
_UNKNOWN = 1


class Phrase(NamedTuple):
    """Words, and what people thought of them together, from 0 to 4."""

    label: int
    words: list[str]


class Tree(NamedTuple):
    """A sentence.

    Attributes:
        phrases: All of its phrases, the sentence last.
        labels: Of each of its words.
    """

    phrases: list[Phrase]
    labels: list[int]

    @property
    def whole(self) -> Phrase:
        """The sentence."""
        return self.phrases[-1]


def read_tree(line: str) -> Tree:
    """A tree as the treebank writes it: "(3 (2 A) (4 (2 good) (2 film)))".

    Raises:
        ValueError: if it is none.
    """
    problem = f'Expected a tree as "(3 (2 A) (4 (2 good) (2 film)))", got {line[:60]!r}.'
    open_ones: list[Phrase] = []
    found: list[Phrase] = []
    labels: list[int] = []
    for label, word, _ in _TOKENS.findall(line):
        if label:
            open_ones.append(Phrase(int(label), []))
            continue
        if not open_ones:
            raise ValueError(problem)
        if word:
            open_ones[-1].words.append(word.lower())
            labels.append(open_ones[-1].label)
        phrase = open_ones.pop()
        found.append(phrase)
        if open_ones:
            open_ones[-1].words.extend(phrase.words)
    if open_ones or not found or not labels:
        raise ValueError(problem)
    return Tree(found, labels)


class PhraseReader(nn.Module):
    """A reader of words by their numbers, with embeddings that it learns."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.reader = Reader(LENGTH)
        width = self.reader.class_token.shape[-1]
        self.embedding, self.dropout = nn.Embedding(size, width, padding_idx=0), nn.Dropout(0.3)
        with torch.no_grad():
            self.embedding.weight.mul_(0.5)

    def embedded(self, numbers: Tensor) -> Tensor:
        """(batch, channels, 1, words)."""
        found: Tensor = self.embedding(numbers)
        return found.transpose(1, 2)[:, :, None]

    def forward(self, numbers: Tensor) -> Tensor:
        """Logits (batch, 2): negative, positive."""
        logits: Tensor = self.reader(self.dropout(self.embedded(numbers)))
        return logits


def problem(conditions: Conditions) -> Problem:
    """Test sentences with words of all three kinds, first those that the model answers rightly.

    Raises:
        ValueError: if there are no trees, or none that can be learned from or asked.
    """
    train, test = (_read(conditions, name) for name in ("train", "test"))
    told = [one for one in test if one.whole.label != _NEUTRAL and len(one.labels) <= LENGTH]
    y = _classes([one.whole for one in told])
    truth = _truth(told, y)
    all_kinds = torch.stack([one.any(1) for one in truth.values()]).all(0)
    if not all_kinds.any():
        raise ValueError(
            f"None of the {len(test)} sentences of test.txt can be explained: expected at most {LENGTH} words, some "
            "positive, some negative, some neutral."
        )
    model, numbers = _learned(train, conditions)
    x = _numbered([one.whole.words for one in told], numbers)
    order, accuracy = right_first(model, x, y)
    order = order[all_kinds[order]][: conditions.samples]
    with torch.no_grad():
        words = model.embedded(x[order])
    return Problem(model.reader, words, y[order], {name: one[order] for name, one in truth.items()}, accuracy)


def _learned(train: Sequence[Tree], conditions: Conditions) -> tuple[PhraseReader, dict[str, int]]:
    """A model of the phrases, and the numbers of its words."""
    counts = Counter(word for tree in train for word in tree.whole.words)
    numbers = {word: number for number, (word, count) in enumerate(counts.most_common(), 2) if count > 1}
    phrases = {tuple(one.words): one for tree in train for one in tree.phrases}.values()
    known = [one for one in phrases if one.label != _NEUTRAL and len(one.words) <= LENGTH]
    if not known:
        raise ValueError(
            f"None of the {len(train)} trees of train.txt has a phrase of at most {LENGTH} words that is positive or "
            "negative, of which a model could learn."
        )
    digest = hashlib.sha256(repr(known).encode()).hexdigest()
    draw = partial(_drawn, _numbered([one.words for one in known], numbers), _classes(known))
    build = partial(PhraseReader, len(numbers) + 2)
    code = (digest, PhraseReader, Reader)
    return trained("treebank", build, draw, conditions, steps=_STEPS, samples=_PHRASES, code=code), numbers


def _read(conditions: Conditions, name: str) -> list[Tree]:
    """A file of trees, one in each line."""
    folder = conditions.options.get("data")
    if not isinstance(folder, str | Path) or not (file := Path(folder) / f"{name}.txt").is_file():
        raise ValueError(
            "Expected the folder of the Stanford Sentiment Treebank with train.txt and test.txt, a tree in each line, "
            f"as an option of the task, on the command line --option sst.data=FOLDER; got {folder!r}."
        )
    return [read_tree(line) for line in lines_of(text_of(file))]


def _numbered(texts: Sequence[Sequence[str]], numbers: dict[str, int]) -> Tensor:
    """(texts, words), 0 behind the end, 1 for words that are not known."""
    found = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, words in enumerate(texts):
        found[row, : len(words)] = torch.tensor([numbers.get(word, _UNKNOWN) for word in words])
    return found


def _classes(phrases: Sequence[Phrase]) -> Tensor:
    return torch.tensor([int(one.label > _NEUTRAL) for one in phrases])


def _drawn(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(x), (count,))
    return x[rows], y[rows]


def _truth(trees: Sequence[Tree], classes: Tensor) -> dict[str, Tensor]:
    """(sentences, words): which words speak for their sentence's class, against it, and for neither."""
    labels = torch.full((len(trees), LENGTH), -1)
    for row, tree in enumerate(trees):
        labels[row, : len(tree.labels)] = torch.tensor(tree.labels)
    positive, negative = labels > _NEUTRAL, (labels >= 0) & (labels < _NEUTRAL)
    of_positive = classes[:, None] == 1
    return {
        "for": torch.where(of_positive, positive, negative),
        "against": torch.where(of_positive, negative, positive),
        "neutral": labels == _NEUTRAL,
    }


def told_apart(maps: Tensor, given: Problem) -> Tensor:
    """How often a word for the sentiment scores higher than one against it."""
    return ranked_above(maps.flatten(1), given.truth["for"], given.truth["against"])


def noticed(maps: Tensor, given: Problem) -> Tensor:
    """How often a word with a sentiment has a larger absolute score than one without."""
    return ranked_above(maps.flatten(1).abs(), given.truth["for"] | given.truth["against"], given.truth["neutral"])


TASKS = [
    Task(
        "sst",
        "Phrases of a treebank",
        "treebank",
        "Sentences of film reviews, and a small BERT-like model that learned from labelled phrases. Whether a word "
        "speaks for the sentence's sentiment or against it was said by people, who saw the word alone.",
        problem,
        {
            "signs": Score("words for it above those against it", told_apart, chance=1 / 2),
            "noticed": Score("words with a sentiment above those without, absolute values", noticed, chance=1 / 2),
        },
        note="the treebank: --option sst.data=FOLDER",
    )
]
