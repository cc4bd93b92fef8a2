"""CDAM and MHEX on a real MiniLM: which words speak for a good review, and which words carry a topic?

    python examples/real_texts.py --data sst                                # downloads all-MiniLM-L6-v2
    python examples/real_texts.py --data ag_news/test.csv --text FOLDER     # see news.py; weights in a folder

`sst` is a folder with train.txt, dev.txt and test.txt of the Stanford Sentiment Treebank
(https://github.com/munikarmanish/RNTN, folder `trees`), where each word has a label, too. MiniLM is fine-tuned plainly
and with MHEX. Of the treebank each method scores the words of test sentences for "positive"; the AUROC says whether
words that people call positive score higher than those they call negative. Of both data the words with the highest
scores for the predicted class are masked, 10 % of the tokens, and the loss of probability counts. Writes
real_texts_DATA.md and .csv to `out/`; an interrupted training resumes.
"""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from box_evidence import RESAMPLES, bootstrapped
from news import load_news
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm
from training import ADAMW, ClassifierTrainer, accuracy, arguments
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from adapters import MHEX
from captum_ext import CDAM, MHEXCAM, AttentionMap, IntegratedCDAM, RelevancePropagation, TokenAblation
from quantus_metrics import RemovalDrop
from xai_compare._statistics import holm, pairwise

TOKENS = 40
NEUTRAL = 2  # of the treebank's labels from 0 to 4
Explain = Callable[[Tensor, Tensor, Tensor], Tensor]


class Texts(TensorDataset):
    """Token ids (texts, tokens), attention mask, classes, of each token the number of its word or -1; words' labels.

    words: For each text the labels of its words, from 0 to 4; empty where words have no labels.
    """

    def __init__(self, ids: Tensor, mask: Tensor, labels: Tensor, places: Tensor, words: list[list[int]]) -> None:
        super().__init__(ids, mask, labels)
        self.places, self.words = places, words

    def part(self, count: int, seed: int = 0) -> "Texts":
        """Some texts, chosen at random."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        words = [self.words[i] for i in chosen.tolist()] if self.words else []
        return Texts(*(tensor[chosen] for tensor in (*self.tensors, self.places)), words)


def main(given: list[str] | None = None) -> None:
    """Fine-tune, explain, score, print."""
    args = _arguments(given)
    start = time.perf_counter()
    tokenizer = Tokenizer.from_file(str(Path(args.text) / "tokenizer.json")) if Path(args.text).is_dir() else None
    tokenizer = tokenizer or Tokenizer.from_pretrained(args.text)
    data = load_texts(Path(args.data), tokenizer)
    train, validation = data["train"].part(args.train), data["validation"].part(args.texts)
    test, name = data["test"].part(args.texts), Path(args.data).stem.lower()
    models: dict[str, Any] = {}
    for kind in ("plain", "MHEX"):
        torch.manual_seed(args.seed)
        bert = classifier(args, int(data["train"].tensors[2].max()) + 1)
        models[kind] = MHEX(bert) if kind == "MHEX" else bert
        folder = args.out / "training" / f"{name}-{kind.lower()}-{args.seed}"
        recipe = ADAMW | {"learning_rate": args.learning_rate, "num_train_epochs": args.epochs, "seed": args.seed}
        how = arguments(folder, per_device_train_batch_size=16, resume=True, use_cpu=True, **recipe)
        ClassifierTrainer(models[kind], how, train, validation).fit()
    right = {kind: accuracy(model, test)["test_accuracy"] for kind, model in models.items()}
    scores = scored(models, test, tokenizer)
    scores.to_csv(args.out / f"real_texts_{name}.csv", index=False)
    lines = [f"{len(train)} texts to learn from, {len(test)} to test."]
    lines += [f"Accuracy: {', '.join(f'{kind} {share:.1%}' for kind, share in right.items())}.", "", report(scores)]
    text = "\n".join([*lines, "", f"{time.perf_counter() - start:.0f} s"])
    (args.out / f"real_texts_{name}.md").write_text(text + "\n")
    print(text)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the treebank's folder, or a csv file of AG News")
    parser.add_argument("--text", default="sentence-transformers/all-MiniLM-L6-v2", help="name or folder of a BERT")
    parser.add_argument("--train", type=int, default=1500, help="number of training texts")
    parser.add_argument("--texts", type=int, default=300, help="number of test texts to explain")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--random", action="store_true", help="a small BERT with random weights, to try the script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args(given)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def classifier(args: argparse.Namespace, classes: int) -> BertForSequenceClassification:
    """The pretrained encoder with a new head, its attention computed in the open."""
    if args.random:
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
        return BertForSequenceClassification(BertConfig(**sizes, num_labels=classes, attn_implementation="eager"))
    found: BertForSequenceClassification = AutoModelForSequenceClassification.from_pretrained(
        args.text, num_labels=classes, attn_implementation="eager"
    )
    return found


def load_texts(path: Path, tokenizer: Tokenizer) -> dict[str, Texts]:
    """The splits of the treebank's sentences that are positive or negative, or of AG News.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if path.is_dir() and (path / "test.txt").exists():
        splits = {"train": "train", "validation": "dev", "test": "test"}
        return {split: _encoded(*read_trees(path / f"{name}.txt"), tokenizer) for split, name in splits.items()}
    news = load_news(path)
    return {
        split: _encoded([text.split() for text in one.texts], one.tensors[2].tolist(), [], tokenizer)
        for split, one in news.items()
    }


