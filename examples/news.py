"""News texts of AG News as token ids, with a vocabulary made of the training texts, or that of a pretrained model.

To get the data: the csv files of "Character-level Convolutional Networks for Text Classification" (X. Zhang et al.),
for non-commercial research. Rows are a class from 1 to 4, a title and a description. Of one file the first 70 % of a
fixed shuffle are for training, 15 % for validation and 15 % for tests.
"""

import csv
from pathlib import Path
from typing import Literal

import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.processors import BertProcessing
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
SHARES = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1.0)}
TOKENS = 64
VOCABULARY = 8000
Split = Literal["train", "validation", "test"]


class News(TensorDataset):
    """Token ids (texts, 64), their attention mask, and classes from 0 to 3; `texts` and `tokenizer` beside them."""

    def __init__(self, texts: list[str], labels: list[int], tokenizer: Tokenizer | BertWordPieceTokenizer) -> None:
        self.texts, self.tokenizer, self.classes = texts, tokenizer, CLASSES
        encoded = tokenizer.encode_batch(texts)
        super().__init__(
            torch.tensor([one.ids for one in encoded]),
            torch.tensor([one.attention_mask for one in encoded]),
            torch.tensor(labels),
        )

    def words(self, index: int) -> list[str]:
        """The tokens of one text, without padding."""
        ids, mask, _ = self[index]
        return [self.tokenizer.id_to_token(int(i)) for i in ids[: int(mask.sum())]]


def load_news(path: str | Path, pretrained: str | None = None) -> dict[str, News]:
    """The three splits of a csv file of AG News, or of `test.csv` in a folder, in the vocabulary of a pretrained model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its rows are others than a class, a title and a description.
    """
    file = Path(path) / "test.csv" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise FileNotFoundError(f"Expected a csv file of AG News, or a folder with its test.csv; nothing at {file}.")
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(opened))
    wrong = [i for i, row in enumerate(rows) if len(row) != 3 or row[0] not in ("1", "2", "3", "4")]
    if wrong or not rows:
        raise ValueError(f"Expected rows of a class from 1 to 4, a title and a description in {file}; see row {wrong}.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    parts = {
        split: [rows[i] for i in order[int(first * len(rows)) : int(last * len(rows))]]
        for split, (first, last) in SHARES.items()
    }
    texts = {split: [f"{title}. {text}".replace("\\", " ") for _, title, text in part] for split, part in parts.items()}
    tokenizer = Tokenizer.from_pretrained(pretrained) if pretrained else _trained(texts["train"])
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), length=TOKENS)
    return {split: News(texts[split], [int(row[0]) - 1 for row in part], tokenizer) for split, part in parts.items()}


def _trained(texts: list[str]) -> BertWordPieceTokenizer:
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    separator, first = ((name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]"))
    tokenizer.post_processor = BertProcessing(separator, first)
    return tokenizer


def token(news: News, name: str) -> int:
    """The id of a special token, as [MASK]."""
    return int(news.tokenizer.token_to_id(name))


def batches(news: News, size: int) -> list[tuple[Tensor, ...]]:
    """All texts, some at a time."""
    return list(zip(*(tensor.split(size) for tensor in news.tensors), strict=True))
