"""Train MHEX on news texts: a BERT with a gate and a classifier in each layer.

    python examples/train_mhex_bert.py --data ag_news/test.csv                       # a small BERT from scratch
    accelerate launch examples/train_mhex_bert.py --data train.csv --model bert-base-uncased

With the name of a pretrained model as in the paper: AdamW with learning rate 2e-5, batches of 32, early stopping on the
validation loss. Without it a small BERT learns from scratch, at 5e-4. `--plain` trains the same BERT without MHEX.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from news import News, load_news, token
from torch import nn
from training import ADAMW, ClassifierTrainer, accuracy, parse
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from adapters import MHEX


@dataclass
class TextOptions:
    """Texts, and a model for them."""

    data: str = field(metadata={"help": "a csv file of AG News, or a folder with its test.csv"})
    model: str | None = field(default=None, metadata={"help": "a pretrained model; None: a small BERT from scratch"})
    plain: bool = field(default=False, metadata={"help": "without MHEX"})

    def classifier(self, news: News) -> nn.Module:
        """A BERT for the classes of the news, with MHEX unless it is to be plain."""
        if self.model:
            pretrained = AutoModelForSequenceClassification.from_pretrained
            bert: nn.Module = pretrained(self.model, num_labels=len(news.classes))
        else:
            bert = small_bert(news)
        return bert if self.plain else MHEX(bert)


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


def main(given: Sequence[str] | None = None) -> None:
    """Train, save, evaluate on test texts."""
    defaults = ADAMW | {"learning_rate": 0.0, "output_dir": "out/mhex_bert", "num_train_epochs": 5, "patience": 2}
    args, options = parse(TextOptions, __doc__, given, per_device_train_batch_size=32, **defaults)
    args.learning_rate = args.learning_rate or (2e-5 if options.model else 5e-4)
    news = load_news(options.data, options.model)
    model = options.classifier(news["train"])
    trainer = ClassifierTrainer(model, args, news["train"], news["validation"], options=options)
    trainer.fit()
    found = accuracy(model, news["test"], args)
    if trainer.is_world_process_zero():
        print(f"test accuracy {found['test_accuracy']:.1%}; wrote {args.output_dir}")


if __name__ == "__main__":
    main()
