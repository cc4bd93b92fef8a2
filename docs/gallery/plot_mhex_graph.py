"""
Which nodes make a graph what it is
===================================

A random graph has a motif attached, a house or a ring of five nodes, and the motif is its class. A graph network with
``MHEX`` scores all nodes of a batch of graphs in one forward pass. The nodes of the motif are known, so the scores
can be checked.
"""

# %%
# Graphs with a known motif
# -------------------------
#
# Random graphs of 20 nodes (Barabási and Albert), by torch_geometric. Nodes have no features but a one, so that only
# the edges can tell.

import matplotlib.pyplot as plt
import networkx
import torch
from sklearn.metrics import roc_auc_score
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import ExplainerDataset
from torch_geometric.datasets.motif_generator import CycleMotif
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN
from torch_geometric.utils import to_networkx

from adapters import MHEX, deep_supervision_loss
from captum_ext import MHEXCAM

seed_everything(0)  # torch_geometric draws graphs by several random generators


def graphs(count):
    """So many graphs with a ring (class 0) and so many with a house (class 1)."""
    found = []
    for label, motif in enumerate((CycleMotif(5), "house")):
        for one in ExplainerDataset("ba", motif, 1, count, {"num_nodes": 20, "num_edges": 1}):
            one = Data(torch.ones(one.num_nodes, 1), one.edge_index, y=torch.tensor([label]), motif=one.node_mask)
            found.append(one)
    return found


train, test = graphs(100), graphs(30)

# %%
# A graph network with MHEX
# -------------------------

model = MHEX(GIN(1, 32, num_layers=3, norm="batch_norm"), num_classes=2, task="graph", residual=True)
optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
for _ in range(20):
    for batch in DataLoader(train, 64, shuffle=True):
        loss = deep_supervision_loss(model.deep_forward(batch.x, batch.edge_index, batch.batch), batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval()
(batch,) = DataLoader(test, len(test))
with torch.no_grad():
    right = model(batch.x, batch.edge_index, batch.batch).argmax(1) == batch.y
print(f"{right.float().mean():.0%} of test graphs are told rightly")

# %%
# Scores of all nodes
# -------------------
#
# One call explains each graph for its own class. The area under the ROC curve says whether nodes of the motif are
# scored above the others: 0.5 is chance.

scores = MHEXCAM(model).attribute(batch.x, target=batch.y, additional_forward_args=(batch.edge_index, batch.batch))
parts = [scores[batch.batch == number].detach() for number in range(len(test))]
areas = torch.tensor([roc_auc_score(one.motif, part) for one, part in zip(test, parts, strict=True)])
for label, name in enumerate(("ring", "house")):
    print(f"{name}: area {areas[batch.y == label].mean():.2f}, the mean of {int((batch.y == label).sum())} graphs")

figure, axes = plt.subplots(2, 2, figsize=(7, 6.6), layout="constrained")
for axis, number in zip(axes.flat, (0, 1, 30, 31), strict=True):
    graph = to_networkx(test[number], to_undirected=True)
    places = networkx.kamada_kawai_layout(graph)
    limit = float(parts[number].abs().max())
    edge = ["black" if inside else "lightgrey" for inside in test[number].motif]
    networkx.draw_networkx_edges(graph, places, ax=axis, edge_color="grey")
    networkx.draw_networkx_nodes(
        graph, places, ax=axis, node_color=parts[number], cmap="RdBu_r", vmin=-limit, vmax=limit, node_size=170,
        edgecolors=edge, linewidths=2.5,
    )  # fmt: skip
    axis.set_title(f"{('ring', 'house')[int(test[number].y)]}: area {areas[number]:.2f}", fontsize=13)
    axis.set_axis_off()
figure.suptitle("Red speaks for the class, blue against it; the motif has black rims", fontsize=13)
plt.show()

# %%
# What this shows, and what it does not
# -------------------------------------
#
# One pass scores the nodes of all graphs. A layer of a graph network sees one step further, so after three layers a
# node beside the motif knows of it, and may rightly be scored: the motif is where the answer comes from, not the only
# place where the network may read it. One seed of a small network is shown; the page on MHEX of graphs has three, and
# other explainers beside it.
