"""MHEX of graphs and nodes against the specification, written out layer by layer and graph by graph."""

import copy

import pytest
import torch
from contracts import Breaks, in_threads, left_as_found
from mhex_networks import close
from torch import nn

from adapters import MHEX, collaboration, deep_supervision_loss
from adapters.wrappers.gate_places import of_tokens
from captum_ext import MHEXCAM

geometric = pytest.importorskip("torch_geometric.nn")

FEATURES, WIDTH, CLASSES, LAYERS = 4, 6, 3, 3
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 4, 5, 6, 8], [1, 0, 2, 1, 4, 3, 5, 4, 5, 8]])  # node 7 is isolated
BATCH = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
NO_SHARPNESS = {"beta": 1.0, "gamma_pos": 0, "gamma_neg": 0}


def nodes(count=9):
    return torch.randn(count, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


class Deep(nn.Module):
    """DeepGCN, with residual additions of its own in front of the readout."""

    def __init__(self, kind="res+"):
        super().__init__()
        self.enter, self.leave = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 5)
        layer = geometric.DeepGCNLayer
        self.layers = nn.ModuleList(
            layer(geometric.GENConv(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), block=kind) for _ in range(LAYERS)
        )

    def forward(self, x, edge_index, batch=None):
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, edge_index)
        return self.leave(x if batch is None else geometric.global_mean_pool(x, batch))


class Skips(nn.Module):
    """GINs in the code of a user, whose additions are in its own forward, and a layer without one in front."""

    def __init__(self):
        super().__init__()
        mlps = [
            nn.Sequential(nn.Linear(n, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)) for n in (FEATURES, WIDTH, WIDTH)
        ]
        self.first, self.second, self.third = (geometric.GINConv(mlp) for mlp in mlps)

    def forward(self, x, edge_index):
        x = self.first(x, edge_index).relu()
        x = x + self.second(x, edge_index)
        return self.third(x.relu(), edge_index) + x


def basic(kind, **options):
    return getattr(geometric, kind)(FEATURES, WIDTH, LAYERS, 5, **options)


NETS = {
    "GCN": lambda: basic("GCN"),
    "GAT": lambda: basic("GAT", heads=2),
    "GIN": lambda: basic("GIN"),
    "GraphSAGE": lambda: basic("GraphSAGE", jk="cat"),
    "DeepGCN": Deep,
    "DeepGCN, res": lambda: Deep("res"),
    "GIN, skips": Skips,
}
each_net = pytest.mark.parametrize("name", NETS)
each_task = pytest.mark.parametrize("task", ["graph", "node"])


def wrap(name, task="graph", seed=0, **options):
    """A wrapper in float64; gates, heads and shortcuts at random."""
    torch.manual_seed(seed)
    wrapper = MHEX(NETS[name]().double(), task=task, **{"num_classes": CLASSES, "residual": True} | options).eval()
    for p in wrapper.blocks.parameters():
        nn.init.normal_(p, std=0.8)
    return wrapper


def graph_means(tensor, batch):
    return torch.stack([tensor[batch == g].mean(0) for g in range(int(batch.max()) + 1)])


def gate(block, x, r, task, batch, steps, gated=True):
    """sigmoid(s) x + r of nodes; y and x + r are noted."""
    z = (x + r).clamp(min=0) if task == "node" else (graph_means(x, batch) + graph_means(r, batch)).clamp(min=0)
    s = torch.einsum("ij,vj->vi", block.gate.weight, z)
    steps.append((torch.einsum("ci,vi->vc", block.head.weight, s), x + r))
    strength = 1 / (1 + (-s).exp())
    return (strength if task == "node" else strength[batch]) * x + r if gated else x + r


def derive(name, wrapper, x, edges, batch, task):
    """(y, x + r) of each block."""
    net, steps, blocks = wrapper.backbone, [], iter(wrapper.mhex_blocks)
    if name.startswith("DeepGCN"):
        x = net.enter(x)
        for layer in net.layers:
            r = layer.conv(layer.norm(x).clamp(min=0), edges) if name == "DeepGCN" else None
            r = layer.norm(layer.conv(x, edges)).clamp(min=0) if r is None else r
            x = gate(next(blocks), x, r, task, batch, steps)
        return steps
    if name == "GIN, skips":
        block = next(blocks)
        x = gate(block, block.shortcut(x), net.first(x, edges), task, batch, steps).clamp(min=0)
        x = gate(next(blocks), x, net.second(x, edges), task, batch, steps)
        gate(next(blocks), x, net.third(x.clamp(min=0), edges), task, batch, steps)
        return steps
    for i, conv in enumerate(net.convs):
        block = next(blocks)
        v = x if isinstance(block.shortcut.projection, nn.Identity) else x @ block.shortcut.projection.weight.T
        x = gate(block, block.shortcut.scale * v, conv(x, edges), task, batch, steps)
        x = x.clamp(min=0) if i < LAYERS - 1 or hasattr(net, "jk") else x
    return steps


