"""Which nodes make a graph what it is: MHEX against GNNExplainer, Integrated Gradients and chance on BA-house graphs.

    python examples/mhex_graphs.py     # about three minutes on a core

Each graph is a random one (Barabási and Albert) with a motif attached, a house or a ring of five nodes, which is its
class; nodes have no features but a one. For each seed a GIN of three layers learns the classes, plainly and with MHEX.
Test graphs are then explained, each for its own class, all by the network with MHEX, and the scores of nodes are
compared with the motif's nodes: the area under the ROC curve within each graph. Writes `out/mhex_graphs.md`.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from seed_intervals import with_interval
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.datasets import ExplainerDataset
from torch_geometric.datasets.motif_generator import CycleMotif
from torch_geometric.explain import CaptumExplainer, Explainer, GNNExplainer
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_mean_pool

from adapters import MHEX, deep_supervision_loss
from captum_ext import MHEXExplainer

CONFIG = {"mode": "multiclass_classification", "task_level": "graph", "return_type": "raw"}
Scores = Callable[[MHEX, Data], Tensor]


class Plain(nn.Module):
    """A GIN, the mean of its nodes, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = GIN(1, 32, num_layers=3, norm="batch_norm"), nn.Linear(32, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """From nodes to the logits (graphs, 2)."""
        logits: Tensor = self.head(global_mean_pool(self.layers(x, edge_index), batch))
        return logits


def main() -> None:
    """Train, explain, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of networks to train of each kind")
    parser.add_argument("--graphs", type=int, default=600, help="number of training graphs")
    parser.add_argument("--explained", type=int, default=60, help="number of test graphs to explain")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    accuracies: dict[str, list[float]] = {"plain": [], "with MHEX": []}
    areas: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        train, test = graphs(args.graphs), graphs(args.explained)
        plain = trained(Plain(), train, args.epochs)
        model = trained(MHEX(Plain(), num_classes=2, task="graph", residual=True), train, args.epochs)
        accuracies["plain"].append(accuracy(plain, test))
        accuracies["with MHEX"].append(accuracy(model, test))
        for name, scores in METHODS.items():
            start = time.perf_counter()
            found = [scores(copy.deepcopy(model), graph) for graph in test]  # PyG's leave their masks on a network
            seconds[name].append((time.perf_counter() - start) / len(test))
            areas[name].append(sum(map(area, found, test)) / len(test))
        print(
            f"seed {seed}: {accuracies['plain'][-1]:.3f} plain, {accuracies['with MHEX'][-1]:.3f} with MHEX", flush=True
        )
        print({name: round(values[-1], 3) for name, values in areas.items()}, flush=True)
    text = "\n\n".join([_accuracies(accuracies), _areas(areas, seconds)])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mhex_graphs.md").write_text(text + "\n")
    print(text)


def graphs(count: int) -> list[Data]:
    """Graphs of 20 random nodes and a motif, a house (class 1) or a ring of five (class 0), one after the other."""
    kinds = [
        ExplainerDataset("ba", motif, 1, count // 2, {"num_nodes": 20, "num_edges": 1})
        for motif in (CycleMotif(5), "house")
    ]
    return [
        Data(torch.ones(one.num_nodes, 1), one.edge_index, y=torch.tensor([cls]), node_mask=one.node_mask)
        for pair in zip(*kinds, strict=True)
        for cls, one in enumerate(pair)
    ]


def trained(model: nn.Module, train: list[Data], epochs: int) -> nn.Module:
    """The model after so many epochs of AdamW, with MHEX by the losses of all blocks."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in DataLoader(train, 64, shuffle=True):
            given = batch.x, batch.edge_index, batch.batch
            if isinstance(model, MHEX):
                loss = deep_supervision_loss(model.deep_forward(*given), batch.y)
            else:
                loss = F.cross_entropy(model(*given), batch.y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, test: list[Data]) -> float:
    """The share of test graphs whose class is predicted."""
    (batch,) = DataLoader(test, len(test))
    return float((model(batch.x, batch.edge_index, batch.batch).argmax(1) == batch.y).float().mean())


def by(algorithm: Callable[[], object], node_mask_type: str = "object") -> Scores:
    """The scores (nodes,) of an algorithm of PyG for a graph's own class."""

    def scores(model: MHEX, graph: Data) -> Tensor:
        explainer = Explainer(model, algorithm(), "phenomenon", CONFIG, node_mask_type=node_mask_type)
        batch = torch.zeros(graph.num_nodes, dtype=torch.long)
        return explainer(graph.x, graph.edge_index, target=graph.y, batch=batch).node_mask.detach().sum(1)

    return scores


METHODS: dict[str, Scores] = {
    "MHEX": by(MHEXExplainer),
    "GNNExplainer": by(lambda: GNNExplainer(epochs=100)),
    "Integrated Gradients": by(lambda: CaptumExplainer("IntegratedGradients", n_steps=20), "attributes"),
    "random": lambda _, graph: torch.rand(graph.num_nodes),
}


def area(scores: Tensor, graph: Data) -> float:
    """The area under the ROC curve of scores of nodes for the motif's nodes."""
    return float(roc_auc_score(graph.node_mask.numpy(), scores.numpy()))


def _accuracies(found: dict[str, list[float]]) -> str:
    rows = [f"| {name} | {with_interval(values)} |" for name, values in found.items()]
    return "\n".join(["| network | test accuracy |", "|---|---|", *rows])


def _areas(areas: dict[str, list[float]], seconds: dict[str, list[float]]) -> str:
    rows = [
        f"| {name} | {with_interval(values)} | {1000 * sum(seconds[name]) / len(values):.1f} |"
        for name, values in areas.items()
    ]
    return "\n".join(["| scores of nodes | AUROC for the motif | ms a graph |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
