"""MHEX's token saliency against Shapley values and Integrated Gradients on AG News, as in Sun and Liò 2025.

    python examples/mhex_text_table.py --data ag_news/test.csv     # see news.py

For each seed a small BERT learns from scratch, plainly and with MHEX; the test accuracy of both is compared. Test texts
are explained by the MHEX model, each for its own class, and scored by AVG Drop: how much of the class's probability is
lost when the top 10 % of the tokens are masked. Shapley values are sampled (Captum's ShapleyValueSampling, 5
permutations: SHAP in full takes 2^N passes). Writes mhex_news.md and .csv to `out/`; an interrupted run
resumes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerIntegratedGradients, ShapleyValueSampling
from mhex_table import accuracy_table
from news import News, load_news, token
from torch import Tensor, nn
from tqdm import tqdm
from train_mhex_bert import small_bert
from training import ADAMW, ClassifierTrainer, accuracy, arguments

from adapters import MHEX
from captum_ext import MHEXCAM
from quantus_metrics import RemovalDrop

SPECIAL = ("[CLS]", "[SEP]", "[PAD]")
PERMUTATIONS = 5
Explain = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    """Train, explain, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a csv file of AG News, or a folder with its test.csv")
    parser.add_argument("--seeds", type=int, default=3, help="number of models to train of each kind")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=512, help="number of test texts to explain")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    news = load_news(args.data)
    accuracies, scores = [], []
    for seed in range(args.seeds):
        folder = args.out / "training" / f"news-{seed}"
        torch.manual_seed(seed)
        plain = small_bert(news["train"])
        torch.manual_seed(seed)
        model = MHEX(small_bert(news["train"]))
        found = {"plain": plain, "MHEX": model}
        accuracies.append({name: trained(one, news, folder / name.lower(), args, seed) for name, one in found.items()})
        scores += [{"seed": seed} | row for row in scored(model, plain, news["test"], args.texts)]
    table = pd.DataFrame(scores)
    table.to_csv(args.out / "mhex_news.csv", index=False)
    text = report(pd.DataFrame(accuracies), table)
    (args.out / "mhex_news.md").write_text(text)
    print(text)


def trained(model: nn.Module, news: dict[str, News], out: Path, args: argparse.Namespace, seed: int) -> float:
    """Train a model, resume, or load what was trained before; returns the test accuracy in percent."""
    recipe = ADAMW | {"learning_rate": 5e-4, "patience": 2, "num_train_epochs": args.epochs, "seed": seed}
    given = arguments(out, per_device_train_batch_size=32, resume=True, **recipe)
    ClassifierTrainer(model, given, news["train"], news["validation"]).fit()
    share = accuracy(model, news["test"], given)["test_accuracy"]
    model.cpu()
    return 100 * share


def methods(model: MHEX, news: News) -> dict[str, Explain]:
    """Functions of ids, masks and classes that return scores (texts, tokens)."""
    pad, mask_id = token(news, "[PAD]"), token(news, "[MASK]")
    embeddings = model.backbone.get_input_embeddings()
    gradients = LayerIntegratedGradients(lambda ids, mask: model(ids, attention_mask=mask), embeddings)
    sampling = ShapleyValueSampling(lambda ids, mask: model(ids, attention_mask=mask).softmax(1))

    def mhex(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return MHEXCAM(model).attribute(ids, labels, mask, gamma_pos=0.0, gamma_neg=0.0)

    def integrated(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        baseline = torch.where(mask.bool(), mask_id, pad)
        return gradients.attribute(
            ids, baseline, labels, additional_forward_args=(mask,), n_steps=20, internal_batch_size=256
        ).sum(2)

    @torch.no_grad()
    def shapley(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        length = int(mask.sum(1).max())
        ids, mask = ids[:, :length], mask[:, :length]
        found = sampling.attribute(ids, mask_id, labels, (mask,), n_samples=PERMUTATIONS, perturbations_per_eval=1)
        return nn.functional.pad(found.float(), (0, news.tensors[0].shape[1] - length))

    return {"MHEX": mhex, "Integrated Gradients": integrated, "Shapley value sampling": shapley, "random": _random}


def _random(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(int(ids.sum())))


def scored(model: MHEX, judge: nn.Module, test: News, count: int) -> list[dict[str, object]]:
    """AVG Drop of each method's top 10 % tokens, by the model itself and by the plain one."""
    ids, mask, labels = (tensor[:count] for tensor in test.tensors)
    special = torch.isin(ids, torch.tensor([token(test, name) for name in SPECIAL]))
    drop = RemovalDrop(mask_id=token(test, "[MASK]"), pad_id=token(test, "[PAD]"), disable_warnings=True)
    rows: list[dict[str, object]] = []
    for method, explain in tqdm(methods(model, test).items(), desc="explaining", unit="method"):
        parts = zip(ids.split(64), mask.split(64), labels.split(64), strict=True)
        scores = torch.cat([explain(*part).detach() for part in parts])
        scores = scores.masked_fill(special, float(scores.min()) - 1)  # special tokens are never masked
        for by, network in (("itself", model), ("plain BERT", judge)):
            values = drop(network, ids.numpy(), labels.numpy(), scores.numpy())
            rows.append({"method": method, "by": by, "AVG Drop": float(np.mean(values))})
    return rows


def report(accuracies: pd.DataFrame, scores: pd.DataFrame) -> str:
    """The tables."""
    lines = accuracy_table(accuracies)
    table = scores.groupby(["method", "by"], sort=False)["AVG Drop"].agg(["mean", "std"]).fillna(0)
    cells = {key: f"{row['mean']:.4f} ± {row['std']:.4f}" for key, row in table.iterrows()}
    lines += ["| AVG Drop, top 10 % of the tokens masked | of the model itself | of the plain BERT |", "|---|---|---|"]
    lines += [
        f"| {method} | {cells[method, 'itself']} | {cells[method, 'plain BERT']} |" for method in scores.method.unique()
    ]
    return "\n".join(lines) + "\n\nMeans ± standard deviations over seeds; higher is better.\n"


if __name__ == "__main__":
    main()