def read_trees(file: Path) -> tuple[list[list[str]], list[int], list[list[int]]]:
    """Of each sentence that is not neutral the words, whether it is positive, and the label of each word."""
    texts, labels, of_words = [], [], []
    for line in file.read_text(encoding="utf-8").splitlines():
        whole = int(line[1])
        leaves = re.findall(r"\((\d) ([^()]+)\)", line)
        if whole != NEUTRAL and leaves:
            texts.append([word.replace("-LRB-", "(").replace("-RRB-", ")") for _, word in leaves])
            labels.append(int(whole > NEUTRAL))
            of_words.append([int(label) for label, _ in leaves])
    return texts, labels, of_words


def _encoded(texts: list[list[str]], labels: list[int], words: list[list[int]], tokenizer: Tokenizer) -> Texts:
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), length=TOKENS)
    found = tokenizer.encode_batch(texts, is_pretokenized=True)
    places = [[-1 if word is None else word for word in one.word_ids] for one in found]
    ids, mask = ([getattr(one, key) for one in found] for key in ("ids", "attention_mask"))
    return Texts(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels), torch.tensor(places), words)


def methods(models: dict[str, Any]) -> dict[str, tuple[nn.Module, Explain]]:
    """Of each method the model that it explains, and a function of ids, mask and classes."""
    plain, mhex = models["plain"], models["MHEX"]
    explainers = {
        "CDAM": CDAM(plain),
        "Integrated CDAM": IntegratedCDAM(plain),
        "CDAM, layer before": CDAM(plain, attention=-2),
        "token ablation": TokenAblation(plain),
        "attention": AttentionMap(plain),
        "relevance propagation": RelevancePropagation(plain),
    }

    def of(explainer: Any) -> Explain:
        return lambda ids, mask, classes: explainer.attribute(ids, classes, mask).detach()

    def evidence(ids: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
        return MHEXCAM(mhex).attribute(ids, classes, mask, gamma_pos=0.0, gamma_neg=0.0).detach()

    def noise(ids: Tensor, *_: Tensor) -> Tensor:
        return torch.rand(ids.shape, generator=torch.Generator().manual_seed(int(ids.sum())))

    found: dict[str, tuple[nn.Module, Explain]] = {name: (plain, of(one)) for name, one in explainers.items()}
    return found | {"MHEX": (mhex, evidence), "random": (plain, noise)}


def scored(models: dict[str, Any], test: Texts, tokenizer: Tokenizer) -> pd.DataFrame:
    """The columns sample, method, metric and score: AUROC of words, where they have labels, and loss by removal."""
    ids, mask, _ = test.tensors
    drop = RemovalDrop(
        mask_id=tokenizer.token_to_id("[MASK]"), pad_id=tokenizer.token_to_id("[PAD]"), disable_warnings=True
    )
    rows: list[dict[str, Any]] = []
    for method, (model, explain) in tqdm(methods(models).items(), desc="explaining", unit="method"):
        if test.words:
            for sample, value in enumerate(aurocs(_maps(explain, ids, mask, torch.ones(len(ids)).long()), test)):
                rows.append({"sample": sample, "method": method, "metric": "AUROC of words", "score": value})
        with torch.no_grad():
            classes = torch.cat([_Logits(model)(*part).argmax(1) for part in _parts(ids, mask)])
        maps = _maps(explain, ids, mask, classes)
        maps = maps.masked_fill(test.places < 0, float(maps.min()) - 1)  # special tokens are never masked
        for sample, value in enumerate(drop(_Logits(model), ids.numpy(), classes.numpy(), maps.numpy())):
            rows.append({"sample": sample, "method": method, "metric": "loss by removal", "score": float(value)})
    return pd.DataFrame(rows)


class _Logits(nn.Module):
    """The logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.model(ids, attention_mask=attention_mask)
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return logits


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(50) for tensor in tensors), strict=True))


def _maps(explain: Explain, ids: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
    return torch.cat([explain(*part) for part in _parts(ids, mask, classes)])


def aurocs(maps: Tensor, test: Texts) -> list[float]:
    """Of each sentence that has positive and negative words, how well scores tell them apart; else NaN.

    Args:
        maps: (sentences, tokens); a word's score is the sum over its tokens.
        test: The sentences.
    """
    found = []
    for heat, place, labels in zip(maps, test.places, test.words, strict=True):
        of_words = torch.zeros(len(labels)).index_add(0, place[place >= 0], heat[place >= 0].float()).numpy()
        seen = np.isin(np.arange(len(labels)), place.numpy())  # not cut off
        told = seen & (np.array(labels) != NEUTRAL)
        positive = np.array(labels)[told] > NEUTRAL
        both = 0 < positive.sum() < len(positive)
        found.append(float(roc_auc_score(positive, of_words[told])) if both else np.nan)
    return found


def report(scores: pd.DataFrame) -> str:
    """Means with intervals over texts, and paired tests against CDAM."""
    metrics, names = list(scores.metric.unique()), list(scores.method.unique())
    others = [name for name in names if name != "CDAM"]
    lines = [f"| method | {' | '.join(f'{metric} | CDAM higher: effect, p' for metric in metrics)} |"]
    lines.append("|---" * (1 + 2 * len(metrics)) + "|")
    tests = {}
    for metric in metrics:
        found = pd.concat([pairwise(scores, [metric], ["CDAM", one], RESAMPLES, 0) for one in others])
        tests[metric] = found.assign(p=holm(found.p.reset_index(drop=True)).to_numpy()).set_index("method_b")
    for name in names:
        cells = []
        for metric in metrics:
            test = tests[metric]
            cells.append(bootstrapped(scores[(scores.method == name) & (scores.metric == metric)].score))
            cells.append("" if name == "CDAM" else f"{test.effect[name]:+.2f}, {test.p[name]:.1g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
