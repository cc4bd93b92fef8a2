"""MHEXExplainer in torch_geometric's Explainer, beside PyG's own algorithms on the same wrapper, and in its metrics."""

import pytest
import torch
from contracts import left_as_found
from mhex_networks import close

import captum_ext
from adapters import MHEX

geometric = pytest.importorskip("torch_geometric")

from torch_geometric.explain import CaptumExplainer, Explainer, GNNExplainer  # noqa: E402
from torch_geometric.explain.metric import fidelity, unfaithfulness  # noqa: E402
from torch_geometric.nn import GCN  # noqa: E402

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 5, 6], [1, 0, 2, 1, 3, 2, 6, 5]])  # 4 is isolated, 5 and 6 are far away
BATCH = torch.tensor([0, 0, 0, 0, 1, 1, 1])
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))


def wrap(task):
    torch.manual_seed(2)
    return MHEX(GCN(4, 6, 2), num_classes=3, task=task, residual=True).eval()


def explainer(model, algorithm=None, level=None, kind="model", **masks):
    config = {"mode": "multiclass_classification", "task_level": level or model.task, "return_type": "raw"}
    masks = masks or {"node_mask_type": "object", "edge_mask_type": "object"}
    return Explainer(model, algorithm or captum_ext.MHEXExplainer(alpha=0.7, beta=0.5), kind, config, **masks)


def shares(scores):
    return scores.clamp(min=0) / scores.clamp(min=0).max()


def test_of_graphs_masks_are_the_positive_shares_of_each_graphs_scores():
    model = wrap("graph")
    with left_as_found(model):
        found = explainer(model)(X, EDGES, batch=BATCH)
    likely = model(X, EDGES, BATCH).argmax(1)
    scores = captum_ext.MHEXCAM(model).attribute(X, likely, (EDGES, BATCH), alpha=0.7, beta=0.5)
    expected = torch.cat([shares(scores[g == BATCH]) for g in range(2)])
    assert expected.count_nonzero() > 2
    close(found.node_mask, expected[:, None], 1e-6)
    close(found.edge_mask, torch.stack([(expected[a] + expected[b]) / 2 for a, b in EDGES.T.tolist()]), 1e-6)
    asked = explainer(model, kind="phenomenon")(X, EDGES, batch=BATCH, target=torch.tensor([2, 0]))
    scores = captum_ext.MHEXCAM(model).attribute(X, [2, 0], (EDGES, BATCH), alpha=0.7, beta=0.5)
    close(asked.node_mask[BATCH == 0, 0], shares(scores[BATCH == 0]), 1e-6)


def test_of_one_node_the_class_is_its_own_and_nodes_that_do_not_reach_it_score_nothing():
    model = wrap("node")
    found = explainer(model, node_mask_type="object")(X, EDGES, index=0)
    cls = int(model(X, EDGES).argmax(1)[0])
    scores = captum_ext.MHEXCAM(model).attribute(X, cls, (EDGES,), alpha=0.7, beta=0.5)
    scores[3:] = 0  # two layers reach two steps
    close(found.node_mask[:, 0], shares(scores), 1e-6)
    assert found.get("edge_mask") is None


@pytest.mark.parametrize("task", ["graph", "node"])
def test_pygs_metrics_and_algorithms_take_the_wrapper(task):
    given = {"batch": BATCH} if task == "graph" else {"index": 1}
    masks = {"node_mask_type": "attributes", "edge_mask_type": "object"}
    for algorithm in (GNNExplainer(epochs=3), CaptumExplainer("IntegratedGradients", n_steps=3)):
        one = explainer(wrap(task), algorithm, **masks)  # PyG's leave their masks on a network
        found = one(X, EDGES, **given)
        assert found.node_mask.shape == (7, 4)
        assert 0 <= unfaithfulness(one, found) <= 1
    model = wrap(task)
    one, target = explainer(model, kind="phenomenon"), model(X, EDGES, BATCH).argmax(1)
    found = one(X, EDGES, **given, target=target)
    assert 0 <= unfaithfulness(one, found) <= 1
    assert all(0 <= value <= 1 for value in fidelity(one, found))
    kept = found.get_explanation_subgraph()
    assert kept.num_nodes == int((found.node_mask > 0).sum())


def test_what_does_not_fit_is_refused():
    model = wrap("graph")
    for masks in (
        {"node_mask_type": "attributes"},
        {"edge_mask_type": "object", "node_mask_type": "common_attributes"},
    ):
        with pytest.raises(ValueError, match="does not support the given explanation settings"):
            explainer(model, **masks)
    with pytest.raises(ValueError, match="task_level='graph', as the model's task is; got 'node'"):
        explainer(model, level="node")(X, EDGES, batch=BATCH)
    plain = explainer(GCN(4, 6, 2, 3), level="node")
    with pytest.raises(TypeError, match=r"Expected an adapters.MHEX"):
        plain(X, EDGES)
    with pytest.raises(ValueError, match="`batch`"):
        explainer(model)(X, EDGES)
    with pytest.raises(ValueError, match="`normalize` are not supported"):
        captum_ext.MHEXExplainer(normalize=True)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        captum_ext.Nothing  # noqa: B018
    node = wrap("node")
    classes = node(X, EDGES).argmax(1)
    different = torch.stack([(classes == cls).nonzero()[0, 0] for cls in classes.unique()])
    assert len(different) > 1
    with pytest.raises(ValueError, match="of one class, got classes"):
        explainer(node)(X, EDGES, index=different)