@pytest.mark.sampled(5)
@each_net
@each_task
def test_logits_and_saliency_equal_the_formulas(name, task):
    wrapper, x = wrap(name, task), nodes()
    steps = derive(name, wrapper, x, EDGES, BATCH, task)
    assert len(wrapper.names) == len(steps) == LAYERS
    close(wrapper.deep_forward(x, EDGES, BATCH), [y for y, _ in steps])
    close(wrapper(x, EDGES, batch=BATCH), steps[-1][0])
    assert len(steps[0][0]) == (3 if task == "graph" else 9)
    targets = torch.tensor([2, 0, 1]) if task == "graph" else torch.arange(9) % CLASSES
    each = targets[BATCH] if task == "graph" else targets
    maps = []
    for block, (_, total) in zip(wrapper.mhex_blocks, steps, strict=True):
        matrix = torch.einsum("cm,mj->cj", block.head.weight, block.gate.weight)
        positive, negative = matrix.clamp(min=0), (-matrix).clamp(min=0)
        e = positive * (positive / (positive.sum(0) + 1e-8) >= 0.35)
        e = e - 0.6 * negative * (negative / (negative.sum(0) + 1e-8) >= 0.25)
        maps.append(torch.stack([(e[c] * t).sum() for c, t in zip(each, total, strict=True)]))
    settings = {"beta": 0.6, "gamma_pos": 0.35, "gamma_neg": 0.25}
    explain = MHEXCAM(wrapper).attribute
    close(explain(x, targets, (EDGES, BATCH), per_layer=True, **settings), torch.stack(maps, 1))
    summed = 0.49 * maps[0] + 0.7 * maps[1] + maps[2]
    close(explain(x, targets, (EDGES, BATCH), alpha=0.7, **settings), summed)
    found = explain(x, targets, {"edge_index": EDGES, "batch": BATCH}, alpha=0.7, normalize=True, **settings)
    for g in range(3):
        one = summed[g == BATCH]
        close(found[g == BATCH], (one - one.min()) / (one.max() - one.min()))
    likely = steps[-1][0].argmax(1)
    close(explain(x, None, (EDGES, BATCH)), explain(x, likely, (EDGES, BATCH)))


@each_net
def test_a_nodes_map_of_what_the_head_reads_is_its_logits(name):
    wrapper, x = wrap(name, "node"), nodes()
    maps = MHEXCAM(wrapper).attribute(x, 2, (EDGES,), per_layer=True, activation="head", **NO_SHARPNESS)
    close(maps, torch.stack([y[:, 2] for y in wrapper.deep_forward(x, EDGES)], 1))
    with pytest.raises(ValueError, match="'graph', whose heads read averages"):
        MHEXCAM(wrap(name)).attribute(x, 2, (EDGES, BATCH), activation="head")


@each_net
def test_an_added_shortcut_changes_nothing_at_first(name):
    torch.manual_seed(0)
    net, x = NETS[name]().double().eval(), nodes()
    wrapper = MHEX(net, num_classes=CLASSES, task="node", residual=True, prediction="original").eval()
    if "DeepGCN" in name:
        assert wrapper.names == tuple(f"layers.{i}" for i in range(LAYERS))
        assert not any(one.added for one in wrapper.residuals)
        return
    own = {"GIN, skips": ["first", ":0", ":1"]}.get(name, [f"convs.{i}" for i in range(LAYERS)])
    assert list(wrapper.names) == own
    some = MHEX(net, task="node", residual=True, prediction="original", placement=own[:1]).eval()
    close(some(x, EDGES), net(x, EDGES), 1e-12)
    if name != "GIN, skips":
        close(wrapper(x, EDGES), net(x, EDGES), 1e-12)


@pytest.mark.sampled(6)
@each_net
@each_task
def test_permuting_nodes_permutes_saliency_and_keeps_predictions(name, task):
    wrapper, x = wrap(name, task), nodes()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    targets = torch.tensor([2, 0, 1])
    shuffled = MHEXCAM(wrapper).attribute(
        x[order], targets if task == "graph" else targets[BATCH][order], (place[EDGES], BATCH[order])
    )
    plain = MHEXCAM(wrapper).attribute(x, targets if task == "graph" else targets[BATCH], (EDGES, BATCH))
    close(shuffled, plain[order])
    logits = wrapper(x, EDGES, BATCH)
    close(wrapper(x[order], place[EDGES], BATCH[order]), logits if task == "graph" else logits[order])


