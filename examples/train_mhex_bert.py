"""Train MHEX on news texts: a BERT with a gate and a classifier in each layer.

    python examples/train_mhex_bert.py --data ag_news/test.csv                       # a small BERT from scratch
    accelerate launch examples/train_mhex_bert.py --data train.csv --model bert-base-uncased --epochs 5

With the name of a pretrained model as in the paper: AdamW with learning rate 2e-5, batches of 32, early stopping on the
validation loss. Without it a small BERT learns from scratch, at 5e-4. `--plain` trains the same BERT without MHEX.
"""

import argparse
from pathlib import Path

import torch
from news import News, load_news, token
from run_folder import BEST, load_weights
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from train_mhex import DeepLogits, deep_loss
from training import Progress, Settings, Trainer, learned
from training_options import add_options, settings_of
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from adapters import MHEX


def small_bert(news: News) -> BertForSequenceClassification:
    """Four layers of 128 channels, which learn on a processor in minutes."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=news.tokenizer.get_vocab_size(),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=64,
            pad_token_id=token(news, "[PAD]"),
            num_labels=len(news.classes),
        )
    )


class Logits(nn.Module):
    """A plain BERT from ids and mask to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.model(ids, attention_mask=mask).logits
        return logits


def plain_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The cross-entropy of a batch."""
    return nn.functional.cross_entropy(model(*batch[:-1]), batch[-1])


def text_scores(model: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Cross-entropy, and whether the largest logit is that of the label, for each text."""
    logits = model(*batch[:-1]).float()
    loss = nn.functional.cross_entropy(logits, batch[-1], reduction="none")
    return {"loss": loss, "accuracy": (logits.argmax(1) == batch[-1]).float()}


def fit(model: nn.Module, news: dict[str, News], settings: Settings, out: Path, rate: float, **how: bool) -> Progress:
    """Train an MHEX, or a plain BERT; afterwards it has the weights of the epoch with the smallest validation loss."""
    deep = isinstance(model, MHEX)
    trained = DeepLogits(model) if deep else Logits(model)
    progress = Trainer(settings).fit(
        trained,
        news["train"],
        news["validation"],
        loss=deep_loss if deep else plain_loss,
        scores=text_scores,
        optimizer=torch.optim.AdamW(learned(model), rate),
        schedule=CosineAnnealingLR,
        out=out,
        description={"deep": deep, "learning_rate": rate},
        **how,
    )
    load_weights(trained, out / BEST)
    return progress


def main() -> None:
    """Train, save, evaluate on test texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a csv file of AG News, or a folder with its test.csv")
    parser.add_argument("--model", help="a pretrained model of transformers; without it a small BERT from scratch")
    parser.add_argument("--plain", action="store_true", help="without MHEX")
    add_options(parser, Path("out/mhex_bert"), epochs=5, learning_rate=0.0)
    parser.set_defaults(batch_size=32, patience=2)
    args = parser.parse_args()

    news = load_news(args.data, args.model)
    settings = settings_of(args)
    trainer = Trainer(settings)
    if args.model:
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=4)
    else:
        model = small_bert(news["train"])
    model = model if args.plain else MHEX(model)
    rate = args.learning_rate or (2e-5 if args.model else 5e-4)
    fit(model, news, settings, args.out, rate, resume=args.resume, overwrite=args.overwrite)
    if trainer.accelerator.is_main_process:
        model.save_pretrained(args.out)
    found = trainer.evaluate(Logits(model) if args.plain else DeepLogits(model), news["test"], text_scores)
    trainer.accelerator.print(f"test accuracy {found['accuracy']:.1%}; wrote {args.out}")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
