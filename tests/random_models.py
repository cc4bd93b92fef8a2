"""Small transformers composed of random parts, and their maps by plain automatic differentiation.

`make(seed)` draws a model as people write them: how it cuts an image, where its class token is, how it attends, pools
and answers, and what else happens on the way. `reference(random_model)` says what the CDAM family must answer: each
attention here reads its tokens through a module `Reads`, which a hook exchanges, and the whole model runs again for
each set of tokens. Nothing of the packages under test is used.

One model at a time: some read a module-level name or an environment variable, which `make` sets.
"""

import os
import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CLASSES = 5
WORDS = 50
PATCH = 4
VARIABLE = "RANDOM_MODEL_SWITCH"
EXACT, ROUNDED = 1e-8, 5e-2  # tolerances: in float64, and where a part computes in bfloat16
SWITCH = True
attend = F.scaled_dot_product_attention  # a name that a change gives another function


def attend_flatter(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(0.5 * q, k, v, mask, **options)


class Reads(nn.Identity):
    """The tokens that an attention's projections read: the tensor itself, unless a hook exchanges it."""

    def __init__(self, batch_axis: int = 0):
        super().__init__()
        self.batch_axis = batch_axis


@dataclass
class RandomModel:
    """A model, a question, and what is known of it.

    Attributes:
        seed: What `make` was called with.
        model: In evaluation mode; a few are left in training mode, and explained in evaluation mode all the same.
        inputs: Give a clone to each run, as some models change them in place.
        arguments: What else the model takes, for `additional_forward_args`.
        target: As the CDAM family takes it.
        parts: What the model is composed of.
        tolerance: Relative to the largest score.
        change: Changes the model, which a second explanation must follow; None: nothing to change.
    """

    seed: int
    model: nn.Module
    inputs: Tensor
    arguments: tuple[Tensor, ...]
    target: Any
    parts: list[str]
    tolerance: float
    change: Callable[[], None] | None

    @property
    def read_at(self) -> list[nn.Module]:
        """The modules whose output is what an attention reads, in the order of registration."""
        found = [module for module in self.model.modules() if isinstance(module, Reads)]
        return [*found, *getattr(self.model, "sites", list)()]

    def run(self) -> Tensor:
        """The logits of the user's model, with a fresh copy of the inputs."""
        output = self.model(self.inputs.clone(), *self.arguments)
        if isinstance(output, Tensor):
            return output
        return output["logits"] if isinstance(output, dict) else output.logits

    @contextmanager
    def evaluated(self):
        """In evaluation mode, also for a backward pass that runs blocks again; as torch runs it for gradients.

        Of frozen modules torch takes a fast path, which gives NaN where all tokens are masked and rounds otherwise.
        """
        training, fast = self.model.training, torch.backends.mha.get_fastpath_enabled()
        self.model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            self.model.train(training)
            torch.backends.mha.set_fastpath_enabled(fast)

    def score(self) -> Tensor:
        """What is explained, summed over the batch."""
        logits = self.run()
        if self.target is None:
            return logits.sum()
        index = torch.as_tensor(self.target).expand(len(logits))
        return logits[torch.arange(len(logits)), index].sum()


# ---------------------------------------------------------------- the reference


@dataclass
class Read:
    """One read of tokens: which module, and its how manieth call."""

    site: nn.Module
    call: int
    tokens: Tensor


def reads_of(random_model: RandomModel) -> list[Read]:
    """All reads of one run, in their order in time."""
    seen: list[Read] = []

    def hook(module, args, output):
        call = sum(read.site is module for read in seen)
        seen.append(Read(module, call, output.detach().clone()))

    with random_model.evaluated(), hooked(random_model.read_at, hook):
        random_model.run()
    return seen


@contextmanager
def hooked(modules, hook):
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_at(random_model: RandomModel, read: Read, tokens: Tensor) -> Tensor | None:
    """The score's gradient where the tokens are put in the place of those that were read; None: autograd has none.

    A checkpointed block runs again in the backward pass, the last call first.
    """
    leaf = tokens.clone().requires_grad_()
    calls, backward = 0, False

    def hook(module, args, output):
        nonlocal calls
        calls += 1
        return leaf.clone() if backward or calls == read.call + 1 else None

    with random_model.evaluated(), hooked([read.site], hook):
        score = random_model.score()
        backward = True
        try:
            (gradient,) = torch.autograd.grad(score, leaf, allow_unused=True)
        except RuntimeError as error:  # no graph at all
            if "does not require grad" not in str(error):
                raise
            return None
    return gradient


def reference(
    random_model: RandomModel,
    kind: str = "cdam",
    *,
    steps: int = 4,
    samples: int = 3,
    deviation: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    """The map (batch, tokens) by plain autograd; None: it has no gradient, or one that is not finite.

    Args:
        random_model: What is explained.
        kind: "cdam", "integrated" or "smooth".
        steps: Of the path, for "integrated".
        samples: Of the noise, for "smooth".
        deviation: Of the noise.
        generator: Of the noise.
    """
    read = reads_of(random_model)[-1]
    tokens, batch_axis = read.tokens, getattr(read.site, "batch_axis", 0)
    total = torch.zeros_like(tokens)
    if kind == "cdam":
        pairs = [(tokens, tokens, 1.0)]
    elif kind == "integrated":
        pairs = [(tokens * (k / steps), tokens, 1 / steps) for k in range(1, steps + 1)]
    else:
        shape = tokens.select(batch_axis, 0).shape
        noises = [torch.empty(shape, dtype=tokens.dtype).normal_(generator=generator) for _ in range(samples)]
        noisy = [tokens + deviation * noise.unsqueeze(batch_axis) for noise in noises]
        pairs = [(one, one, 1 / samples) for one in noisy]
    for point, factor, weight in pairs:
        gradient = gradient_at(random_model, read, point)
        if gradient is None:
            return None
        total += weight * factor * gradient
    scores = total.sum(-1).movedim(batch_axis, 0)
    return scores if bool(scores.isfinite().all()) else None


# ---------------------------------------------------------------- drawing


class Draw:
    """Draws parts and keeps their names."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.parts: list[str] = []

    def one(self, name: str, *choices: Any) -> Any:
        """One of the choices, each as likely."""
        choice = self.random.choice(choices)
        self.parts.append(f"{name}: {choice}")
        return choice

    def rare(self, name: str, *choices: str, chance: float = 0.2) -> str:
        """Mostly "none"."""
        if self.random.random() > chance:
            return "none"
        return self.one(name, *choices)

    def flag(self, name: str, chance: float = 0.15) -> bool:
        if self.random.random() > chance:
            return False
        self.parts.append(name)
        return True


def draw_options(draw: Draw) -> SimpleNamespace:
    """Which parts a model has: what goes together is decided here and nowhere else."""
    o = SimpleNamespace()
    o.heads = draw.random.choice([2, 4])
    o.dim = draw.random.choice([16, 32])
    o.depth = draw.random.choice([1, 2, 3])
    o.batch = draw.random.choice([2, 3, 4, 5])
    o.grid = draw.random.choice([(4, 4), (2, 8), (4, 5), (3, 6), (5, 4)])
    o.backbone = draw.rare("backbone", "timm", "timm", "torchvision", chance=0.15)
    if o.backbone == "none":
        _draw_tokens(draw, o)
        _draw_attention(draw, o)
        _draw_blocks(draw, o)
        _draw_pool(draw, o)
    else:
        _draw_library(draw, o)
    _draw_head(draw, o)
    _draw_surroundings(draw, o)
    _draw_switch(draw, o)
    return o


def _draw_tokens(draw: Draw, o: SimpleNamespace) -> None:
    o.embed = draw.one("embedding", "conv", "unfold", "reshape", "words", "words", "stem")
    o.prefix = draw.one("prefix", "none", "class first", "class first", "class last", "registers", "prompts")
    o.before = {"class first": 1, "registers": 3, "prompts": 1}.get(o.prefix, 0)
    o.after = {"class last": 1, "prompts": 3}.get(o.prefix, 0)
    o.patches = o.grid[0] * o.grid[1]
    o.tokens = o.before + o.patches + o.after
    o.inputs_changed = draw.flag("inputs changed in place", 0.1)


def _draw_attention(draw: Draw, o: SimpleNamespace) -> None:
    o.attention = draw.one(
        "attention", "sdpa", "sdpa", "matmul", "einsum", "bmm", "loop", "nn.MultiheadAttention", "encoder layer"
    )
    o.mask = draw.rare(
        "mask", "additive", "boolean", "from input", "causal", "causal", "argument", "empty row", chance=0.35
    )
    o.projection, o.qk_norm, o.token_bias, o.temperature, o.talking, o.gate = "fused", "none", *[False] * 4
    if o.attention == "encoder layer":
        o.position, o.tokens_first, o.cut = draw.one("position", "none", "added"), False, "none"
        return
    o.tokens_first = draw.flag("tokens first", 0.08)
    if o.attention == "nn.MultiheadAttention":
        o.position = draw.one("position", "none", "added", "keys and queries")
        o.cut = draw.rare("cut", "no_grad", chance=0.03)
        return
    o.position = draw.one("position", "none", "added", "keys and queries", "rotary")
    cuts = ["query detached", "value detached", "key detached", "no_grad"]
    o.cut = draw.rare("cut", *cuts, *([] if o.attention == "sdpa" else ["weights no_grad"]), chance=0.1)
    o.projection = draw.one("projection", "fused", "three", "grouped")
    o.qk_norm = draw.rare("query and key norm", "layer norm", "RMS", "unit length", chance=0.12)
    o.token_bias = draw.flag("bias from tokens", 0.12)
    o.temperature = draw.flag("temperature per head", 0.12)
    o.talking = o.attention != "sdpa" and draw.flag("talking heads", 0.15)
    o.gate = o.projection == "three" and draw.flag("gate in query's linear", 0.3)


def _draw_blocks(draw: Draw, o: SimpleNamespace) -> None:
    o.checkpoint = draw.flag("checkpoint", 0.1)
    if o.attention == "encoder layer":
        o.block, o.norm, o.layer_scale, o.mlp, o.add = "encoder layer", "LayerNorm", False, "gelu", "new"
        o.norm_first = draw.flag("norm first", 0.5)
    else:
        o.block = draw.one("block", "pre-norm", "pre-norm", "post-norm", "parallel", "norm after", "attention only")
        o.norm = draw.one("norm", "LayerNorm", "LayerNorm", "RMSNorm")
        o.layer_scale = draw.flag("layer scale")
        o.mlp = "none" if o.block == "attention only" else draw.one("mlp", "gelu", "relu_", "gated")
        adds = ["new", "buffer"] if o.checkpoint else ["new", "new", "+=", "add_", "buffer"]  # a block runs again
        o.add = draw.one("residual", *adds)
    o.order = draw.rare("order", "reversed", "rotated", "last twice", "last unused", "early exit", chance=0.3)
    if o.order != "none":
        o.depth = max(o.depth, 2)
    o.pruned = o.mask == "none" and draw.flag("tokens pruned", 0.1)
    o.second = draw.rare("second transformer", *["narrow"] if o.pruned else ["narrow", "patches only"], chance=0.12)
    o.side = "none" if o.pruned else draw.rare("side list", "mean of the last two", "first added", chance=0.12)
    o.long_skip = draw.flag("long skip", 0.1)
    o.teacher = draw.flag("teacher that does not run", 0.06)
    o.two_names = draw.flag("blocks under two names", 0.06)


def _draw_pool(draw: Draw, o: SimpleNamespace) -> None:
    pools = ["mean", "max", "query attention", "class attention", "first"]
    if o.before and not o.pruned:
        pools += ["first", "first", "patches and class"]
    if o.prefix == "class last":
        pools += ["last", "last", "last"]
    if o.mask == "causal":  # the first token sees itself alone
        pools = ["mean", "last", "query attention", "max"]
    if o.second == "patches only":
        pools = ["mean", "max", "query attention"]
    o.pool = draw.one("pool", *pools)
    o.final_norm = draw.flag("final norm", 0.6)


def _draw_library(draw: Draw, o: SimpleNamespace) -> None:
    """A vision transformer of timm or torchvision, and one's own pooling, if any."""
    o.__dict__.update(dict.fromkeys(("position", "mask", "cut", "order", "second", "side", "attention"), "none"))
    o.__dict__.update(dict.fromkeys(("tokens_first", "checkpoint", "long_skip", "pruned", "teacher"), False))
    o.embed, o.mlp, o.after, o.patches = "conv", "gelu", 0, o.grid[0] * o.grid[1]
    o.two_names, o.inputs_changed = False, draw.flag("inputs changed in place", 0.1)
    if o.backbone == "torchvision":
        o.grid, o.patches = (4, 4), 16
        o.pool, o.before = "as it is", 1
        return
    o.before = draw.one("prefix tokens", 0, 1, 1, 3)
    o.pool = draw.one("pool", "as it is", "mean", "max", *["first", "patches and class"] if o.before else ["attention"])
    o.library = {
        "qk_norm": draw.flag("query and key norm", 0.2),
        "init_values": 0.5 if draw.flag("layer scale", 0.2) else None,
        "no_embed_class": draw.flag("class token without position", 0.2),
    }
    if o.pool == "attention":
        o.pool, o.library["global_pool"] = "as it is", "map"
    elif not o.before or draw.flag("average pool of the library", 0.3):
        o.library["global_pool"] = "avg"
    o.block_class = draw.rare("own block", "bias from tokens", "post-norm", "forward replaced", chance=0.3)


def _draw_head(draw: Draw, o: SimpleNamespace) -> None:
    o.together = draw.rare(
        "batch", "batch norm", "norm of all", "similarity", "softmax", "contrast", "index 0", "mean", chance=0.25
    )
    heads = ["linear", "linear", "mlp", "several linears", "cosine", "one logit", "scripted mlp"]
    if o.together in ("batch norm", "softmax"):  # their sums over the batch are constant for one class
        o.batch = 5 if o.together == "batch norm" else max(o.batch, 3)
        heads.remove("one logit")
    o.head = "contrast" if o.together == "contrast" else draw.one("head", *heads)
    o.output = draw.one("output", "tensor", "tensor", "dictionary", "named tuple", "ModelOutput")
    o.function = draw.rare("function in the head", "straight through", "scaled gradient", "root", chance=0.12)
    o.hook = draw.rare("hook", *["tensor"] if o.head == "scripted mlp" else ["tensor", "module backward"], chance=0.1)


def _draw_surroundings(draw: Draw, o: SimpleNamespace) -> None:
    own = o.backbone == "none"
    early = ["no_grad early", "no_grad early"] if own and o.depth > 1 else []
    o.grad = draw.rare("grad mode", *2 * early, *4 * ["enabled"], "no_grad all", chance=0.2)
    if o.attention == "encoder layer" and o.grad == "no_grad all":
        o.grad = "none"  # its fast way has no seam
        draw.parts.remove("grad mode: no_grad all")
    detached = ["embedding", "early", "features"] if own else ["features"]
    o.detached = draw.rare("detached", *detached, *["class token"] if own and o.pool == "mean" else [], chance=0.1)
    frozen = [] if o.attention == "encoder layer" else ["everything", "backbone"]  # nor has it without a gradient
    o.frozen = draw.rare("frozen", *frozen, chance=0.1) if frozen else "none"
    autocasts = ["head", *["attention", "mlp"] * (own and o.attention != "encoder layer")]
    o.autocast = draw.rare("autocast", *autocasts, chance=0.08)
    o.training = draw.flag("left in training mode", 0.03)


def _draw_switch(draw: Draw, o: SimpleNamespace) -> None:
    """What can change, and what it changes."""
    own = o.backbone == "none"
    places = ["attribute", "nested setting", "class attribute", "module-level name", "parameter", "buffer"]
    places += ["environment", *["values"] * (o.autocast == "none")]  # rounding could turn a branch on values
    o.where = draw.rare("switch", *places, chance=0.5)
    steers = [
        "head",
        *["detach"] * (draw.random.random() < 0.3),
        *["batch"] * (o.together not in ("none", "contrast", "similarity", "softmax")),
    ]
    if own:
        steers += (
            ["exit"] * (o.depth > 1)
            + ["order"] * (o.depth > 1)
            + ["mask"] * (o.mask not in ("none", "causal", "argument"))
        )
    if o.second != "patches only" and o.pool not in ("patches and class", "as it is", "mean"):
        steers += ["pool", "pool", "pool"]
    o.steers = "nothing" if o.where == "none" else draw.one("steers", *steers)
    changes = ["weights", "head replaced", "block replaced", *["attention"] * (o.backbone != "torchvision")]
    changes += ["order list"] * (own and o.depth > 1) + ["function"] * (o.attention == "sdpa")
    o.change = draw.rare("change", *changes, chance=0.6) if o.where in ("none", "values") else "none"


# ---------------------------------------------------------------- attentions


def rotated(x: Tensor) -> Tensor:
    """Rotary positions for (batch, heads, tokens, width)."""
    width = x.shape[-1] // 2
    frequencies = 10.0 ** -torch.arange(width, dtype=x.dtype)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequencies
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def logits_loop(q: Tensor, k: Tensor) -> Tensor:
    """Head after head into a buffer."""
    buffer = q.new_empty(*q.shape[:3], k.shape[2])
    for head in range(q.shape[1]):
        buffer[:, head] = q[:, head] @ k[:, head].mT
    return buffer


def mixed_loop(weights: Tensor, v: Tensor) -> Tensor:
    buffer = torch.zeros_like(v[:, :, : weights.shape[2]])
    for head in range(v.shape[1]):
        buffer[:, head] += weights[:, head] @ v[:, head]
    return buffer


def bmm(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


LOGITS = {
    "matmul": lambda q, k: q @ k.mT,
    "einsum": lambda q, k: torch.einsum("bhqc,bhkc->bhqk", q, k),
    "bmm": lambda q, k: bmm(q, k.mT),
    "loop": logits_loop,
}
MIXED = {
    "matmul": lambda weights, v: weights @ v,
    "einsum": lambda weights, v: torch.einsum("bhqk,bhkc->bhqc", weights, v),
    "bmm": bmm,
    "loop": mixed_loop,
}


class Attention(nn.Module):
    """Self-attention with the parts that were drawn."""

    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.o, self.heads, self.width = o, o.heads, dim // o.heads
        self.reads = Reads(batch_axis=1 if o.tokens_first else 0)
        self.scale = self.width**-0.5
        groups = max(1, o.heads // 2) if o.projection == "grouped" else o.heads
        narrow = groups * self.width
        self.sizes = [2 * dim if o.gate else dim, narrow, narrow]
        if o.projection == "three":
            self.q, self.k, self.v = (nn.Linear(dim, size) for size in self.sizes)
        else:
            self.qkv = nn.Linear(dim, sum(self.sizes), bias=o.projection == "fused")
        self.out = nn.Linear(dim, dim)
        if o.position == "keys and queries":
            self.position = nn.Parameter(torch.randn(1, o.tokens, dim))
        if o.qk_norm in ("layer norm", "RMS"):
            kind = nn.LayerNorm if o.qk_norm == "layer norm" else nn.RMSNorm
            self.q_norm, self.k_norm = kind(self.width), kind(self.width)
        if o.token_bias:
            self.bias = nn.Linear(dim, o.heads)
        if o.temperature:
            self.temperature = nn.Parameter(torch.zeros(o.heads, 1, 1))
        if o.talking:
            self.talk_before, self.talk_after = nn.Linear(o.heads, o.heads), nn.Linear(o.heads, o.heads)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        t = self.reads(x)
        with grad_mode(self.o.cut == "no_grad"), autocast(self.o.autocast == "attention"):
            if not self.o.tokens_first:
                return self.attended(t, mask)
            return self.attended(t.transpose(0, 1), mask).transpose(0, 1)

    def attended(self, t: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.projected(t)
        gate = None
        if self.o.gate:
            q, gate = q.chunk(2, -1)
        q, k, v = (x.unflatten(-1, (-1, self.width)).transpose(1, 2) for x in (q, k, v))
        q, k, v = self.cut(*self.turned(q, k), v)
        if self.o.projection == "grouped":
            k, v = (x.repeat_interleave(self.heads // x.shape[1], 1) for x in (k, v))
        if self.o.token_bias:
            mask = added(self.bias(t).mT[:, :, None], mask)
        mixed = self.mixed(q, k, v, mask).transpose(1, 2).flatten(2)
        return self.out(mixed if gate is None else mixed * gate.sigmoid())

    def projected(self, t: Tensor) -> tuple[Tensor, ...]:
        placed = t[:, :] + self.position[:, : t.shape[1]] if hasattr(self, "position") else t
        if self.o.projection == "three":
            return self.q(placed), self.k(placed), self.v(t)
        if placed is t:
            return self.qkv(t).split(self.sizes, -1)
        return *self.qkv(placed).split(self.sizes, -1)[:2], self.qkv(t).split(self.sizes, -1)[2]

    def turned(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.o.qk_norm == "unit length":
            q, k = 4 * F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.o.position == "rotary":
            q, k = rotated(q), rotated(k)
        return (q * self.temperature.exp() if self.o.temperature else q), k

    def cut(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        name = self.o.cut
        return (
            q.detach() if name == "query detached" else q,
            k.detach() if name == "key detached" else k,
            v.detach() if name == "value detached" else v,
        )

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.o.attention == "sdpa":
            if mask is not None and mask.dtype != torch.bool:
                mask = mask.to(q.dtype)
            return attend(q, k, v, mask, scale=self.scale)
        with grad_mode(self.o.cut == "weights no_grad"):
            logits = added(LOGITS[self.o.attention](q * self.scale, k), mask, talk=self.talked)
            weights = logits.softmax(-1)
        return MIXED[self.o.attention](self.talked(weights, after=True), v)

    def talked(self, x: Tensor, after: bool = False) -> Tensor:
        if not self.o.talking:
            return x
        layer = self.talk_after if after else self.talk_before
        return layer(x.movedim(1, -1)).movedim(-1, 1)


def added(x: Tensor, mask: Tensor | None, talk: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Logits with an additive or boolean mask (True: may be read)."""
    x = talk(x)
    if mask is None:
        return x
    return x.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else x + mask


class TorchAttention(nn.Module):
    """Around nn.MultiheadAttention."""

    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.o = o
        self.reads = Reads(batch_axis=1 if o.tokens_first else 0)
        self.attention = nn.MultiheadAttention(dim, o.heads, batch_first=not o.tokens_first)
        if o.position == "keys and queries":
            self.position = nn.Parameter(torch.randn(1, o.tokens, dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        t = self.reads(x)
        with grad_mode(self.o.cut == "no_grad"), autocast(self.o.autocast == "attention"):
            placed = t
            if hasattr(self, "position"):
                size = t.shape[0 if self.o.tokens_first else 1]
                placed = t + (
                    self.position[:, :size].transpose(0, 1) if self.o.tokens_first else self.position[:, :size]
                )
            mask, padding = torch_masks(mask)
            return self.attention(placed, placed, t, padding, need_weights=False, attn_mask=mask)[0]


def torch_masks(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The attention mask and the padding mask as torch's own modules take them (True: may not be read)."""
    if mask is None:
        return None, None
    if mask.shape[0] > 1:  # (batch, 1, 1, tokens)
        return None, ~mask[:, 0, 0]
    return ~mask[0, 0] if mask.dtype == torch.bool else mask[0, 0], None


class PoolingAttention(nn.Module):
    """One row: a learned query, or the class token's, attends to all tokens."""

    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.reads, self.heads = Reads(), o.heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.query = nn.Parameter(torch.randn(1, 1, dim)) if o.pool == "query attention" else None
        self.attention = o.attention if o.attention in LOGITS else "sdpa"
        self.row = -1 if o.prefix == "class last" else 0

    def forward(self, x: Tensor) -> Tensor:
        t = self.reads(x)
        query = t[:, self.row][:, None] if self.query is None else self.query.expand(len(t), -1, -1)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, t), (self.v, t))
        )
        if self.attention == "sdpa":
            mixed = attend(q, k, v)
        else:
            logits = LOGITS[self.attention](q * q.shape[-1] ** -0.5, k)
            mixed = MIXED[self.attention](logits.softmax(-1), v)
        return self.out(mixed.transpose(1, 2).flatten(1))


def grad_mode(off: bool):
    return torch.no_grad() if off else nullcontext()


def autocast(on: bool):
    return torch.autocast("cpu", torch.bfloat16) if on else nullcontext()


# ---------------------------------------------------------------- blocks


def plus(x: Tensor, y: Tensor, how: str) -> Tensor:
    """The residual addition."""
    if how == "+=":
        x += y
        return x
    if how == "add_":
        return x.add_(y)
    if how == "buffer":
        buffer = torch.empty_like(x)
        buffer[:] = x
        buffer[:] += y
        return buffer
    return x + y


class Mlp(nn.Module):
    def __init__(self, o: SimpleNamespace, dim: int):
        super().__init__()
        self.kind, self.autocast = o.mlp, o.autocast == "mlp"
        self.inner, self.outer, self.drop = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim), nn.Dropout(0.1)
        if o.mlp == "gated":
            self.gate = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        with autocast(self.autocast):
            y = self.inner(x)
            if self.kind == "relu_":
                y.relu_()
            else:
                y = F.silu(self.gate(x)) * y if self.kind == "gated" else F.gelu(y)
            return self.outer(self.drop(y))


class Block(nn.Module):
    """An attention and an MLP with their norms."""

    def __init__(self, o: SimpleNamespace, dim: int, side: list[Tensor]):
        super().__init__()
        self.o, self.side = o, side
        norm = nn.LayerNorm if o.norm == "LayerNorm" else nn.RMSNorm
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn = (TorchAttention if o.attention == "nn.MultiheadAttention" else Attention)(o, dim)
        self.mlp = Mlp(o, dim) if o.mlp != "none" else None
        self.gamma = nn.Parameter(torch.ones(dim)) if o.layer_scale else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = getattr(self, self.o.block.replace("-", "_").replace(" ", "_"))(x, mask)
        if self.o.side != "none":
            self.side.append(x)
        return x

    def scaled(self, y: Tensor) -> Tensor:
        return y if self.gamma is None else y * self.gamma

    def pre_norm(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = plus(x, self.scaled(self.attn(self.norm1(x), mask)), self.o.add)
        return x + self.mlp(self.norm2(x))

    def post_norm(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm1(plus(x, self.scaled(self.attn(x, mask)), self.o.add))
        return self.norm2(x + self.mlp(x))

    def parallel(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        return plus(x, self.scaled(self.attn(h, mask)) + self.mlp(h), self.o.add)

    def norm_after(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = plus(x, self.norm1(self.scaled(self.attn(x, mask))), self.o.add)
        return x + self.norm2(self.mlp(x))

    def attention_only(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return plus(x, self.scaled(self.attn(self.norm1(x), mask)), self.o.add)


class EncoderLayer(nn.TransformerEncoderLayer):
    """Torch's, which in evaluation mode without gradients goes a fast way of its own."""

    def __init__(self, o: SimpleNamespace, dim: int, side: list[Tensor]):
        super().__init__(dim, o.heads, 2 * dim, activation="gelu", batch_first=True, norm_first=o.norm_first)
        self.reads, self.keeps, self.side = Reads(), o.side != "none", side

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = super().forward(x, *torch_masks(mask))
        if self.keeps:
            self.side.append(x)
        return x

    def _sa_block(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return super()._sa_block(self.reads(x), *args, **options)


# ---------------------------------------------------------------- heads and outputs


class StraightThrough(torch.autograd.Function):
    """Rounds; the gradient passes."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class ScaledGradient(torch.autograd.Function):
    """The identity; the gradient is scaled by what was passed."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].sigmoid()


class Cosine(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.classes = nn.Parameter(torch.randn(CLASSES, dim))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.normalize(x, dim=-1) @ F.normalize(self.classes, dim=-1).mT


class SeveralLinears(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(dim, size) for size in (2, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], -1)


class OneLogit(nn.Linear):
    def __init__(self, dim: int):
        super().__init__(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


class Contrast(nn.Module):
    """As many texts as images."""

    def __init__(self, dim: int, texts: int):
        super().__init__()
        self.register_buffer("texts", torch.randn(texts, dim))
        self.text = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return (5 * F.normalize(x, dim=-1) @ F.normalize(self.text(self.texts), dim=-1).mT).softmax(-1)


HEADS = {
    "linear": lambda dim: nn.Linear(dim, CLASSES),
    "mlp": lambda dim: nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, CLASSES)),
    "several linears": SeveralLinears,
    "cosine": Cosine,
    "one logit": OneLogit,
    "scripted mlp": lambda dim: torch.jit.script(
        nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, CLASSES))
    ),
}


class NamedOutput(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class ModelOutput(OrderedDict):
    """As transformers': by name, by attribute, and None is left out."""

    logits: Tensor | None = None
    hidden_states: Tensor | None = None
    features: Tensor | None = field(default=None)

    def __post_init__(self):
        for name in ("features", "logits", "hidden_states"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


# ---------------------------------------------------------------- the model


class Model(nn.Module):
    """The whole transformer."""

    switched = True

    def __init__(self, o: SimpleNamespace):
        super().__init__()
        self.o = o
        self.embed = self.embedding(o)
        self.add_tokens(o)
        self.add_mask(o)
        self.side: list[Tensor] = []
        block = EncoderLayer if o.block == "encoder layer" else Block
        self.blocks = nn.ModuleList(block(o, o.dim, self.side) for _ in range(o.depth))
        if o.two_names:
            self.encoder = self.blocks
        self.order = self.orders(o)
        self.exit = 1 if o.order == "early exit" else None
        dim = o.dim
        if o.second != "none":
            dim = dim // 2 if o.second == "narrow" else dim
            self.between = nn.Linear(o.dim, dim)
            self.second = block(o, dim, [])
        self.norm = nn.LayerNorm(dim) if o.final_norm else nn.Identity()
        if "attention" in o.pool:
            self.pooling = PoolingAttention(o, dim)
        self.add_head(o, 2 * dim if o.pool == "patches and class" else dim)
        if o.teacher:
            self.teacher = nn.ModuleList(block(o, o.dim, []) for _ in range(2))
        self.add_switch(o)

    def add_tokens(self, o: SimpleNamespace) -> None:
        if o.before:
            self.before = nn.Parameter(torch.randn(1, o.before, o.dim))
        if o.after:
            self.after = nn.Parameter(torch.randn(1, o.after, o.dim))
        if o.position == "added":
            self.position = nn.Parameter(torch.randn(1, o.tokens, o.dim))

    def add_mask(self, o: SimpleNamespace) -> None:
        if o.mask == "additive":
            self.register_buffer("mask_table", torch.randn(1, 1, o.tokens, o.tokens))
        if o.mask in ("boolean", "causal", "empty row"):
            ones = torch.ones(o.tokens, o.tokens, dtype=torch.bool)
            near = (torch.rand(o.tokens, o.tokens) > 0.3) | torch.eye(o.tokens, dtype=torch.bool)
            near[2] = near[2] & (o.mask != "empty row")  # infinite by some ways to attend
            self.register_buffer("mask_table", (ones.tril() if o.mask == "causal" else near)[None, None])

    def add_head(self, o: SimpleNamespace, dim: int) -> None:
        if o.long_skip:
            self.skip = nn.Linear(o.dim, dim)
        if o.together == "batch norm":
            self.batch_norm = nn.BatchNorm1d(dim, track_running_stats=False)
        heads = [Contrast(dim, o.batch) if o.head == "contrast" else HEADS[o.head](dim) for _ in range(2)]
        self.head = heads[0]
        if o.steers == "head":
            self.other_head = heads[1]

    @staticmethod
    def embedding(o: SimpleNamespace) -> nn.Module:
        if o.embed == "words":
            return nn.Embedding(WORDS, o.dim)
        if o.embed == "conv":
            return nn.Conv2d(3, o.dim, PATCH, PATCH)
        if o.embed == "stem":
            return nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(8, o.dim, 2, 2))
        return nn.Linear(3 * PATCH * PATCH, o.dim)

    @staticmethod
    def orders(o: SimpleNamespace) -> list[int]:
        order = list(range(o.depth))
        return {
            "reversed": order[::-1],
            "rotated": order[1:] + order[:1],
            "last twice": [*order, order[-1]],
            "last unused": order[:-1],
        }.get(o.order, order)

    def add_switch(self, o: SimpleNamespace) -> None:
        if o.where == "attribute":
            self.switched = True
        if o.where == "nested setting":
            self.config = SimpleNamespace(model=SimpleNamespace(pooling="token"))
        if o.where == "parameter":
            self.alpha = nn.Parameter(torch.tensor(1.0))
        if o.where == "buffer":
            self.register_buffer("flag", torch.tensor(True))

    def switch(self, x: Tensor) -> bool:
        """Which of two ways to go, by a setting or by the values."""
        return {
            "nested setting": lambda: self.config.model.pooling == "token",
            "module-level name": lambda: SWITCH,
            "parameter": lambda: self.alpha > 0,
            "buffer": lambda: self.flag,
            "environment": lambda: os.environ.get(VARIABLE) == "1",
            "values": lambda: x[..., :3].mean() > 0,
            "none": lambda: True,
        }.get(self.o.where, lambda: self.switched)()

    def other_way(self, what: str, x: Tensor) -> bool:
        return self.o.steers == what and not self.switch(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if self.o.grad == "no_grad all":
            with torch.no_grad():
                return self.answered(x, mask)
        return self.answered(x, mask)

    def answered(self, x: Tensor, mask: Tensor | None) -> Any:
        if self.o.inputs_changed:
            x = x.add_(1).remainder_(WORDS) if self.o.embed == "words" else x.sub_(0.5).div_(0.5)
        with self.backbone_grad_mode():
            features = self.features(x, mask)
        if self.o.detached == "features" or self.other_way("detach", features):
            features = features.detach()
        features = self.changed(features)
        return self.output(features, self.logits(features))

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self.side.clear()
        tokens = self.tokens(x)
        early = tokens.mean(1)
        tokens = self.run_blocks(tokens, self.mask(x, tokens) if mask is None else mask[:, None, None])
        features = self.pooled(self.norm(tokens))
        return features + self.skip(early) if self.o.long_skip else features

    def backbone_grad_mode(self):
        if self.o.grad == "enabled":
            return torch.set_grad_enabled(True)
        return nullcontext()

    def tokens(self, x: Tensor) -> Tensor:
        if self.o.embed == "unfold":
            x = self.embed(F.unfold(x, PATCH, stride=PATCH).mT)
        elif self.o.embed == "reshape":
            x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 2, 4, 1, 3, 5)
            x = self.embed(x.flatten(3).flatten(1, 2))
        else:
            x = self.embed(x)
            x = x if self.o.embed == "words" else x.flatten(2).mT
        if self.o.detached == "embedding":
            x = x.detach()
        before = [self.before.expand(len(x), -1, -1)] if self.o.before else []
        after = [self.after.expand(len(x), -1, -1)] if self.o.after else []
        x = torch.cat([*before, x, *after], 1)
        return x + self.position if self.o.position == "added" else x

    def mask(self, x: Tensor, tokens: Tensor) -> Tensor | None:
        if self.o.mask in ("none", "argument") or self.other_way("mask", tokens):
            return None
        if self.o.mask != "from input":
            return self.mask_table
        keep = x % 4 != 0 if self.o.embed == "words" else F.avg_pool2d(x.mean(1), PATCH).flatten(1) > -0.1
        keep = F.pad(keep, (self.o.before, self.o.after), value=True)
        keep[:, 0] = True
        return keep[:, None, None]

    def run_blocks(self, x: Tensor, mask: Tensor | None) -> Tensor:
        order = self.order[::-1] if self.other_way("order", x) else self.order
        exit_at = 0 if self.other_way("exit", x) else self.exit
        if self.o.tokens_first:
            x = x.transpose(0, 1).contiguous()
        for place, index in enumerate(order):
            x = self.pruned(x) if self.o.pruned and place == len(order) - 1 else x
            early = place < len(order) - 1 and exit_at is None
            with grad_mode(early and self.o.grad == "no_grad early"):
                x = self.run_block(self.blocks[index], x, mask)
            if early and self.o.detached == "early":
                x = x.detach()
            if place == exit_at:
                break
        if self.o.side == "mean of the last two":
            x = torch.stack(self.side[-2:]).mean(0)
        elif self.o.side == "first added":
            x = x + self.side[0]
        return self.run_second(x.transpose(0, 1) if self.o.tokens_first else x)

    def pruned(self, x: Tensor) -> Tensor:
        """The first token and the eleven largest others."""
        axis = 0 if self.o.tokens_first else 1
        rest = x.narrow(axis, 1, x.shape[axis] - 1)
        kept = rest.norm(dim=-1, keepdim=True).topk(11, axis).indices.sort(axis).values
        return torch.cat([x.narrow(axis, 0, 1), rest.gather(axis, kept.expand(*kept.shape[:2], x.shape[2]))], axis)

    def run_block(self, block: Block, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.o.checkpoint:
            return checkpoint(block, x, mask, use_reentrant=False)
        return block(x, mask)

    def run_second(self, x: Tensor) -> Tensor:
        if self.o.second == "none":
            return x
        x = self.between(x[:, self.o.before : self.o.before + self.o.patches] if "only" in self.o.second else x)
        if self.o.tokens_first:
            return self.second(x.transpose(0, 1).contiguous(), None).transpose(0, 1)
        return self.second(x, None)

    def pooled(self, x: Tensor) -> Tensor:
        pool = "mean" if self.other_way("pool", x) else self.o.pool
        if pool == "patches and class":
            return torch.cat([x[:, 0], x[:, self.o.before : self.o.before + self.o.patches].mean(1)], -1)
        if self.o.detached == "class token":
            x = torch.cat([x[:, :1].detach(), x[:, 1:]], 1)
        return {
            "first": lambda: x[:, 0],
            "last": lambda: x[:, -1],
            "mean": lambda: x.mean(1),
            "max": lambda: x.amax(1),
        }.get(pool, lambda: self.pooling(x))()

    def changed(self, features: Tensor) -> Tensor:
        """What is done to the features in front of the head."""
        if self.o.function == "straight through":
            features = StraightThrough.apply(features)
        elif self.o.function == "scaled gradient":
            features = ScaledGradient.apply(features)
        elif self.o.function == "root":
            features = features.relu().sqrt()
        if self.o.hook == "tensor" and features.requires_grad:
            features.register_hook(lambda gradient: gradient * torch.linspace(0, 1, gradient.shape[-1]).to(gradient))
        if self.other_way("batch", features):
            return features
        return {
            "batch norm": lambda: self.batch_norm(features),
            "norm of all": lambda: 5 * features / features.norm(),
            "index 0": lambda: features - 0.3 * features[:1],
            "mean": lambda: features - features.mean(0).tanh(),
        }.get(self.o.together, lambda: features)()

    def logits(self, features: Tensor) -> Tensor:
        head = self.other_head if self.other_way("head", features) else self.head
        with autocast(self.o.autocast == "head"):
            logits = head(features)
        if self.o.together == "similarity":
            return logits + (features @ features.mT).tanh().mean(1).unflatten(0, (-1, *[1] * (logits.dim() - 1)))
        return logits.softmax(0) if self.o.together == "softmax" else logits

    def output(self, features: Tensor, logits: Tensor) -> Any:
        return {
            "tensor": lambda: logits,
            "dictionary": lambda: {"features": features, "logits": logits},
            "named tuple": lambda: NamedOutput(features, logits),
            "ModelOutput": lambda: ModelOutput(logits=logits, features=features),
        }[self.o.output]()


class LibraryModel(Model):
    """One's own head, and pooling, behind a vision transformer of timm or torchvision."""

    def __init__(self, o: SimpleNamespace):
        nn.Module.__init__(self)
        self.o, self.order = o, [o.depth - 1]
        self.vit = (timm_backbone if o.backbone == "timm" else torchvision_backbone)(o)
        self.add_head(o, 2 * o.dim if o.pool == "patches and class" else o.dim)
        self.add_switch(o)

    side = None

    @property
    def blocks(self) -> nn.Module:
        return self.vit.blocks if self.o.backbone == "timm" else self.vit.encoder.layers

    def sites(self) -> list[nn.Module]:
        """Modules whose output is what an attention reads, where it has no `Reads`."""
        if self.o.backbone == "torchvision":
            return [block.ln_1 for block in self.blocks]
        pooled = [self.vit.norm] if self.vit.attn_pool is not None else []
        return [*(block.norm1 for block in self.blocks if not hasattr(block, "reads")), *pooled]

    def features(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.vit(x) if self.o.pool == "as it is" else self.pooled(self.vit.forward_features(x))


def torchvision_backbone(o: SimpleNamespace) -> nn.Module:
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(PATCH * o.grid[0], PATCH, o.depth, o.heads, o.dim, 2 * o.dim, num_classes=1)
    vit.heads = nn.Identity()
    return vit


def timm_backbone(o: SimpleNamespace) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        [PATCH * side for side in o.grid],
        PATCH,
        num_classes=0,
        embed_dim=o.dim,
        depth=o.depth,
        num_heads=o.heads,
        mlp_ratio=2,
        class_token=o.before > 0,
        reg_tokens=2 if o.before == 3 else 0,
        block_fn=timm_block(o.block_class),
        **o.library,
    )


def timm_block(kind: str) -> type[nn.Module]:
    """timm's block, or one's own subclass of it."""
    from timm.models.vision_transformer import Block as TimmBlock

    class BiasFromTokens(TimmBlock):
        def __init__(self, dim, num_heads, **options):
            super().__init__(dim, num_heads, **options)
            self.bias = nn.Linear(dim, num_heads)

        def forward(self, x, **_):
            h = self.norm1(x)
            x = x + self.ls1(self.attn(h, attn_mask=self.bias(h).mT[:, :, None]))
            return x + self.ls2(self.mlp(self.norm2(x)))

    class PostNorm(TimmBlock):
        def __init__(self, dim, num_heads, **options):
            super().__init__(dim, num_heads, **options)
            self.reads = Reads()

        def forward(self, x, **_):
            x = x + self.norm1(self.attn(self.reads(x)))
            return x + self.norm2(self.mlp(x))

    class ForwardReplaced(TimmBlock):
        def __init__(self, dim, num_heads, **options):
            super().__init__(dim, num_heads, **options)
            usual = self.attn.forward
            self.attn.forward = lambda x, **options: usual(x, **options).tanh()

    return {"bias from tokens": BiasFromTokens, "post-norm": PostNorm, "forward replaced": ForwardReplaced}.get(
        kind, TimmBlock
    )


# ---------------------------------------------------------------- from a seed to a model


def make(seed: int) -> RandomModel:
    """The model of a seed, always the same."""
    draw = Draw(seed)
    o = draw_options(draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = Model if o.backbone == "none" else LibraryModel
        kind = type("OwnModel", (base,), {"switched": True})  # of its own, as its attributes may change
        model = noisy(kind(o)).to(torch.float32 if o.autocast != "none" else torch.float64).train(o.training)
        # no word twice: the maximum over equal words has no gradient that is defined
        inputs = torch.stack([torch.randperm(WORDS)[: o.patches] for _ in range(o.batch)])
        if o.embed != "words":
            size = [PATCH * side for side in o.grid]
            inputs = torch.randn(o.batch, 3, *size, dtype=next(model.parameters()).dtype)
        keep = torch.rand(o.batch, o.tokens) > 0.3 if o.mask == "argument" else torch.ones(0)
    if o.mask == "argument":
        keep[:, 0] = True
    freeze(model, o)
    if o.hook == "module backward":
        model.head.register_full_backward_hook(lambda module, given, _: tuple(g if g is None else 2 * g for g in given))
    turn_switch(model, True)
    target = draw_target(draw, o)
    tolerance = ROUNDED if o.autocast != "none" else EXACT
    arguments = (keep,) if o.mask == "argument" else ()
    return RandomModel(seed, model, inputs, arguments, target, draw.parts, tolerance, change_of(model, seed))


def noisy(model: nn.Module) -> nn.Module:
    """Norms and gates are not what they are at the start of a training."""
    for parameter in model.parameters():
        if parameter.dim() > 0:
            parameter.data += 0.15 * torch.randn_like(parameter)
    return model


def freeze(model: Model, o: SimpleNamespace) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = o.frozen == "none" or (o.frozen == "backbone" and name.startswith("head."))


def draw_target(draw: Draw, o: SimpleNamespace) -> Any:
    """One class for all samples, or one for each, as a list or a tensor."""
    if o.head == "one logit":
        return None
    classes = o.batch if o.head == "contrast" else CLASSES
    each = draw.random.sample(range(classes), o.batch)
    if o.together in ("batch norm", "softmax"):
        return each
    return draw.random.choice([each[0], each[0], each, torch.tensor(each)])


def turn_switch(model: Model, on: bool) -> None:
    """Sets what `Model.switch` reads."""
    global SWITCH, attend
    SWITCH = on
    attend = F.scaled_dot_product_attention
    os.environ[VARIABLE] = str(int(on))
    where = model.o.where
    if where == "nested setting":
        model.config.model.pooling = "token" if on else "mean"
    elif where == "parameter":
        model.alpha.data.fill_(1 if on else -1)
    elif where == "buffer":
        model.flag.fill_(on)
    elif where == "class attribute":
        type(model).switched = on
    elif where == "attribute":
        model.switched = on


def change_of(model: Model, seed: int) -> Callable[[], None] | None:
    """What is changed between two explanations: the switch, or else a part of the model."""
    o = model.o
    if o.where not in ("none", "values"):
        return lambda: turn_switch(model, False)
    if o.change == "none":
        return None

    def change() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            other = type(model).__base__(o).to(next(model.parameters())).train(o.training)
            change_part(model, other)

    return change


def change_part(model: Model, other: Model) -> None:
    global attend
    what, last = model.o.change, model.order[-1]
    if what == "weights":
        model.load_state_dict(other.state_dict())
    elif what == "head replaced":
        model.head = other.head
    elif what == "block replaced":
        model.blocks[last] = other.blocks[last]
        model.blocks[last].side = model.side
    elif what == "attention":
        name = "self_attn" if model.o.attention == "encoder layer" else "attn"
        setattr(model.blocks[last], name, getattr(other.blocks[last], name))
    elif what == "function":
        attend = attend_flatter
    else:
        model.order.reverse()