@each_net
def test_a_batch_equals_a_loop_also_with_one_node_and_isolated_ones(name):
    wrapper, x = wrap(name), torch.cat([nodes(), nodes()[:1]])
    batch = torch.cat([BATCH, torch.tensor([3])])
    targets, logits, maps = [2, 0, 1, 2], [], []
    for g in range(4):
        inside = (batch == g).nonzero().flatten()
        edges = EDGES[:, torch.isin(EDGES, inside).all(0)] - inside[0]
        zeros = torch.zeros(len(inside), dtype=torch.long)
        logits.append(wrapper(x[inside], edges, zeros))
        maps.append(MHEXCAM(wrapper).attribute(x[inside], targets[g], (edges, zeros)))
    close(wrapper(x, EDGES, batch), torch.cat(logits))
    close(MHEXCAM(wrapper).attribute(x, targets, (EDGES, batch)), torch.cat(maps))
    assert torch.cat(maps).isfinite().all()


def test_one_node_is_one_token():
    wrapper, x = wrap("DeepGCN"), nodes(1)
    none, zero = torch.zeros(2, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    ((y, total), *_) = derive("DeepGCN", wrapper, x, none, zero, "graph")
    block = wrapper.mhex_blocks[0]
    s, logits = block(of_tokens(None).mean(total[None]).relu())
    close(wrapper.deep_forward(x, none, zero)[0], logits)
    close(y, logits)
    e = block.evidence(torch.tensor([1]), 1.0, 0, 0)
    token = torch.bmm(total[None], e[:, :, None])[0, :, 0]  # the score of a token of BERT
    close(MHEXCAM(wrapper).attribute(x, 1, (none, zero), per_layer=True, **NO_SHARPNESS)[:, 0], token)
    close(logits[0, 1], (e[0] * total[0].relu()).sum())
    assert s.shape == (1, WIDTH)


def test_networks_that_weigh_edges_take_them_by_name():
    wrapper, x = wrap("GCN", "node"), nodes()
    weights = torch.rand(EDGES.shape[1], dtype=torch.float64)
    seen = {"edge_index": EDGES, "edge_weight": weights}
    maps = MHEXCAM(wrapper).attribute(x, 1, seen)
    assert not torch.allclose(maps, MHEXCAM(wrapper).attribute(x, 1, (EDGES,)))
    close(maps, MHEXCAM(wrapper).attribute(x, 1, {"edge_index": EDGES, "edge_weight": weights.clone()}))
    with pytest.raises(TypeError, match=r"`batch` \(nodes,\) of integers.*got torch.float64"):
        wrapper(x, EDGES, weights)


@pytest.mark.slow
def test_it_learns_graphs_strips_and_is_saved(tmp_path):
    torch.manual_seed(0)
    wrapper, x, labels = wrap("GCN").train(), nodes(), torch.tensor([2, 0, 1])
    optimizer = torch.optim.Adam(wrapper.parameters(), 0.02)
    for _ in range(120):
        loss = deep_supervision_loss(wrapper.deep_forward(x, EDGES, BATCH), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert wrapper.eval()(x, EDGES, BATCH).argmax(1).tolist() == [2, 0, 1]
    assert all(block.shortcut.scale != 0 for block in wrapper.mhex_blocks)
    output = wrapper(x, EDGES, BATCH, labels=labels)
    close(output["loss"], deep_supervision_loss(wrapper.deep_forward(x, EDGES, BATCH), labels))
    close(wrapper.strip()(x, EDGES, BATCH), wrapper(x, EDGES, BATCH))
    wrapper.save_pretrained(tmp_path)
    loaded = MHEX.from_pretrained(tmp_path, model=basic("GCN").double())
    close(loaded.double()(x, EDGES, BATCH), wrapper(x, EDGES, BATCH))
    assert (loaded.task, loaded.names) == ("graph", wrapper.names)


def test_everything_is_left_as_found_also_after_an_error_and_in_threads():
    wrapper, x = wrap("GIN, skips").train(), nodes()
    given = (EDGES, BATCH)
    before = [one.clone() for one in (x, *given)]
    with left_as_found(wrapper):
        alone = [MHEXCAM(wrapper).attribute(x, c, given) for c in range(3)]
        jobs = [lambda c=c: [MHEXCAM(wrapper).attribute(x, c, given) for _ in range(4)] for c in range(3)]
        together = in_threads(jobs)
    assert all(torch.equal(m, one) for maps, one in zip(together, alone, strict=True) for m in maps)
    assert all(map(torch.equal, (x, *given), before))
    twin = copy.deepcopy(wrapper)
    assert torch.equal(MHEXCAM(twin).attribute(x, 1, given), alone[1])
    wrapper.backbone.second.nn.append(Breaks(RuntimeError("broken")))
    with left_as_found(wrapper), pytest.raises(RuntimeError, match="broken"):
        MHEXCAM(wrapper).attribute(x, 1, given)
    broken = NETS["DeepGCN"]().double()
    broken.layers[1].norm = Breaks(RuntimeError("broken"))
    with left_as_found(broken), pytest.raises(ValueError, match="could not be run on two small graphs: broken"):
        MHEX(broken, task="graph")


NO_EDGES = torch.zeros(2, 0, dtype=torch.long)
WRONG = [
    (
        (nodes(), EDGES),
        ValueError,
        r"Expected `batch` \(nodes,\), the graph of each of 9 nodes.*`torch.zeros\(len\(x\)",
    ),
    ((nodes(), EDGES, BATCH[:5]), ValueError, r"`batch` \(9,\).*got shape \(5,\) for x of shape \(9, 4\)"),
    ((nodes(), EDGES, BATCH * 2), ValueError, r"graph\(s\) \[1, 3\] of 5 in `batch` have none"),
    ((nodes(), EDGES, BATCH - 1), ValueError, "graphs from 0 in `batch`, got -1"),
    ((nodes(), EDGES, BATCH.double()), TypeError, "`batch` .* of integers"),
    ((nodes()[:0], NO_EDGES, BATCH[:0]), ValueError, r"at least one node, got shape \(0, 4\)|at least one sample"),
    ((nodes(), EDGES.t(), BATCH), ValueError, r"`edge_index` \(2, edges\), got shape \(10, 2\). Pairs.*`.t\(\)`"),
    ((nodes(), EDGES + 1, BATCH), ValueError, "edges between nodes 0 to 8, got 1 to 9"),
    ((nodes(), EDGES.double(), BATCH), TypeError, "`edge_index` .* of integers, got torch.float64"),
    ((nodes(),), TypeError, "`edge_index` .* as second argument"),
    ((nodes().long(), EDGES, BATCH), TypeError, "`x` as a tensor .* of floating point, got torch.int64"),
    ((nodes()[None], EDGES, BATCH), ValueError, r"`x` \(nodes, features\).*got shape \(1, 9, 4\)"),
    ((nodes(), EDGES, BATCH, BATCH), TypeError, "got 4 arguments: pass the others by name"),
]


@pytest.mark.parametrize(("given", "error", "words"), WRONG)
def test_inputs_say_what_is_wrong(given, error, words):
    wrapper = wrap("GCN")
    for ask in (lambda: wrapper(*given), lambda: MHEXCAM(wrapper).attribute(given[0], 1, given[1:])):
        with pytest.raises(error, match=words):
            ask()


def test_networks_settings_and_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"GCN has no residual additions of nodes.*3 layers.*Pass residual=True"):
        MHEX(basic("GCN"), task="graph")
    with pytest.raises(ValueError, match="Linear has no layers of graphs"):
        MHEX(nn.Linear(3, 4), task="node", residual=True)
    with pytest.raises(ValueError, match="one target for each of 3 samples"):
        MHEXCAM(wrap("GCN")).attribute(nodes(), [1] * 9, (EDGES, BATCH))
    with pytest.raises(ValueError, match="on_error='raise' for graphs"):
        MHEXCAM(wrap("GCN")).attribute(nodes(), 1, (EDGES, BATCH), on_error="nan")
    with pytest.raises(ValueError, match="got 'graph'"):
        collaboration(wrap("GCN"), (nodes(), EDGES, BATCH), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        MHEXCAM(wrap("GCN")).attribute(nodes() * torch.nan, 1, (EDGES, BATCH))

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = geometric.GCNConv(FEATURES, FEATURES)

        def forward(self, x, edge_index):
            return self.conv(self.conv(x, edge_index).relu(), edge_index)

    with pytest.raises(ValueError, match="'conv' runs several times in one pass"):
        MHEX(Shared(), task="node", residual=True)(nodes().float(), EDGES)


class ReadsEdges(nn.Module):
    """Takes a feature of each edge, too, which two small graphs of ones do not have."""

    def __init__(self):
        super().__init__()
        self.conv = geometric.GINEConv(nn.Linear(FEATURES, FEATURES), edge_dim=2)

    def forward(self, x, edge_index, edge_attr):
        return x + self.conv(x, edge_index, edge_attr)


def test_an_example_is_run_where_the_network_needs_more():
    with pytest.raises(ValueError, match=r"could not be run on two small graphs.*`example="):
        MHEX(ReadsEdges(), task="node")
    more = torch.ones(EDGES.shape[1], 2)
    given = {"x": nodes().float(), "edge_index": EDGES, "edge_attr": more}
    wrapper = MHEX(ReadsEdges(), task="node", num_classes=2, example=given).eval()
    assert wrapper.names == (":0",)
    assert MHEXCAM(wrapper).attribute(given["x"], 1, {"edge_index": EDGES, "edge_attr": more}).isfinite().all()
