"""What a CNN averages and adds, seen by hooks and below torch's functions, and whether CAStream and MHEX agree.

Nothing here uses what the wrappers know of a network but the names of the places that they chose.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from ca_stream_networks import derived_stream, randomised
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters import MHEX, CAStream
from adapters.models.outputs import output_tensor
from adapters.wrappers.mhex_pass import MHEXPass

CLASSES, LIMIT = 5, 1e-9


def is_map(value, axes):
    return isinstance(value, torch.Tensor) and value.dim() == axes and sorted(value.shape[1:])[-2] > 1


def _is_vector(value, axes):
    return isinstance(value, torch.Tensor) and value.dim() in (2, axes) and not is_map(value, axes)


def difference(actual, expected):
    """The largest, relative to the largest expected value; infinite for shapes or values that do not fit."""
    if actual.shape != expected.shape:
        return math.inf
    found = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300))
    return found if math.isfinite(found) else math.inf


@dataclass
class Addition:
    """A sum of two maps.

    Args:
        inside: The names of the modules that ran, outermost first.
        z: ReLU of the sum's means, once for each place that channels may have.
        terms: Both maps, as they were before the sum.
        depths: How many convolutions or matrix products lie on the longest way to each.
    """

    inside: tuple
    z: tuple
    terms: tuple
    depths: tuple


class Additions(TorchDispatchMode):
    """Notes each sum of two maps of one shape."""

    def __init__(self, axes):
        super().__init__()
        self.axes, self.found, self.running, self.depths, self.alive = axes, [], [], {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        depths = [self.depths.get(id(one), 0) for one in given]
        if func._schema.name in ("aten::add", "aten::add_") and len(given) == 2:
            one, two = given
            if one.shape == two.shape and is_map(one, self.axes):
                z = tuple(
                    (one.mean(d) + two.mean(d)).relu()
                    for d in (tuple(range(2, self.axes)), tuple(range(1, self.axes - 1)))
                )
                self.found.append(Addition(tuple(self.running), z, (one.clone(), two.clone()), tuple(depths)))
        result = func(*args, **(kwargs or {}))
        heavy = func._schema.name in ("aten::convolution", "aten::addmm", "aten::mm")
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.depths[id(one)] = max(depths, default=0) + heavy
                self.alive.append(one)
        return result


class Gates(TorchDispatchMode):
    """Replaces sums x + r by sigmoid(W z) x + r, with z = ReLU(mean x + mean r).

    Args:
        axes: Of maps.
        gates: For the position of a sum among those that `Additions` notes, which of the two is x, whether its channels
            are last, and W.
    """

    def __init__(self, axes, gates):
        super().__init__()
        self.axes, self.gates, self.position, self.seen = axes, gates, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if not (func._schema.name in ("aten::add", "aten::add_") and len(given) == 2):
            return func(*args, **(kwargs or {}))
        if given[0].shape != given[1].shape or not is_map(given[0], self.axes):
            return func(*args, **(kwargs or {}))
        position, self.position = self.position, self.position + 1
        if position not in self.gates:
            return func(*args, **(kwargs or {}))
        identity, last, weights = self.gates[position]
        x, r = given[identity], given[1 - identity]
        places = list(range(1, self.axes - 1) if last else range(2, self.axes))
        z = (x + r).mean(places).clamp(min=0)
        gate = 1 / (1 + torch.exp(-torch.einsum("bj,ij->bi", z, weights)))
        for place in places:
            gate = gate.unsqueeze(place)
        self.seen[position] = z
        total = x * gate + r
        return given[0].copy_(total) if func._schema.name == "aten::add_" else total


@dataclass
class Plain:
    """One run of a network as it is: logits, maps that modules returned (in order), whether it averages, its sums."""

    logits: torch.Tensor
    outputs: dict = field(default_factory=dict)
    last: torch.Tensor | None = None  # the last map that was seen, also between modules
    averages: bool = False
    additions: list = field(default_factory=list)


@torch.no_grad()
def run_plain(model, images):
    """Run it, with hooks on every module."""
    axes, maps, handles = images.dim(), [], []
    plain, watch = Plain(images), Additions(images.dim())

    def before(name, args):
        watch.running.append(name)
        given = args[0] if args else None
        if is_map(given, axes) and given.shape[2:] != images.shape[2:]:
            maps.append(given.clone())
            plain.averages = False
        elif _is_vector(given, axes):
            plain.averages |= any(_is_mean(given.flatten(1), one) for one in maps[-4:])

    def after(name, output):
        watch.running.pop()
        plain.outputs[name] = output.clone() if isinstance(output, torch.Tensor) else output
        if is_map(output, axes):
            maps.append(output.clone())
            plain.averages = False

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, args, n=name: before(n, args)))
        handles.append(module.register_forward_hook(lambda _, __, output, n=name: after(n, output)))
    try:
        with watch:
            plain.logits = output_tensor(model(images), None, images)
    finally:
        for handle in handles:
            handle.remove()
    plain.additions, plain.last = watch.found, maps[-1] if maps else None
    return plain


def _is_mean(vector, one):
    means = (
        values.mean(places)
        for values in (one, one.relu())
        for places in (tuple(range(2, one.dim())), tuple(range(1, one.dim() - 1)))
    )
    return any(mean.shape == vector.shape and difference(mean, vector) < LIMIT for mean in means)


@torch.no_grad()
def check_ca_stream(model, images, plain):
    """The largest difference of a CAStream to the network and to its formula, and the number of stages."""
    stream = CAStream(copy.deepcopy(model)).eval()
    generator = torch.Generator().manual_seed(1)
    for p in stream.stream.parameters():
        spread = p.shape[-1] ** -0.5 if p.dim() > 1 else 1
        p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * spread)
    _, attentions = stream.forward_with_attention(images)
    seen = [(plain.outputs[s.name], s.channels_last) for s in stream._all_stages]
    seen.append((plain.last, seen[-1][1]))
    *maps, entered = [(one if last else one.movedim(1, -1)).flatten(1, -2) for one, last in seen]
    found = []
    after = [maps[-1].relu(), *([entered] if entered.shape == maps[-1].shape else [])]
    for last in (maps[-1], *after):  # an activation may follow the last module, as a function
        _, expected = derived_stream(stream.stream, [*maps[:-1], last], stream.stream.query.expand(len(images), -1))
        found.append(max(difference(a.flatten(1), b) for a, b in zip(attentions, expected, strict=True)))
    alone = CAStream(copy.deepcopy(model), start_stage=len(stream.stages) - 1).eval()
    alone.stream.query.zero_()
    nn.init.eye_(alone.stream.projections[0].weight)
    alone.stream.projections[0].bias.zero_()
    exchanged = difference(alone(images), plain.logits)
    wrong = difference(stream(images), plain.logits) < LIMIT  # then nothing that counts was exchanged
    return max(min(found), exchanged, math.inf if wrong else 0), len(stream.stages)


@torch.no_grad()
def check_mhex(model, images, plain):
    """The largest difference of an MHEX to the network and to its formulas, what is odd of its places, their number."""
    bare = MHEX(copy.deepcopy(model), num_classes=CLASSES, gate=False, prediction="original").eval()
    seen = []
    run = MHEXPass(bare, images, see=seen.append)
    worst = difference(run.logits(), plain.logits)
    for one, y in zip(seen, run.deep(), strict=True):
        matrix = bare.mhex_blocks[one.index].equivalent_matrix()
        worst = max(worst, difference(y, one.z @ matrix.T))
    places = [_place(bare.residuals[one.index], one.z, one.gated, plain) for one in seen]
    odd = [one for one in places if isinstance(one, str)]
    if not odd:
        order = [one.index for one in seen]
        worst = max(worst, gated_difference(model, images, [places[order.index(i)] for i in range(len(order))]))
    return worst, odd, len(bare.names)


@torch.no_grad()
def gated_difference(model, images, places, scale=4.0):
    """The largest difference of an MHEX with gates to a run in which the sums at these places are gated.

    Args:
        model: The network.
        images: What it is run on.
        places: For each block the position of its sum, which of the two is x, and whether channels are last.
        scale: Of W, so that gates are not all a half.
    """
    wrapper = MHEX(copy.deepcopy(model), num_classes=CLASSES, prediction="original").eval()
    for block in wrapper.mhex_blocks:
        block.gate.weight.mul_(scale)
    weights = [block.gate.weight for block in wrapper.mhex_blocks]
    derived = Gates(images.dim(), {at: (x, last, w) for (at, x, last), w in zip(places, weights, strict=True)})
    with derived:
        logits = output_tensor(model(images), None, images)
    run = MHEXPass(wrapper, images)
    found = [difference(run.logits(), logits)]
    for (at, _, _), block, y in zip(places, wrapper.mhex_blocks, run.deep(), strict=True):
        found.append(difference(y, derived.seen[at] @ block.gate.weight.T @ block.head.weight.T))
    return max(found)


def _place(residual, z, x, plain):
    """The position of a block's sum, which of the two is x, and whether channels are last; or what is wrong with it.

    That is: z is of no sum, or not of its module's last one, or x is the longer way.
    """
    inside = [one for one in plain.additions if residual.name in one.inside or not residual.name]
    place = int(residual.channels_last)
    alike = [one for one in inside if one.z[place].shape == z.shape and difference(one.z[place], z) < LIMIT]
    if not alike:
        return f"{residual.label}: z is of no sum"
    one = alike[-1]
    chosen = [i for i, term in enumerate(one.terms) if term.shape == x.shape and difference(x, term) < LIMIT]
    if not chosen:
        return f"{residual.label}: x is no branch"
    depths = one.depths[chosen[0]], one.depths[1 - chosen[0]]
    if depths[0] > depths[1] and len(chosen) == 1:
        return f"{residual.label}: x is the longer branch, {depths[0]} against {depths[1]}"
    own = [other for other in inside if other.inside == one.inside and other.z[place].shape == z.shape]
    if own[-1] is not one:
        return f"{residual.label}: not the last of its {len(own)} sums"
    return next(i for i, other in enumerate(plain.additions) if other is one), chosen[0], residual.channels_last


def random_network(model, shape):
    """The network with weights and statistics at random, in float64."""
    torch.manual_seed(0)
    return randomised(model, shape[1:], channels=shape[0])
