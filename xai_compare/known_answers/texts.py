"""Sentences of which each word's part in the answer is known.

After GECO (Wilming et al. 2024): sentences about a woman or a man that differ in nothing but the words that say so.
The words enter the model as their embeddings, an image (channels, 1, words), so that every method can explain it.
"""

import torch
from torch import Tensor, nn

from .._seeding import seeded_for
from .measures import precision, transported
from .task import Conditions, Problem, Score, Task
from .training import right_first, trained

WIDTH, LAYERS, HEADS = 32, 2, 4
PAIRS = [
    ("she", "he"),
    ("her", "his"),
    ("woman", "man"),
    ("mother", "father"),
    ("sister", "brother"),
    ("aunt", "uncle"),
]
_PEOPLE = ["teacher", "doctor", "friend", "neighbour", "child", "guest", "painter", "farmer"]
_VERBS = ["saw", "found", "called", "carried", "liked", "sold", "kept", "drew"]
_THINGS = ["garden", "letter", "house", "picture", "boat", "book", "song", "lamp"]
_ADJECTIVES = ["old", "small", "bright", "quiet", "green", "heavy", "strange", "fine"]
_PLACES = ["yesterday", "outside", "again", "there", "early", "alone", "later", "nearby"]
TEMPLATES = [
    "{pronoun} {verb} the {adjective} {thing} of {possessive} {person} {place}",
    "the {person} {verb} {possessive} {adjective} {thing} and the {thing} {place}",
    "{place} the {noun} {verb} a {adjective} {thing} with the {person}",
    "a {adjective} {person} {verb} the {thing} that {pronoun} {verb} {place}",
    "the {adjective} {noun} and the {person} {verb} {possessive} {thing} {place}",
]
LENGTH = max(len(template.split()) for template in TEMPLATES)
_FIXED = ["the", "of", "and", "a", "with", "that"]
VOCABULARY = ["", *_FIXED, *(word for pair in PAIRS for word in pair)]
VOCABULARY += [*_PEOPLE, *_VERBS, *_THINGS, *_ADJECTIVES, *_PLACES]
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


class Reader(nn.Module):
    """A small BERT-like encoder of embedded words (batch, channels, 1, words) with a class token.

    Words of zeros are padding, which the model learns to pass over.
    """

    def __init__(self, length: int, width: int = WIDTH, classes: int = 2) -> None:
        super().__init__()
        self.class_token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, length + 1, width))
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        tokens = words.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(words), -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.encoder(tokens)[:, 0]))
        return logits


def embeddings(size: int, width: int = WIDTH) -> Tensor:
    """Random embeddings of the words by their numbers; the first one is padding, zeros."""
    table = torch.randn(size, width, generator=torch.Generator().manual_seed(0))
    table[0] = 0
    return table


def sentence(gender: int) -> tuple[list[str], list[bool]]:
    """The words of a sentence about a woman, 0, or a man, 1, and which of them say so."""
    template = TEMPLATES[int(torch.randint(len(TEMPLATES), ()))]
    nouns = [pair[gender] for pair in PAIRS[2:]]
    choices = {
        "{pronoun}": [PAIRS[0][gender]],
        "{possessive}": [PAIRS[1][gender]],
        "{noun}": nouns,
        "{verb}": _VERBS,
        "{person}": _PEOPLE,
        "{thing}": _THINGS,
        "{adjective}": _ADJECTIVES,
        "{place}": _PLACES,
    }
    slots = template.split()
    options = [choices.get(slot, [slot]) for slot in slots]
    words = [several[int(torch.randint(len(several), ()))] for several in options]
    return words, [slot in ("{pronoun}", "{possessive}", "{noun}") for slot in slots]


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embedded sentences (count, channels, 1, words), classes, and masks (count, words), by torch's random numbers."""
    classes = torch.randint(2, (count,))
    numbers, masks = torch.zeros(count, LENGTH, dtype=torch.long), torch.zeros(count, LENGTH, dtype=torch.bool)
    for row, gender in enumerate(classes.tolist()):
        words, says = sentence(gender)
        numbers[row, : len(words)] = torch.tensor([_NUMBERS[word] for word in words])
        masks[row, : len(words)] = torch.tensor(says)
    return embeddings(len(VOCABULARY))[numbers].transpose(1, 2)[:, :, None], classes, masks


def _batch(count: int) -> tuple[Tensor, Tensor]:
    words, classes, _ = draw(count)
    return words, classes


def _reader() -> nn.Module:
    return Reader(LENGTH)


def problem(conditions: Conditions) -> Problem:
    """Sentences that the model answers rightly."""
    code = (draw, sentence, Reader, TEMPLATES, VOCABULARY)
    model = trained("reader", _reader, _batch, conditions, steps=120, code=code)
    with seeded_for(conditions.seed, "arena test", 0):
        x, y, masks = draw(max(512, conditions.samples))
    order, accuracy = right_first(model, x, y)
    order = order[: conditions.samples]
    return Problem(model, x[order], y[order], {"masks": masks[order]}, accuracy)


def at_the_words(maps: Tensor, given: Problem) -> Tensor:
    """The precision at the number of words that decide."""
    return precision(maps, given.truth["masks"])


def moved(maps: Tensor, given: Problem) -> Tensor:
    """The earth mover's distance along the sentence, of absolute values."""
    return transported(maps, given.truth["masks"][:, None])


TASKS = [
    Task(
        "gender",
        "Words that decide",
        "texts",
        "Sentences about a woman or a man, and a small BERT-like model. The words that say which one are known.",
        problem,
        {
            "precision": Score("precision at the number of words", at_the_words),
            "emd": Score("1 - earth mover's distance", moved),
        },
    )
]
